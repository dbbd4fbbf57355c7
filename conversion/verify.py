"""``python -m conversion verify``: the proof that our numbers are PyTorch's, bound by bound."""

import contextlib
import dataclasses
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
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
from .synthetic import synthetic_tensors

LOGITS_BOUND = 1e-5
"""f32 logits: max |ours - PyTorch's| over max(10, max |logit|)."""
KL_BOUND = 1e-9
"""f32: mean KL, nat."""
REFERENCE_BOUND = 1e-10
"""max |NumPy float64 - torch float64| logit."""
RATIO_BOUND = {"float32": 1.5, "bfloat16": 0.8}
"""RMS error of logits against float64, over PyTorch's at the same dtype."""
CACHE_BOUND = 1e-4
"""f32: max |cached - uncached| logit."""


class Bound(NamedTuple):
    """One line of the proof."""

    name: str
    value: float
    limit: float
    pytorch_error: float | None
    """PyTorch's own error against float64 in the same measure, where there is one."""

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


@dataclass
class Report:
    """What a run of verify found; `to_json` is what --json prints."""

    checkpoint: str
    mode: str
    device: str
    positions: int
    prompts: str
    bounds: list[Bound] = field(default_factory=list)
    layers: dict[str, list[parity.LayerRow]] = field(default_factory=dict)
    divergences: list[parity.Divergence] = field(default_factory=list)
    bfloat16_agreement: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return all(bound.holds for bound in self.bounds)

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        fields["bounds"] = [bound._asdict() | {"holds": bound.holds} for bound in self.bounds]
        fields["layers"] = {
            dtype: [row._asdict() for row in rows] for dtype, rows in self.layers.items()
        }
        fields["divergences"] = [
            divergence._asdict() | {"is_tie": divergence.is_tie} for divergence in self.divergences
        ]
        packages = ("jax", "flax", "torch", "transformers", "numpy")
        versions = {name: version(name) for name in packages} | {
            "python": platform.python_version()
        }
        return {"holds": self.holds, "versions": versions} | fields


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
    """A HumanEval JSONL file; by default ../shared/data's, else random ids."""
    torch_device: Annotated[str, tyro.conf.arg(metavar="cpu|cuda")] = "cpu"
    """Where PyTorch runs."""

    def run(self) -> int:
        """Verify and print; returns the exit status."""
        if (self.src is None) != self.synthetic:
            raise ValueError("give SRC, or --synthetic without SRC")
        start = time.perf_counter()
        with self._folder() as folder:
            report = verify(
                folder,
                full=self.full,
                prompts_file=self.prompts,
                torch_device=self.torch_device,
                name="synthetic 164M checkpoint" if self.synthetic else str(self.src),
            )
        report.seconds = round(time.perf_counter() - start, 1)
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


def verify(
    folder: Path,
    *,
    full: bool = False,
    prompts_file: Path | None = None,
    torch_device: str = "cpu",
    name: str = "",
) -> Report:
    """Hold the checkpoint in `folder` against PyTorch and float64.

    Raises:
      CheckpointError, ConfigError: it does not load.
      ValueError: torch or transformers is missing.
    """
    config, params = load_checkpoint(folder, dtype="float32")
    n_prompts, new_tokens = (164, 64) if full else (8, 64)
    room = config.n_positions - new_tokens
    prompts, source = prompt_ids(folder, config, n_prompts, file=prompts_file)
    prompts = [prompt[-room:] for prompt in prompts]
    length = min(2048, config.n_positions)
    documents = np.split(long_document(folder, config, length * 2), 2)
    if not full:  # float64 is what takes the time
        documents = [documents[0][: min(512, length)]]
    device = jax.devices()[0]
    report = Report(
        checkpoint=name or str(folder),
        mode="full" if full else "quick",
        device=f"{device.platform} ({device.device_kind})",
        positions=length * len(documents),
        prompts=source,
    )
    _check_float32(report, folder, config, params, documents, prompts, new_tokens, torch_device)
    _check_bfloat16(report, folder, config, params, documents, prompts[:4], torch_device)
    return report


def _check_float32(
    report: Report,
    folder: Path,
    config: ModelConfig,
    params: dict,
    documents: list[np.ndarray],
    prompts: list[list[int]],
    new_tokens: int,
    torch_device: str,
) -> None:
    model = GPTBigCode(config)
    tensors = params_to_hf(params, config)

    _say("float64 reference, and torch float64 against it")
    truths = [reference.forward(tensors, config, document) for document in documents]
    torch64 = pytorch.load(folder, "float64")
    start = min(512, len(documents[0]))
    exact = pytorch.forward(torch64, documents[0][:start]).logits
    difference = float(np.abs(exact - truths[0].logits[:start]).max())
    report.bounds.append(
        Bound(
            f"NumPy reference = torch float64 ({start} tokens)", difference, REFERENCE_BOUND, None
        )
    )
    del torch64

    _say("float32 logits")
    torch32 = pytorch.load(folder, "float32", torch_device)
    longest = long_document(folder, config, min(2048, config.n_positions))
    for length in (1, 17, 512, 2048):
        if length <= len(longest):
            truth = truths[0].logits[:length] if length <= len(documents[0]) else None
            report.bounds += _logits_bounds(longest[:length], truth, model, params, torch32)
    ours = [parity.forward(model, params, document) for document in documents]
    theirs = [pytorch.forward(torch32, document) for document in documents]
    _add_ratio(report, "float32", truths, ours, theirs)
    table = report.layers["float32"]
    faulty = parity.first_faulty(table)
    report.bounds.append(
        Bound(f"float32 layers out of line{f': {faulty}' if faulty else ''}", bool(faulty), 0, None)
    )

    _say("key/value cache")
    sizes = (1, 7, 64)
    error = parity.cache_error(model, params, documents[0][:128], sizes)
    report.bounds.append(
        Bound(f"KV cache = full forward, pieces of {sizes}", error, CACHE_BOUND, None)
    )

    _say(f"greedy decoding of {len(prompts)} prompts")
    report.divergences = _divergences(model, params, tensors, torch32, prompts, new_tokens)
    unexplained = sum(not divergence.is_tie for divergence in report.divergences)
    report.bounds.append(
        Bound(
            f"greedy: unexplained divergences ({len(prompts)} x {new_tokens})", unexplained, 0, None
        )
    )


def _logits_bounds(
    tokens: np.ndarray, truth: np.ndarray | None, model: GPTBigCode, params: dict, torch32: Any
) -> list[Bound]:
    ours = parity.forward(model, params, tokens).logits
    theirs = pytorch.forward(torch32, tokens).logits
    limit = LOGITS_BOUND * max(10.0, float(np.abs(theirs).max()))
    difference = float(np.abs(ours - theirs).max())
    own_error = None if truth is None else float(np.abs(theirs - truth).max())
    own_kl = None if truth is None else parity.mean_kl(truth, theirs)
    return [
        Bound(f"float32 logits, {len(tokens)} tokens: max |diff|", difference, limit, own_error),
        Bound(
            f"float32 logits, {len(tokens)} tokens: mean KL",
            parity.mean_kl(theirs, ours),
            KL_BOUND,
            own_kl,
        ),
    ]


def _add_ratio(
    report: Report,
    dtype: str,
    truths: list[reference.Forward],
    ours: list[parity.Layered],
    theirs: list[pytorch.TorchForward],
) -> None:
    """The per-layer table of the first document, and the ratio of RMS errors over all."""
    report.layers[dtype] = parity.layer_table(
        truths[0].residuals, ours[0].residuals, theirs[0].residuals
    )

    def error(results: list[Any]) -> float:
        squares = [
            parity.rms(result.logits - truth.logits) ** 2
            for result, truth in zip(results, truths, strict=True)
        ]
        return float(np.sqrt(np.mean(squares)))

    own_error = error(theirs)
    ratio = error(ours) / own_error
    positions = sum(len(truth.logits) for truth in truths)
    name = f"{dtype} RMS error / PyTorch's ({positions} positions)"
    report.bounds.append(Bound(name, ratio, RATIO_BOUND[dtype], own_error))


def _divergences(
    model: GPTBigCode,
    params: dict,
    tensors: dict[str, np.ndarray],
    torch32: Any,
    prompts: list[list[int]],
    new_tokens: int,
) -> list[parity.Divergence]:
    found = []
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(prompts), 8):
        group = by_length[start : start + 8]
        continuations = parity.greedy(model, params, [prompts[i] for i in group], new_tokens)
        for index, ours in zip(group, continuations, strict=True):
            divergence = parity.explain_divergence(
                index,
                prompts[index],
                ours,
                pytorch.greedy(torch32, prompts[index], new_tokens),
                truth=lambda ids: reference.forward(tensors, model.config, ids).logits[-1],
                float32_logits=[
                    lambda ids: parity.forward(model, params, ids).logits[-1],
                    lambda ids: pytorch.forward(torch32, ids).logits[-1],
                ],
            )
            if divergence is not None:
                found.append(divergence)
    return found


def _check_bfloat16(
    report: Report,
    folder: Path,
    config: ModelConfig,
    params: dict,
    documents: list[np.ndarray],
    prompts: list[list[int]],
    torch_device: str,
) -> None:
    """Both sides compute on the same weights, rounded to bfloat16, and so does the truth."""
    _say("bfloat16")
    model = GPTBigCode(config, dtype=jnp.dtype(jnp.bfloat16), param_dtype=jnp.dtype(jnp.bfloat16))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    tensors = params_to_hf(rounded, config)
    torch16 = pytorch.load(folder, "bfloat16", torch_device)
    truths = [reference.forward(tensors, config, document) for document in documents]
    ours = [parity.forward(model, rounded, document) for document in documents]
    theirs = [pytorch.forward(torch16, document) for document in documents]
    _add_ratio(report, "bfloat16", truths, ours, theirs)

    def agreement(a: list[Any], b: list[Any]) -> float:
        pairs = zip(a, b, strict=True)
        return float(
            np.mean([(x.logits.argmax(-1) == y.logits.argmax(-1)).mean() for x, y in pairs])
        )

    new_tokens = 32
    continued = parity.greedy(model, rounded, prompts, new_tokens)
    equal = [
        next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), new_tokens)
        for a, b in zip(
            continued, (pytorch.greedy(torch16, p, new_tokens) for p in prompts), strict=True
        )
    ]
    report.bfloat16_agreement = {
        "argmax, ours = PyTorch's": agreement(ours, theirs),
        "argmax, ours = float64's": agreement(ours, truths),
        "argmax, PyTorch's = float64's": agreement(theirs, truths),
        f"greedy: mean equal tokens of {new_tokens}, {len(prompts)} prompts": float(np.mean(equal)),
    }


def format_report(report: Report) -> str:
    """The report as text: the per-layer table, divergences, and a line for each bound."""
    lines = [f"{report.checkpoint}: {report.mode}, {report.device}, prompts: {report.prompts}", ""]
    lines.append("RMS error of the residual stream against float64, relative to the stream")
    lines.append(f"{'':12}" + "".join(f"{f'{d} ours':>17}{'PyTorch':>12}" for d in report.layers))
    for rows in zip(*report.layers.values(), strict=True):
        cells = "".join(f"{row.ours:17.2e}{row.pytorch:12.2e}" for row in rows)
        lines.append(f"{rows[0].name:12}{cells}")
    lines.append("")
    for d in report.divergences:
        verdict = "a tie in float64" if d.is_tie else "NOT EXPLAINED"
        lines.append(
            f"prompt {d.prompt}, token {d.position}: {d.ours} against {d.pytorch}, float64 gap "
            f"{d.gap:.1e}, float32 error {d.error:.1e}: {verdict}"
        )
    lines += [f"bfloat16 {name}: {value:.3f}" for name, value in report.bfloat16_agreement.items()]
    lines.append("")
    width = max(len(bound.name) for bound in report.bounds)
    for bound in report.bounds:
        own = "" if bound.pytorch_error is None else f"  (PyTorch {bound.pytorch_error:.1e})"
        mark = "ok  " if bound.holds else "FAIL"
        lines.append(f"{mark} {bound.name:<{width}}  {bound.value:9.2e} <= {bound.limit:8.1e}{own}")
    verdict = "all bounds hold" if report.holds else "NOT PROVEN: a bound does not hold"
    lines.append(f"{verdict}; {report.seconds} s")
    return "\n".join(lines)


def _say(what: str) -> None:
    print(f"verify: {what} ...", file=sys.stderr)
