"""``python -m conversion verify``: the proof that our numbers are PyTorch's, bound by bound."""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxcoder import reference
from jaxcoder.checkpoint import load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_to_hf
from jaxcoder.hub import resolve
from jaxcoder.model import GPTBigCode

from . import parity, pytorch
from .prompts import long_document, prompt_ids
from .report import Bound, Report, format_report
from .synthetic import synthetic_tensors

LOGITS_BOUND = 1e-5
"""f32 logits: max |ours - PyTorch's| over max(10, max |logit|)."""
KL_BOUND = 1e-9
"""f32: mean KL, nat."""
REFERENCE_BOUND = 1e-10
"""max |NumPy float64 - torch float64| logit."""
RATIO_BOUND = {"float32": 1.5, "bfloat16": 0.8}
"""RMS error of logits against float64, over PyTorch's at the same dtype.

In float32 times `_product_ratio`: on a processor with AVX2 alone XLA's products have more rounding
error than PyTorch's (docs/decisions/0014).
"""
FAULT_FACTOR = {"float32": 10.0, "bfloat16": 2.0}
"""A layer whose error exceeds this many times PyTorch's is out of line."""
CACHE_BOUND = 1e-4
"""f32: max |cached - uncached| logit."""

QUICK_POSITIONS, FULL_POSITIONS = 512, 2 * 2048
QUICK_PROMPTS, FULL_PROMPTS, NEW_TOKENS = 8, 164, 64


@dataclass(frozen=True)
class Verify:
    """Prove a checkpoint's numbers against PyTorch; exit status 0 only when all bounds hold."""

    src: tyro.conf.Positional[str | None] = None
    """A local folder or a Hub id."""
    synthetic: bool = False
    """Instead of SRC: a made checkpoint of the published 164M shape, written by transformers."""
    full: bool = False
    """All 164 prompts and at least 4,096 positions; about a quarter of an hour on two cores."""
    json: bool = False
    """Print one JSON object instead of the table."""
    prompts: Path | None = None
    """A HumanEval JSONL file; without one beside the checkout, random ids take its place."""
    torch_device: Annotated[str, tyro.conf.arg(metavar="cpu|cuda")] = "cpu"
    """Where PyTorch runs."""

    def run(self) -> int:
        """Verify and print; returns the exit status.

        Raises:
          ValueError: neither SRC nor --synthetic, or both; else from `verify`.
        """
        if (self.src is None) != self.synthetic:
            raise ValueError("give SRC, or --synthetic without SRC")
        pytorch.require()  # before a download or a checkpoint is made
        with self._folder() as folder:
            report = verify(
                folder,
                full=self.full,
                prompts_file=self.prompts,
                torch_device=self.torch_device,
                name="synthetic 164M checkpoint" if self.synthetic else str(self.src),
            )
        print(json.dumps(report.to_json(), indent=1) if self.json else format_report(report))
        return 0 if report.holds else 1

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.src is not None:
            yield resolve(self.src)
            return
        with tempfile.TemporaryDirectory() as parent:
            _say("making a checkpoint of the 164M shape")
            folder = Path(parent) / "synthetic"
            config = ModelConfig.tiny_starcoder()
            pytorch.write_checkpoint(folder, config, synthetic_tensors(config))
            yield folder


class Work(NamedTuple):
    """What one run of verify computes on."""

    folder: Path
    """The checkpoint."""
    config: ModelConfig
    params: dict
    """float32"""
    documents: list[np.ndarray]
    """int [T] each: positions that are compared with float64."""
    longest: np.ndarray
    """int [T], up to 2,048: positions that are compared with PyTorch."""
    prompts: list[list[int]]
    """Ids that are continued greedily."""
    new_tokens: int
    """So many each."""
    torch_device: str
    """Where PyTorch runs."""


def verify(
    folder: Path,
    *,
    full: bool = False,
    prompts_file: Path | None = None,
    torch_device: str = "cpu",
    name: str = "",
) -> Report:
    """Hold the checkpoint in `folder` against PyTorch and float64.

    Args:
      folder: what `load_checkpoint` and transformers both read.
      full: all prompts and positions, see `Verify`.
      prompts_file: a HumanEval JSONL file; None as for `Verify`.
      torch_device: "cpu" or "cuda".
      name: of the checkpoint, in the report.

    Raises:
      CheckpointError, ConfigError: it does not load.
      ValueError: torch or transformers is missing, or a prompts file that cannot be used.
    """
    start = time.perf_counter()
    config, params = load_checkpoint(folder, dtype="float32")
    count = FULL_PROMPTS if full else QUICK_PROMPTS
    prompts, source = prompt_ids(folder, config, count, file=prompts_file)
    new_tokens = min(NEW_TOKENS, config.n_positions // 2)
    longest = min(2048, config.n_positions)
    text = long_document(folder, config, 2 * longest, file=prompts_file)
    work = Work(
        folder=folder,
        config=config,
        params=params,
        # In the quick form fewer positions: float64 is what takes the time.
        documents=np.split(text, 2) if full else [text[: min(QUICK_POSITIONS, longest)]],
        longest=text[:longest],
        prompts=[prompt[new_tokens - config.n_positions :] for prompt in prompts],
        new_tokens=new_tokens,
        torch_device=torch_device,
    )
    bounds32, layers32, divergences = _check_float32(work)
    bounds16, layers16, agreement = _check_bfloat16(work)
    device = jax.devices()[0]
    return Report(
        checkpoint=name or str(folder),
        mode="full" if full else "quick",
        device=f"{device.platform} ({device.device_kind})",
        positions=sum(len(document) for document in work.documents),
        prompts=source,
        bounds=bounds32 + bounds16,
        layers={"float32": layers32, "bfloat16": layers16},
        divergences=divergences,
        bfloat16_agreement=agreement,
        seconds=round(time.perf_counter() - start, 1),
    )


def _check_float32(
    work: Work,
) -> tuple[list[Bound], list[parity.LayerRow], list[parity.Divergence]]:
    model, params = GPTBigCode(work.config), work.params
    tensors = params_to_hf(params, work.config)

    _say("float64 reference, and torch float64 against it")
    truths = [reference.forward(tensors, work.config, document) for document in work.documents]
    start = work.documents[0][:512]
    exact = pytorch.forward(pytorch.load(work.folder, "float64"), start).logits
    difference = float(np.abs(exact - truths[0].logits[: len(start)]).max())
    name = f"NumPy reference = torch float64 ({len(start)} tokens)"
    bounds = [Bound(name, difference, REFERENCE_BOUND, None)]

    _say("float32 logits")
    torch32 = pytorch.load(work.folder, "float32", work.torch_device)
    for length in sorted({1, 17, 512, 2048, len(work.longest)}):
        if length <= len(work.longest):
            truth = truths[0].logits[:length] if length <= len(work.documents[0]) else None
            bounds += _logits_bounds(work.longest[:length], truth, model, params, torch32)
    ours = [parity.forward(model, params, document) for document in work.documents]
    theirs = [pytorch.forward(torch32, document) for document in work.documents]
    most = RATIO_BOUND["float32"] * _product_ratio(work.config.n_embd, work.torch_device)
    ratio_bounds, layers = _ratio_bounds("float32", truths, ours, theirs, most=most)
    del truths, ours, theirs

    _say("key/value cache")
    sizes = (1, 7, 64)
    error = parity.cache_error(model, params, work.documents[0][:128], sizes)
    cache_bound = Bound(f"KV cache = full forward, pieces of {sizes}", error, CACHE_BOUND, None)

    _say(f"greedy decoding of {len(work.prompts)} prompts")
    divergences = _divergences(work, model, tensors, torch32)
    unexplained = sum(not divergence.is_tie for divergence in divergences)
    name = f"greedy: unexplained divergences ({len(work.prompts)} x {work.new_tokens})"
    bounds += [*ratio_bounds, cache_bound, Bound(name, unexplained, 0, None)]
    return bounds, layers, divergences


def _product_ratio(width: int, torch_device: str) -> float:
    """The error of our float32 products over PyTorch's, 1 at least; sums of `width` numbers."""
    ours = parity.product_error(parity.multiply, width)
    theirs = parity.product_error(lambda a, b: pytorch.multiply(a, b, torch_device), width)
    _say(f"float32 matrix products here: RMS error {ours / theirs:.2f} times PyTorch's")
    return max(1.0, ours / theirs)


def _logits_bounds(
    tokens: np.ndarray, truth: np.ndarray | None, model: GPTBigCode, params: dict, torch32: Any
) -> list[Bound]:
    ours = parity.forward(model, params, tokens).logits
    theirs = pytorch.forward(torch32, tokens).logits
    limit = LOGITS_BOUND * max(10.0, float(np.abs(theirs).max()))
    difference = float(np.abs(ours - theirs).max())
    own_error = None if truth is None else float(np.abs(theirs - truth).max())
    own_kl = None if truth is None else parity.mean_kl(truth, theirs)
    name = f"float32 logits, {len(tokens)} tokens"
    return [
        Bound(f"{name}: max |diff|", difference, limit, own_error),
        Bound(f"{name}: mean KL", parity.mean_kl(theirs, ours), KL_BOUND, own_kl),
    ]


def _ratio_bounds(
    dtype: str,
    truths: list[reference.Forward],
    ours: list[parity.Layered],
    theirs: list[pytorch.TorchForward],
    *,
    most: float,
) -> tuple[list[Bound], list[parity.LayerRow]]:
    """The ratio of RMS errors over all documents, `most` at most, and the layers of the first."""

    def error(results: list[Any]) -> float:
        squares = [
            parity.rms(result.logits - truth.logits) ** 2
            for result, truth in zip(results, truths, strict=True)
        ]
        return float(np.sqrt(np.mean(squares)))

    own_error = error(theirs)
    positions = sum(len(truth.logits) for truth in truths)
    name = f"{dtype} RMS error / PyTorch's ({positions} positions)"
    layers = parity.layer_table(truths[0].residuals, ours[0].residuals, theirs[0].residuals)
    faulty = parity.first_faulty(layers, factor=FAULT_FACTOR[dtype])
    found = f", first: {faulty}" if faulty else ""
    return [
        Bound(name, error(ours) / own_error, most, own_error),
        Bound(f"{dtype} layers out of line{found}", float(faulty is not None), 0, None),
    ], layers


def _divergences(
    work: Work, model: GPTBigCode, tensors: dict[str, np.ndarray], torch32: Any
) -> list[parity.Divergence]:
    """Where greedy texts part, prompts in groups of 8 of similar length."""
    found = []
    by_length = sorted(range(len(work.prompts)), key=lambda index: len(work.prompts[index]))
    for start in range(0, len(by_length), 8):
        group = by_length[start : start + 8]
        prompts = [work.prompts[index] for index in group]
        continuations = parity.greedy(model, work.params, prompts, work.new_tokens)
        for index, prompt, ours in zip(group, prompts, continuations, strict=True):
            divergence = parity.explain_divergence(
                index,
                prompt,
                ours,
                pytorch.greedy(torch32, prompt, work.new_tokens),
                truth=lambda ids: reference.forward(tensors, work.config, ids).logits[-1],
                float32_logits=[
                    lambda ids: parity.forward(model, work.params, ids).logits[-1],
                    lambda ids: pytorch.forward(torch32, ids).logits[-1],
                ],
            )
            if divergence is not None:
                found.append(divergence)
    return found


def _check_bfloat16(work: Work) -> tuple[list[Bound], list[parity.LayerRow], dict[str, float]]:
    """Both sides compute on the same weights, rounded to bfloat16, and so does the truth."""
    _say("bfloat16")
    kind = jnp.dtype(jnp.bfloat16)
    model = GPTBigCode(work.config, dtype=kind, param_dtype=kind)
    params = jax.tree.map(lambda leaf: leaf.astype(kind), work.params)
    tensors = params_to_hf(params, work.config)
    torch16 = pytorch.load(work.folder, "bfloat16", work.torch_device)
    truths = [reference.forward(tensors, work.config, document) for document in work.documents]
    ours = [parity.forward(model, params, document) for document in work.documents]
    theirs = [pytorch.forward(torch16, document) for document in work.documents]
    most = RATIO_BOUND["bfloat16"]
    bounds, layers = _ratio_bounds("bfloat16", truths, ours, theirs, most=most)

    def agreement(a: list[Any], b: list[Any]) -> float:
        equal = [x.logits.argmax(-1) == y.logits.argmax(-1) for x, y in zip(a, b, strict=True)]
        return float(np.mean(np.concatenate(equal)))

    prompts, new_tokens = work.prompts[:4], min(32, work.new_tokens)
    continued = parity.greedy(model, params, prompts, new_tokens)
    equal_tokens = [
        parity.equal_prefix(ours_of_prompt, pytorch.greedy(torch16, prompt, new_tokens))
        for prompt, ours_of_prompt in zip(prompts, continued, strict=True)
    ]
    return (
        bounds,
        layers,
        {
            "argmax, ours = PyTorch's": agreement(ours, theirs),
            "argmax, ours = float64's": agreement(ours, truths),
            "argmax, PyTorch's = float64's": agreement(theirs, truths),
            f"greedy: mean equal tokens of {new_tokens}, {len(prompts)} prompts": float(
                np.mean(equal_tokens)
            ),
        },
    )


def _say(what: str) -> None:
    print(f"verify: {what} ...", file=sys.stderr)
