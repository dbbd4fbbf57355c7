"""The card of the demo model, README.md beside its weights, from what was measured.

``python -m benchmarks.demo_card --run-folder RUN --model EXPORT --out jaxcoder/demo``

Copies the export and writes the card with the figures of ``results/demo_model.json``, the run's
curve and settings, and the sources in ``docs/demo-corpus.json``.
"""

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import tensor_shapes
from jaxcoder.json_file import json_bytes
from jaxcoder.manifest import MANIFEST_FILE
from train.pieces import RESERVE
from train.plot import plot_run

from . import demo_functions, demo_infill
from .harness import RESULTS

_CORPUS = Path(__file__).parents[1] / "docs" / "demo-corpus.json"
CURVE = "curve.svg"

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

Held out whole are these of the standard library's packages and modules: {held_out}; and the
third-party package {third_party}. Training files that share too much with them were removed:
{removed}. Of the held-out files' 10-token runs, {shared:.1%} occur in training files too.

- **Bits per byte**: every file by itself, windows of {window} tokens that overlap by half.
- **Function bodies**: {functions} headers with docstring from the held-out standard library, with
  the file before them, temperature {temperature}, {new_tokens} new tokens at most, cut at the first
  dedent; where the tokens run out, the last line is dropped. The files' own bodies, cut alike, are
  the ceiling: a body longer than that often does not parse either. *Trivial* is a body of nothing
  but `pass`, `...` or a repeated line, or one with the same line three times in a row.
- **One line**: {lines} lines of 6 characters or more, greedy, {line_tokens} new tokens at most.
  Infilling sees the text after the line; left to right is the same model without it. An
  infilled share that is no higher says that the model has not learned to use it.

The context is {n_positions} tokens. Its last {reserve} positions saw nothing but the ends of
infilled middles in training: near the window's end the model writes the end of text.

## Training

![training and validation loss]({curve})

{steps:,} steps of {tokens:,} tokens at most, {total:.0f} million in all, of {available:.0f}
million in the corpus, on two CPU cores, products in {dtype}. The commands:

```sh
python -m train.demo_corpus --wheels WHEELS --out CORPUS
python -m train stdlib --data CORPUS/train --out runs/demo
python -m train export runs/demo 2000-steps --step 2000 --dtype bfloat16
python -m train export runs/demo 4000-steps --step 4000 --dtype bfloat16
python -m train export runs/demo 8500-steps --dtype bfloat16
python -m benchmarks.demo_model --model 8500-steps --earlier 2000-steps 4000-steps \\
  --held-out CORPUS/heldout_stdlib --third-party CORPUS/heldout_thirdparty
python -m benchmarks.demo_card --run-folder runs/demo --model 8500-steps --out jaxcoder/demo
```

Share of the pieces that are permuted: {fim_rate}; of those suffix first: {fim_spm_rate}; with one
whole line for a middle, which is not BigCode's way: {fim_line_rate}. AdamW, peak learning rate
{peak_lr}, warm-up {warmup} steps, cosine to {final:.0%} of it; seed {seed}.

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
    """Put the export of a finished run, and its card, into a new folder."""

    run_folder: Path
    """The training run."""
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
        plot_run(self.run_folder, self.out / CURVE)
        card = self._card()
        (self.out / "README.md").write_text(card, encoding="utf-8")
        manifest = _read(self.out / MANIFEST_FILE)
        for name in ("README.md", CURVE):
            digest = hashlib.sha256((self.out / name).read_bytes()).hexdigest()
            manifest["files"][name] = digest
        (self.out / MANIFEST_FILE).write_bytes(json_bytes(manifest))

    def _card(self) -> str:
        result, corpus = _read(RESULTS / "demo_model.json"), _read(_CORPUS)
        settings = _read(self.run_folder / "config.json")["config"]
        model = ModelConfig.from_file(self.model / "config.json")
        step_tokens = settings["batch"]["size"] * settings["batch"]["seq_len"]
        steps = settings["loop"]["steps"]
        removed = [item["file"].partition("/")[2] for item in corpus["near_duplicates_removed"]]
        lengths, figures = demo_figures(result)
        return _TEXT.format(
            parameters=sum(map(math.prod, tensor_shapes(model).values())),
            n_layer=model.n_layer,
            n_embd=model.n_embd,
            n_head=model.n_head,
            n_positions=model.n_positions,
            vocab_size=model.vocab_size,
            lengths="\n".join(lengths),
            figures="\n".join(figures),
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
            curve=CURVE,
            steps=steps,
            tokens=step_tokens,
            total=steps * step_tokens / 1e6,
            available=_read(self.run_folder / "data.json")["tokens"] / 1e6,
            dtype=settings["compute"]["dtype"],
            peak_lr=settings["optimizer"]["peak_lr"],
            warmup=settings["optimizer"]["warmup_steps"],
            final=settings["optimizer"]["final_lr_ratio"],
            seed=settings["seed"],
            **{f"fim_{name}": settings["fim"][name] for name in ("rate", "spm_rate", "line_rate")},
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
        _share("one line exactly, infilled (PSM)", infill["psm"]),
        _share("one line exactly, left to right", infill["left_to_right"]),
    ]
    ratio = infill["ratio"]
    if ratio["value"] is not None and None not in ratio["interval"]:
        words = f"{ratio['value']:.1f} x ({_range(ratio['interval'], '.1f')})"
        figures.append(f"| infilled / left to right | {words} | |")
    return lengths, figures


def _share(name: str, share: dict[str, Any]) -> str:
    return f"| {name} | {share['share']:.1%} ({_range(share['interval'], '.1%')}) | {share['of']} |"


def _range(interval: list[float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    tyro.cli(DemoCard).run()
