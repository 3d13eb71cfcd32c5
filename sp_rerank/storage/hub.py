"""Brings a checkpoint from the model hub to this machine; the cache first, and no long wait without a network.

Knows nothing of what is in the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sp_rerank.errors import HubUnavailableError, StorageError, UsageError

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
    commit = _probe(repo, revision, files[0])
    for file in files:
        try:
            return _with_commit(hf_hub_download(repo, file, revision=commit), file)
        except Exception as error:  # a full disk, a connection that broke
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise StorageError(f"{file} of {repo} cannot be downloaded: {error}") from error
    raise UsageError(f"{repo} at {commit}: expected a file {' or '.join(files)}, found none")


def fetch_pipeline(repo: str, revision: str | None = None) -> Path:
    """The local folder of a diffusers pipeline, downloaded unless it is in the cache of huggingface_hub.

    Of the repository only what the pipeline's model_index.json names is fetched, weights as safetensors; no code.

    Args:
        repo: "owner/name".
        revision: Commit, tag or branch; the main branch by default.

    Raises:
        UsageError: If there is no such repository or revision, or access to it is not granted.
        StorageError: If the download breaks off, or the weights are no safetensors.
        HubUnavailableError: If it is not in the cache and the hub does not answer; after five seconds at most.
    """
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(repo, revision=revision, use_safetensors=True, local_files_only=True))
    except Exception:  # not (wholly) in the cache: what is raised differs from version to version
        pass
    commit = _probe(repo, revision)
    try:
        return Path(DiffusionPipeline.download(repo, revision=revision or commit, use_safetensors=True))
    except Exception as error:  # no safetensors, code of its own, a full disk, a connection that broke
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(f"{repo} cannot be downloaded: {reason}") from error


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

    commit = _probe(repo, revision)
    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=_WANTED))
    except Exception as error:  # a full disk, a connection that broke
        raise StorageError(f"{repo} cannot be downloaded: {error}") from error


def _probe(repo: str, revision: str | None, file: str | None = None) -> str | None:
    """The commit that a revision stands for; asked with a short limit, for a download itself tries again for long."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    place = f"{file} of {repo}" if file else repo
    try:
        return HfApi().model_info(repo, revision=revision, timeout=_PROBE_SECONDS).sha
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
