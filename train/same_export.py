"""Whether a folder is an export already, to the last byte: a finished run has made its own."""

from collections.abc import Mapping
from pathlib import Path

from jaxcoder.checkpoint import CONFIG_FILE, load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import Params, params_to_hf
from jaxcoder.manifest import MANIFEST_FILE, file_problems, make_manifest, read_manifest
from jaxcoder.shards import SINGLE_FILE


def is_same_export(
    folder: Path, model: ModelConfig, params: Params, files: Mapping[str, bytes]
) -> bool:
    """Whether `folder` holds exactly what an export of these would write into it.

    What its manifest says is compared with what would be written, and every file of it with its
    manifest.

    Args:
      folder: any folder.
      model: the config that would be written.
      params: the weights.
      files: name and content of all other files but the manifest.
    """
    expected = make_manifest(files, params_to_hf(params, model))
    try:
        manifest = read_manifest(folder)
        if manifest is None or file_problems(manifest, folder, needed={CONFIG_FILE}):
            return False
        stored, _ = load_checkpoint(folder)
    except ValueError:  # damaged, or another kind of checkpoint: not this export, whatever it is
        return False
    others = {name: digest for name, digest in manifest.files.items() if name != CONFIG_FILE}
    names = {path.name for path in folder.iterdir()}
    return (
        stored == model
        and manifest.tensors == expected["tensors"]
        and others == expected["files"]
        and names == {*manifest.files, SINGLE_FILE, MANIFEST_FILE}
    )
