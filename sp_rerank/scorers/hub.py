"""Brings a checkpoint's folder from the model hub to this machine; the cache first, and no long wait without a network.

Knows nothing of what is in the folder.
"""

from __future__ import annotations

from pathlib import Path

from sp_rerank.errors import HubUnavailableError, StorageError, UsageError

# Nothing else is fetched: no pickles, no code.
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


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        # A probe with a short limit: the download itself would try again for a long time.
        commit = HfApi().model_info(repo, revision=revision, timeout=_PROBE_SECONDS).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        where = f"{repo!r} at revision {revision!r}" if revision else repr(repo)
        raise UsageError(
            f"{where}: neither a folder here nor a repository of the hub that you have access to"
        ) from error
    # Which exceptions mean "no connection" depends on the HTTP client that this huggingface_hub was built on.
    except Exception as error:
        command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        raise HubUnavailableError(
            f"{repo}: neither a folder here nor in the cache, and the hub gave no answer ({type(error).__name__}); "
            f"where there is a network run `{command}`, or give the path of a folder"
        ) from error
    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=_WANTED))
    except Exception as error:  # a full disk, a connection that broke
        raise StorageError(f"{repo} cannot be downloaded: {error}") from error
