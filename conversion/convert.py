"""``python -m conversion convert``: any layout that we know -> canonical safetensors."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxcoder.checkpoint import TOKENIZER_FILE

from .download import resolve_source
from .folders import GENERATION_FILE, read_generation_config, write_folder
from .sources import read_source


@dataclass(frozen=True)
class Convert:
    """Turn a PyTorch .bin, SantaCoder, GPT-2 or other safetensors checkpoint into ours.

    Pickled weights need PyTorch, and are read without running what is pickled.
    """

    src: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """A local folder or a Hub id."""
    dst: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to write: new or empty."""
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        tyro.conf.arg(metavar="float32|bfloat16|float16"),
    ] = None
    """Cast every weight; by default each stays what it is."""

    def run(self) -> int:
        """Convert; returns the exit status."""
        convert(resolve_source(self.src), self.dst, dtype=self.dtype)
        print(f"{self.dst}: written", file=sys.stderr)
        return 0


def convert(source: Path, destination: Path, *, dtype: str | None = None) -> None:
    """Write the checkpoint in the folder `source` as canonical safetensors.

    Args:
      source: see `sources.read_source`; tokenizer.json and generation_config.json are copied.
      destination: a folder that is new or empty; it appears complete or not at all.
      dtype: "float32", "bfloat16" or "float16" to cast every weight; None keeps what is stored.

    Raises:
      ConfigError, CheckpointError: the source cannot be read, or `destination` is taken.
      ValueError: the weights need PyTorch, which is not installed.
    """
    generation = read_generation_config(source)
    write_folder(
        destination,
        source,
        read=lambda: read_source(source, dtype=dtype),
        make_files=lambda _: {} if generation is None else {GENERATION_FILE: generation},
    )
    if not (source / TOKENIZER_FILE).exists():
        print(f"note: {source} has no {TOKENIZER_FILE}, so {destination} has none", file=sys.stderr)
