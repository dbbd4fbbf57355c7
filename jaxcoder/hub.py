"""From what a user names, a folder or a repository of the Hugging Face Hub, to a local folder.

Only the files that loading, converting and exporting need are downloaded, and no repository code
ever is. huggingface_hub is imported where it is used: local folders work without it.
"""

import functools
import os
from pathlib import Path

from .diagnostics import say
from .errors import CheckpointError

NEEDED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "jaxcoder_manifest.json",
)
"""Loading does not read generation_config.json; converting and exporting copy it."""

_LICENCE_NOTE = (
    "note: the weights of bigcode/* are under the BigCode OpenRAIL-M licence, which restricts "
    "their use: https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement"
)


def resolve(
    path_or_repo: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """The local folder of a checkpoint; a repository id is downloaded into the Hub's cache.

    Args:
      path_or_repo: an existing folder, else a repository id: ``owner/name`` or ``name``.
      revision: branch, tag or commit of the repository; None is its main branch.
      local_files_only: use what an earlier download left, without the network.

    Raises:
      CheckpointError: no such folder, or the repository cannot be had; says what to do.
      ValueError: neither text nor a path, an empty text, or a revision of a local folder.
    """
    if not isinstance(path_or_repo, str | Path) or path_or_repo == "":
        raise ValueError(
            f"path_or_repo is {path_or_repo!r}, expected a folder or a repository id; "
            "for the current folder pass '.'"
        )
    # Not Path.expanduser, which raises where there is no such user.
    folder = Path(os.path.expanduser(path_or_repo))
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision is {revision!r}, but {folder} is a local folder, which has none; "
                "leave revision out"
            )
        return folder
    if isinstance(path_or_repo, Path) or _looks_like_path(path_or_repo):
        kind = "a file" if folder.exists() else "no such folder"
        raise CheckpointError(
            f"{folder}: {kind}, expected the folder of a checkpoint or a repository id owner/name; "
            "check the path"
        )
    return _download(path_or_repo, revision, local_files_only)


def _looks_like_path(text: str) -> bool:
    is_path = text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text
    return is_path or Path(text).exists()


def _download(repo: str, revision: str | None, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import is_offline_mode, snapshot_download
    except ImportError as exc:
        raise CheckpointError(
            f"{repo}: no such folder, and a repository needs huggingface_hub; "
            "run `pip install huggingface_hub`, or pass a local folder"
        ) from exc

    if repo.startswith("bigcode/") and not local_files_only:
        _print_licence_note()
    named = repo if revision is None else f"{repo} at revision {revision!r}"
    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(NEEDED_FILES),
                local_files_only=local_files_only,
            )
        )
    # Exception, because the HTTP client's own errors are of another package in each major version.
    except Exception as exc:
        raise CheckpointError(f"{named}: {_explain(exc, repo, local_files_only)}") from exc
    if any(folder.glob("*.safetensors")):
        return folder
    if local_files_only or is_offline_mode():
        raise CheckpointError(
            f"{named}: the copy in the local cache is incomplete, without safetensors weights "
            f"({folder}), or the repository has none; download it again where there is a network: "
            f"`hf download {repo}`, or pass a local folder"
        )
    raise CheckpointError(
        f"{named}: has no safetensors weights, and pickled ones are not downloaded; "
        f"for those run `hf download {repo}`, then `python -m conversion convert SRC DST`"
    )


def _explain(exc: Exception, repo: str, local_files_only: bool) -> str:
    """What happened and what to do, for an error of huggingface_hub 1 or 2."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(exc, errors.HFValidationError):
        return f"neither a folder nor a repository id ({exc}); expected owner/name"
    if isinstance(exc, errors.RevisionNotFoundError):
        return f"no such revision; see the branches and tags on {page}/tree/main"
    # An answer of the Hub that no cached copy could stand in for arrives as the cause.
    answer = exc if isinstance(exc, errors.HfHubHTTPError) else exc.__cause__
    if isinstance(answer, errors.RepositoryNotFoundError) and not isinstance(
        answer, errors.GatedRepoError
    ):
        return f"no such repository, or a private one; check the id on {page}, or {log_in}"
    if isinstance(answer, errors.HfHubHTTPError):
        status = answer.response.status_code
        if isinstance(answer, errors.GatedRepoError) or status in (401, 403):
            return (
                f"the repository is gated (HTTP {status}); accept its terms on {page}, "
                f"then {log_in}"
            )
        return f"the Hub answered HTTP {status}; try again later, or pass a local folder"
    if isinstance(exc, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if local_files_only:
            happened = "local_files_only is set"
        elif isinstance(answer or exc, errors.OfflineModeIsEnabled):
            happened = "HF_HUB_OFFLINE is set"
        else:
            happened = f"there is no connection to the Hub ({answer or exc})"
        # A class that huggingface_hub 1 does not have: it returns the incomplete folder.
        incomplete = isinstance(exc, getattr(errors, "IncompleteSnapshotError", ()))
        state = (
            "the copy in the local cache is incomplete" if incomplete else "not in the local cache"
        )
        happened = f"{state}, and {happened}"
    else:
        happened = f"the download failed ({type(exc).__name__}: {exc})"
    return (
        f"{happened}; download it where there is a network: `hf download {repo}`, "
        "or pass a local folder"
    )


@functools.cache
def _print_licence_note() -> None:
    say(_LICENCE_NOTE)
