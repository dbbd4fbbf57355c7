"""The card of the demo model, README.md beside its weights, from what was measured.

``python -m benchmarks.demo_card --model EXPORT --out jaxcoder/demo``

Copies the export and writes the card with the figures of ``results/demo_model.json``, the curve and
the settings of its runs (``docs/demo-curve.json``), and the sources (``docs/demo-corpus.json``).
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import tensor_shapes
from jaxcoder.json_file import json_bytes
from jaxcoder.manifest import MANIFEST_FILE
from train.pieces import RESERVE
from train.presets import stdlib

from . import demo_functions, demo_infill
from .demo_curve import CURVE
from .demo_runs import commands, setting_rows
from .harness import RESULTS
from .pictures import ALL, picture

_CORPUS = Path(__file__).parents[1] / "docs" / "demo-corpus.json"
PICTURE = "curve.svg"

_WORDS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}

_TEXT = """---
license: apache-2.0
library_name: jaxcoder
tags: [code, python, fill-in-the-middle, gpt_bigcode]
---
# The demo model

A small Python model to try jaxcoder with, offline: {parameters:,} parameters, the architecture and
the special tokens of TinyStarCoderPy ({n_layer} layers, {n_embd} wide, {n_head} heads, one head of
keys and values, {n_positions} positions), and a byte-level BPE tokenizer of its own with
{vocab_size:,} entries. It was trained from scratch by jaxcoder's training loop, with the
fill-in-the-middle objective. It writes code that looks like Python and does not know what the code
is for: nothing it writes should be used.

## Figures

On files it never saw, with 95 % intervals. `benchmarks/results/demo_model.json` has all of it,
with examples.

{lengths}

{figures}

| aim | reached |
|---|---|
{aims}

Held out whole are these of the standard library's packages and modules: {held_out}; and the
third-party package {third_party}. Training files that share too much with them were removed:
{removed}. Of the held-out files' 10-token runs, {shared:.1%} occur in training files too.

- **Bits per byte**: every file by itself, windows of {window} tokens that overlap by half.
- **Function bodies**: {functions} headers with docstring from the held-out standard library, with
  the file before them, temperature {temperature}, {new_tokens} new tokens at most, cut at the first
  dedent; where the tokens run out, the last line is dropped. The files' own bodies, cut alike, are
  the ceiling: a body longer than that often does not parse either. *Trivial* is a body of nothing
  but `pass`, `...` or one repeated line, comment lines apart; *empty* one that ends before it
  began, which does not parse; *stuck* one with the same line, a letter or digit in it, three times
  in a row anywhere.
- **One line**: {lines} lines of 6 characters or more, greedy, {line_tokens} new tokens at most.
  Infilling sees the text after the line; left to right is the same model without it. An
  infilled share that is no higher says that the model has not learned to use it.

The context is {n_positions} tokens. Its last {reserve} positions saw nothing but the ends of
infilled middles in training: near the window's end the model writes the end of text.

## Training

{runs} runs, each from the weights of the one before: {step_counts} steps of {tokens:,} tokens
at most, {total:.0f} million in all, of {available:.0f} million in the corpus, on two CPU cores,
products in {dtype}.

![loss and bits per byte of all runs]({curve})

The loss of a later run rises at first with its learning rate. The commands:

```sh
{commands}
```

| | {columns} |
|---|{rule}
{settings}

All else is as the preset has it. A middle of one whole line is not BigCode's way; it is what most
infilling asks for. The learning rate rises over the warm-up and falls along a cosine to {final:.0%}
of its peak; seed {seed}.

## Sources

{files:,} files, {megabytes:.0f} MB, from {packages} packages under permissive licences, among them
the standard library; docs/demo-corpus.json in the project says what was left out of each, and why.
These weights are under the project's licence, Apache-2.0; the packages are under theirs.

| package | version | licence |
|---|---|---|
{sources}
"""


@dataclass(frozen=True)
class DemoCard:
    """Put the export of the last run, and its card, into a new folder."""

    model: Path
    """The export that was measured."""
    out: Path

    def run(self) -> None:
        """Copy the files and write the card, the curve, and their hashes.

        Raises:
          FileExistsError: `out` is there; other files in it would be shipped too.
        """
        self.out.mkdir()
        for path in self.model.iterdir():
            shutil.copyfile(path, self.out / path.name)
        (self.out / PICTURE).write_bytes(picture(ALL["training-curve"]))
        card = self._card(_read(CURVE)["runs"])
        (self.out / "README.md").write_text(card, encoding="utf-8")
        manifest = _read(self.out / MANIFEST_FILE)
        for name in ("README.md", PICTURE):
            digest = hashlib.sha256((self.out / name).read_bytes()).hexdigest()
            manifest["files"][name] = digest
        (self.out / MANIFEST_FILE).write_bytes(json_bytes(manifest))

    def _card(self, runs: list[dict[str, Any]]) -> str:
        result, corpus = _read(RESULTS / "demo_model.json"), _read(_CORPUS)
        model = ModelConfig.from_file(self.model / "config.json")
        removed = [item["file"].partition("/")[2] for item in corpus["near_duplicates_removed"]]
        lengths, figures = demo_figures(result)
        preset = stdlib()
        numbers = [str(number) for number in range(1, len(runs) + 1)]
        counts = [f"{run['steps']:,}" for run in runs]
        return _TEXT.format(
            parameters=sum(map(math.prod, tensor_shapes(model).values())),
            n_layer=model.n_layer,
            n_embd=model.n_embd,
            n_head=model.n_head,
            n_positions=model.n_positions,
            vocab_size=model.vocab_size,
            lengths="\n".join(lengths),
            figures="\n".join(figures),
            aims="\n".join(aims(result)),
            held_out=", ".join(corpus["held_out_standard_library"]),
            third_party=corpus["held_out_third_party"],
            removed=", ".join(removed),
            shared=corpus["share_of_held_out_shingles_in_training"],
            window=model.n_positions - RESERVE,
            reserve=RESERVE,
            functions=result["function_bodies"]["model"]["parses"]["of"],
            temperature=demo_functions.TEMPERATURE,
            new_tokens=demo_functions.NEW_TOKENS,
            lines=result["infill"]["psm"]["of"],
            line_tokens=demo_infill.NEW_TOKENS,
            curve=PICTURE,
            runs=_WORDS[len(runs)],
            step_counts=f"{', '.join(counts[:-1])} and {counts[-1]}",
            tokens=runs[0]["tokens_per_step_at_most"],
            total=sum(run["steps"] * run["tokens_per_step_at_most"] for run in runs) / 1e6,
            available=runs[0]["corpus_tokens"] / 1e6,
            dtype=runs[0]["dtype"],
            commands="\n".join(commands(runs, list(result["bits_per_byte"]))),
            columns=" | ".join(f"run {number}" for number in numbers),
            rule="---|" * len(runs),
            settings="\n".join(setting_rows(runs)),
            final=preset.optimizer.final_lr_ratio,
            seed=preset.seed,
            files=corpus["train"]["files"],
            megabytes=corpus["train"]["bytes"] / 1e6,
            packages=len(corpus["packages"]),
            sources="\n".join(
                f"| {package['package']} | {package['version']} | {package['licence']} |"
                for package in corpus["packages"]
            ),
        )


def demo_figures(result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Two Markdown tables, line by line: bits per byte by length of training, and the rest.

    Args:
      result: what demo_model.py wrote.
    """
    lengths = ["| bits per byte after | held-out standard library | third party |", "|---|---|---|"]
    for name, bits in result["bits_per_byte"].items():
        cells = [
            f"{bits[which]['bits_per_byte']:.2f} ({_range(bits[which]['interval'], '.2f')})"
            for which in ("held_out", "third_party")
        ]
        lengths.append(f"| {name} | {cells[0]} | {cells[1]} |")
    bodies, truth = result["function_bodies"]["model"], result["function_bodies"]["true_text"]
    infill = result["infill"]
    figures = [
        "| | share | of |",
        "|---|---|---|",
        _share("function bodies that parse", bodies["parses"]),
        _share("the files' own, cut alike", truth["parses"]),
        _share("function bodies that are trivial", bodies["trivial"]),
        _share("function bodies that are empty", bodies["empty"]),
        _share("function bodies that get stuck", bodies["stuck"]),
        _share("one line exactly, infilled (PSM)", infill["psm"]),
        _share("one line exactly, left to right", infill["left_to_right"]),
    ]
    ratio = infill["ratio"]
    if ratio["value"] is not None and None not in ratio["interval"]:
        words = f"{ratio['value']:.1f} x ({_range(ratio['interval'], '.1f')})"
        figures.append(f"| infilled / left to right | {words} | |")
    return lengths, figures


def aims(result: dict[str, Any]) -> Iterator[str]:
    """Rows of a Markdown table: what was aimed at, and whether the figure itself reaches it.

    Args:
      result: what demo_model.py wrote.
    """
    bits = list(result["bits_per_byte"].values())[-1]
    bodies, infill = result["function_bodies"]["model"], result["infill"]
    twice = 2 * infill["left_to_right"]["count"]
    for aim, is_reached in (
        ("1.6 bits per byte or less, held out", bits["held_out"]["bits_per_byte"] <= 1.6),
        ("2.0 bits per byte or less, third party", bits["third_party"]["bits_per_byte"] <= 2.0),
        ("70 % or more of the bodies parse", bodies["parses"]["share"] >= 0.7),
        ("10 % or fewer are trivial", bodies["trivial"]["share"] <= 0.1),
        ("twice as many lines infilled as left to right", infill["psm"]["count"] >= twice > 0),
    ):
        yield f"| {aim} | {'yes' if is_reached else 'no'} |"


def _share(name: str, share: dict[str, Any]) -> str:
    return f"| {name} | {share['share']:.1%} ({_range(share['interval'], '.1%')}) | {share['of']} |"


def _range(interval: list[float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    tyro.cli(DemoCard).run()
