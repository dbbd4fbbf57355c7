"""From what a user names to a local folder, for weights that only PyTorch's .bin holds too."""

from pathlib import Path

from jaxcoder.errors import CheckpointError
from jaxcoder.hub import resolve

_TORCH_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "pytorch_model.bin.index.json",
)


def resolve_source(source: str) -> Path:
    """The local folder of a checkpoint; of a repository without safetensors, its .bin files.

    Args:
      source: an existing folder, else a repository id of the Hugging Face Hub.

    Raises:
      CheckpointError: no such folder, or the repository cannot be had; says what to do.
    """
    try:
        return resolve(source)
    except CheckpointError as exc:
        # A cause is a failure to reach the repository, and an existing path is a file.
        if exc.__cause__ is not None or Path(source).expanduser().exists():
            raise
        return _download_torch_files(source, exc)


def _download_torch_files(repo: str, no_safetensors: CheckpointError) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=list(_TORCH_FILES)))
    except errors.HFValidationError:
        raise no_safetensors from None  # a path, and no such folder
    # Exception, because the HTTP client's own errors are of another package in each major version.
    except Exception as exc:
        raise CheckpointError(
            f"{repo}: the download of its .bin weights failed ({type(exc).__name__}: {exc}); "
            f"run `hf download {repo}`, or pass a local folder"
        ) from exc
    if not any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{repo}: has neither safetensors nor pytorch_model.bin weights; check the id on "
            f"https://huggingface.co/{repo}/tree/main"
        )
    return folder
