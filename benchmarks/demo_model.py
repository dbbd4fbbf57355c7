"""The demo model on text absent from its training: the figures of its card.

``python -m benchmarks.demo_model --model FOLDER --held-out FOLDER --third-party FOLDER``

Bits per byte on both folders, for the model and for checkpoints of shorter trainings; bodies of
held-out functions; single-line infill against left-to-right completion. See the modules
demo_bits, demo_functions and demo_infill for what exactly is measured.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxcoder import Generator

from .demo_bits import bits_per_byte
from .demo_functions import function_bodies
from .demo_infill import compare_infill
from .harness import write_result


@dataclass(frozen=True)
class DemoModel:
    """Measure a small model on held-out Python files."""

    model: Path
    """Checkpoint folder."""
    held_out: Path
    """Folder of .py files absent from training; everything is measured on them."""
    third_party: Path
    """Folder of .py files of a third-party package absent from training: bits per byte."""
    earlier: tuple[Path, ...] = ()
    """Checkpoints of shorter trainings, of which bits per byte alone are measured."""
    functions: int = 200
    """Function headers to write bodies for."""
    lines: int = 500
    """Lines to infill."""
    seed: int = 0
    """Of the choice of functions and lines, and of sampling."""
    out: Path | None = None

    def run(self) -> None:
        """Measure, write and print the result.

        Raises:
          ValueError: a folder without .py files, or one with too few functions or lines; two
            checkpoint folders of one name.
        """
        names = [folder.name for folder in (*self.earlier, self.model)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"earlier, model: folders named {names}, expected a different name for each row "
                "of the table; rename one"
            )
        held_out, third_party = read_texts(self.held_out), read_texts(self.third_party)
        table = {}
        for folder in (*self.earlier, self.model):
            # The last is the model proper, which the rest is measured on.
            generator = Generator.from_pretrained(folder, dtype="float32")
            table[folder.name] = _timed(
                f"bits per byte of {folder.name}",
                lambda generator=generator: {
                    "held_out": bits_per_byte(generator, held_out),
                    "third_party": bits_per_byte(generator, third_party),
                },
            )
        functions = _timed(
            "function bodies",
            lambda: function_bodies(generator, held_out, count=self.functions, seed=self.seed),
        )
        infill = _timed(
            "infill",
            lambda: compare_infill(generator, held_out, count=self.lines, seed=self.seed),
        )
        content = {
            "model": self.model.name,
            "bits_per_byte": table,
            "function_bodies": functions,
            "infill": infill,
        }
        write_result("demo_model", content, out=self.out)


def read_texts(folder: Path) -> dict[str, str]:
    """All .py files below a folder, by their path in it.

    Raises:
      ValueError: there is none, or one is not UTF-8.
    """
    texts = {}
    for path in sorted(folder.rglob("*.py")):
        try:
            texts[path.relative_to(folder).as_posix()] = path.read_bytes().decode()
        except UnicodeDecodeError as exc:
            raise ValueError(f"{path}: {exc}, expected UTF-8; leave the file out") from exc
    if not texts:
        raise ValueError(f"{folder}: no .py file, expected the held-out files; check the path")
    return texts


def _timed(what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.perf_counter()
    result = measure()
    print(f"{time.perf_counter() - start:6.1f} s  {what}", file=sys.stderr)
    return result


if __name__ == "__main__":
    tyro.cli(DemoModel).run()
