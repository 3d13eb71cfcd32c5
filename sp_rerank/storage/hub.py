"""Brings checkpoints and files from the hub to this machine, and takes folders there.

The cache comes first, and there is no long wait without a network. Knows nothing of what is in the files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sp_rerank.errors import HubUnavailableError, SpRerankError, StorageError, UsageError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

log = logging.getLogger(__name__)

# Of a folder nothing else is fetched: no pickles, no code.
_WANTED = ["config.json", "*.safetensors"]
_PROBE_SECONDS = 3.0


def fetch(repo: str, revision: str | None = None) -> Path:
    """The local folder of a hub repository, downloaded unless it is in the cache of huggingface_hub.

    A cached copy is taken as it is, without asking whether the branch has moved on; `hf download` renews it.

    Args:
        repo: "owner/name".
        revision: commit, tag or branch; the main branch by default.

    Raises:
        UsageError: if there is no such repository or revision, or access to it is not granted.
        StorageError: if the download breaks off.
        HubUnavailableError: if it is not in the cache and the hub does not answer; after five seconds at most.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_WANTED, local_files_only=True))
    except HFValidationError as error:
        raise UsageError(f"{repo!r}: expected a folder that exists or a hub repository OWNER/NAME") from error
    except LocalEntryNotFoundError:
        return _download(repo, revision)


def fetch_file(repo: str, files: Sequence[str], revision: str | None = None) -> tuple[Path, str]:
    """The first of these files that a hub repository has, downloaded unless one is in the cache of huggingface_hub.

    Args:
        repo: "owner/name".
        files: names in the repository, the best first.
        revision: commit, tag or branch; the main branch by default.

    Returns:
        The file, and the commit that it is of.

    Raises:
        UsageError: if there is no such repository, revision or file, or access to it is not granted.
        StorageError: if the download breaks off.
        HubUnavailableError: if none is in the cache and the hub does not answer; after five seconds at most.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in files:
        try:
            return _with_commit(hf_hub_download(repo, file, revision=revision, local_files_only=True), file)
        except LocalEntryNotFoundError:
            continue
    info = _probe(repo, revision, files[0])
    held = {entry.rfilename for entry in info.siblings or ()}
    _announce(repo, info, {next((file for file in files if file in held), files[0])}.__contains__)
    for file in files:
        try:
            return _with_commit(hf_hub_download(repo, file, revision=revision), file)
        except Exception as error:  # a full disk, a connection that broke
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise _broken_off(f"{file} of {repo}", error) from error
    raise UsageError(f"{repo} at {info.sha}: expected a file {' or '.join(files)}, found none")


def fetch_pipeline(repo: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The local folder of a diffusers pipeline, downloaded unless it is in the cache of huggingface_hub.

    Of the repository only what the pipeline's model_index.json names is fetched, weights as safetensors; no code.

    Args:
        repo: "owner/name".
        revision: Commit, tag or branch; the main branch by default.
        variant: Of the weights, such as "fp16"; the plain ones by default.

    Raises:
        UsageError: If there is no such repository or revision, or access to it is not granted.
        StorageError: If the download breaks off, or the weights are no safetensors.
        HubUnavailableError: If it is not in the cache and the hub does not answer; after five seconds at most.
    """
    from diffusers import DiffusionPipeline

    more: dict[str, Any] = {"variant": variant, "use_safetensors": True}
    try:
        return Path(DiffusionPipeline.download(repo, revision=revision, local_files_only=True, **more))
    except Exception:  # not (wholly) in the cache: what is raised differs from version to version
        pass
    info = _probe(repo, revision)
    _announce(repo, info, lambda name: _is_of_pipeline(name, variant))
    try:
        return Path(DiffusionPipeline.download(repo, revision=revision, **more))
    except Exception as error:  # no safetensors, code of its own, a full disk, a connection that broke
        raise _broken_off(repo, error) from error


def fetch_configuration(repo: str) -> Path:
    """The local folder of a diffusers pipeline without its weights, a few files; as `fetch_pipeline`.

    Args:
        repo: "owner/name".
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]
    folder = None
    try:
        folder = cached_snapshot(repo)
    except HFValidationError as error:
        raise UsageError(f"{repo!r}: expected a folder that exists or a hub repository OWNER/NAME") from error
    if folder and (folder / "model_index.json").is_file():
        return folder
    _probe(repo, None)
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # a full disk, a connection that broke
        raise _broken_off(repo, error) from error


def fetch_data_file(repo: str, file: str, revision: str | None = None) -> Path:
    """A file of a data set of the hub, downloaded unless it is in the cache of huggingface_hub.

    Raises:
        UsageError: If there is no such data set, revision or file, or access to it is not granted.
        HubUnavailableError: If it is not in the cache and the hub does not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    place = f"hf://datasets/{repo}{f'@{revision}' if revision else ''}/{file}"
    for local in (True, False):
        try:
            return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision, local_files_only=local))
        except LocalEntryNotFoundError as error:
            if not local:
                raise HubUnavailableError(
                    f"{place} is not in the cache and the hub gives no answer: {NETWORK}"
                ) from error
        except Exception as error:
            if isinstance(error, EntryNotFoundError) or _is_refusal(error):
                raise UsageError(f"{place}: no file of a data set that you have access to") from error
            raise HubUnavailableError(f"{place} cannot be fetched ({type(error).__name__}): {NETWORK}") from error
    raise AssertionError


NETWORK = "try again where there is a network, or give the path of a copy"


def check_push(repo: str) -> None:
    """Refuse a repository that cannot be written to, as far as that is known here: before the work, not after it.

    Raises:
        UsageError: If it is not OWNER/NAME, or no token is known.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        well_formed = repo.count("/") == 1
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise UsageError(f"{repo!r}: expected a repository of the hub, OWNER/NAME")
    if not get_token():
        raise UsageError(f"{repo}: no token of the hub is known here; run `hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, repo: str, kind: Literal["dataset", "model"]) -> str:
    """Upload all files of a folder; a repository that is not there yet is made, and is private.

    Returns:
        The URL of the repository.

    Raises:
        UsageError: If the token may not write there.
        HubUnavailableError: If the hub does not answer; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    again = f"it is kept in {folder}; `hf upload {repo} {folder} --repo-type {kind}` sends it later"
    try:
        url = HfApi().create_repo(repo, repo_type=kind, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, repo_type=kind, commit_message="Upload by sp-rerank")
    except Exception as error:  # which exceptions mean "no connection" depends on the HTTP client
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if _is_refusal(error):
            raise UsageError(f"{repo}: the hub refuses the upload ({why}); {again}") from error
        raise HubUnavailableError(f"{repo}: the upload failed ({type(error).__name__}: {why}); {again}") from error
    return str(url)


def _is_refusal(error: Exception) -> bool:
    """Whether the hub answered that this is not there, or not for this token."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", 0) in (400, 401, 403, 404)


def cached_snapshot(repo: str, revision: str | None = None) -> Path | None:
    """The local folder of a repository where the cache of huggingface_hub has it; nothing is fetched."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except OSError:  # not in the cache
        return None


def _with_commit(path: str, file: str) -> tuple[Path, str]:
    """The cache lays files out as snapshots/COMMIT/FILE."""
    return Path(path), Path(path).parents[len(Path(file).parts) - 1].name


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    info = _probe(repo, revision)
    _announce(repo, info, lambda name: any(fnmatch(name, pattern) for pattern in _WANTED))
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # a full disk, a connection that broke
        raise _broken_off(repo, error) from error


def _announce(repo: str, info: ModelInfo, wanted: Callable[[str], bool]) -> None:
    """Log one line before a download: how large it is, and under which license.

    Raises:
        UsageError: If the hub will ask for a token, and there is none.
    """
    from huggingface_hub import get_token

    if info.gated and get_token() is None:
        raise UsageError(_gated(repo))
    files = [entry.size or 0 for entry in info.siblings or () if wanted(entry.rfilename)]
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    license = (info.card_data.get("license") if info.card_data else None) or ", ".join(tags) or "not stated"
    size, unit = (sum(files) / 1e9, "GB") if sum(files) >= 1e9 else (sum(files) / 1e6, "MB")
    log.info("downloading %s: about %.1f %s in %d files; license: %s", repo, size, unit, len(files), license)


def _is_of_pipeline(name: str, variant: str | None) -> bool:
    """Whether a file of a repository is likely to be fetched: of a folder of its own, in the variant asked for."""
    folder, _, file = name.rpartition("/")
    if name == "model_index.json":
        return True
    if not folder or "/" in folder or not file.endswith((".json", ".txt", ".model", ".jinja", ".safetensors")):
        return False
    found = re.fullmatch(r"[^.]+\.([^.]+?)(?:-\d+-of-\d+)?\.safetensors", file)
    return not file.endswith(".safetensors") or (found[1] if found else None) == variant


def _gated(repo: str) -> str:
    return f"{repo} asks for a token: accept its terms on its page of the hub, then run `hf auth login` or set HF_TOKEN"


def _broken_off(what: str, error: Exception) -> SpRerankError:
    """What is raised for a download that failed."""
    from huggingface_hub.errors import GatedRepoError

    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError) or status in (401, 403):
            return UsageError(_gated(what))
        cause = cause.__cause__ or cause.__context__
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return StorageError(f"{what} cannot be downloaded: {reason}")


def _probe(repo: str, revision: str | None, file: str | None = None) -> ModelInfo:
    """What the hub knows of a revision; asked with a short limit, for a download itself tries again for long.

    The download then names the revision and not its commit: of a commit the cache does not note what branch it was of,
    and would not find it again without the hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    place = f"{file} of {repo}" if file else repo
    try:
        return HfApi().model_info(repo, revision=revision, timeout=_PROBE_SECONDS, files_metadata=True)
    except GatedRepoError as error:
        raise UsageError(_gated(repo)) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        where = f"{repo!r} at revision {revision!r}" if revision else repr(repo)
        raise UsageError(
            f"{where}: neither a folder here nor a repository of the hub that you have access to"
        ) from error
    # Which exceptions mean "no connection" depends on the HTTP client that this huggingface_hub was built on.
    except Exception as error:
        words = ["hf download", repo, *([file] if file else []), *(["--revision", revision] if revision else [])]
        otherwise = "convert a copy with `sp-rerank scorers convert`" if file else "give the path of a folder"
        raise HubUnavailableError(
            f"{place}: neither here nor in the cache, and the hub gave no answer ({type(error).__name__}); "
            f"where there is a network run `{' '.join(words)}`, or {otherwise}"
        ) from error
