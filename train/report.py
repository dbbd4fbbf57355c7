"""What a run tells of its steps: metrics, validations, samples, and steps out of the ordinary."""

import collections
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcoder.config import ModelConfig
from jaxcoder.diagnostics import say

from .config import TrainConfig
from .data import Batch, Contents
from .evaluation import Sample, Validation
from .metrics import JsonLines, TensorBoard, flops_per_token, peak_flops, progress_bar
from .remarks import LOSSES_KEPT, Remark, remark_on
from .run_folder import METRICS_FILE, SAMPLES_FILE, TENSORBOARD
from .step import Metrics, StepConfig, eval_step
from .stopped import TrainingStopped

_MOST_PIECES = 20


class Report(NamedTuple):
    """What a dispatched step will say once it is computed."""

    step: int
    """Steps done with it."""
    batch: Batch
    contents: Contents
    metrics: Metrics


class Findings(NamedTuple):
    """What a validation found."""

    fields: dict[str, float]
    samples: list[Sample]


class Reporter:
    """Writes of one run, from `after_step` on; a context manager."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        model: ModelConfig,
        validation: Validation,
        *,
        tensors: list[str],
        describe: Callable[[int], str],
        after_step: int,
        totals: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the files; what they say of later steps, which come again, is removed.

        Args:
          run: the run directory.
          config: of the run.
          model: the config of the model.
          validation: what to measure.
          tensors: the names of what is trained, as `step.tensor_names` gives them.
          describe: where in the data a piece is, as `BatchSource.describe` says it.
          after_step: the step the run goes on after; 0: it begins.
          totals: what `totals` gave at that step; None: nothing yet.
        """
        self._loop, self._validation, self._tensors = config.loop, validation, tensors
        self._describe = describe
        # A run that begins has said nothing yet: what is there is of a start that was killed.
        last = after_step or -1
        self._metrics = JsonLines(run / METRICS_FILE, after_step=last)
        self._samples = JsonLines(run / SAMPLES_FILE, after_step=last)
        board = run / TENSORBOARD if config.loop.tensorboard else None
        self._tensorboard = TensorBoard(board, after_step=last)
        self._bar = progress_bar(total=config.loop.steps, initial=after_step)
        self._flops = flops_per_token(model, config.batch.seq_len)
        self._peak = peak_flops(jax.devices()[0].device_kind)
        totals = totals or {}
        self._overflows = totals.get("fim_overflows", 0)
        self._losses = collections.deque[float](totals.get("losses", ()), LOSSES_KEPT)
        # A start's first step is compiled: the clock begins after it.
        self._clock: float | None = None
        self._tokens = 0

    def __enter__(self) -> "Reporter":
        """Nothing to do: the files are opened as they are written."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar and TensorBoard."""
        self._bar.close()
        self._tensorboard.close()

    def step(self, report: Report) -> None:
        """Report a step, once it is computed.

        Raises:
          TrainingStopped: it is one too many in a row that were not finite.
        """
        metrics = jax.device_get(report.metrics)
        self._tokens += int(np.count_nonzero(report.batch.segment_ids[:, 1:]))
        self._overflows += report.contents.overflows
        self._bar.update(report.step - self._bar.n)
        remark = remark_on(metrics, tensors=self._tensors, losses=self._losses)
        if remark:
            self._tell(report, remark)
        self._stop_if_bad(report.step, metrics)
        if metrics.is_finite and metrics.tokens:
            self._losses.append(float(metrics.loss))
        is_due = report.step % self._loop.log_every == 0 or report.step == self._loop.steps
        rates = self._rates() if is_due or self._clock is None else {}
        if not is_due:
            return
        fields = {
            "step": report.step,
            "loss": float(metrics.loss),
            "grad_norm": float(metrics.grad_norm),
            "learning_rate": float(metrics.learning_rate),
            "tokens": float(metrics.tokens),
            "batch": _digest(report.batch),
            "fim_overflows": self._overflows,
            **rates,
        }
        shown = {"loss": f"{fields['loss']:.3f}"}
        if rates:
            shown["tokens/s"] = f"{rates['tokens_per_second']:.0f}"
        if "mfu" in rates:
            shown["MFU"] = f"{rates['mfu']:.1%}"
        self._write(fields)
        self._bar.set_postfix(shown)

    def _rates(self) -> dict[str, float]:
        """Tokens per second since the call before, and the share of the device's peak; or none."""
        now, before = time.perf_counter(), self._clock
        tokens, self._clock, self._tokens = self._tokens, now, 0
        if before is None:
            return {}
        rate = tokens / (now - before)
        share = {"mfu": rate * self._flops / self._peak} if self._peak else {}
        return {"tokens_per_second": rate} | share

    def totals(self) -> dict[str, Any]:
        """Counts since the run began and the last losses, for the checkpoint, as JSON has them.

        A start that goes on is given them, and says what one without an interruption would.
        """
        return {"fim_overflows": self._overflows, "losses": list(self._losses)}

    def lacks_validation(self, step: int) -> bool:
        """Whether the validation of `step` is not in the metrics: a signal came before its end."""
        return all("validation_loss" not in line for line in self._metrics.lines(step))

    def validate(
        self, params: dict, settings: StepConfig, *, check: Callable[[], None]
    ) -> Findings:
        """Measure the model's `params` on held-out documents; nothing is written.

        `check` is called every now and then, and ends it by what it raises.
        """
        began = time.perf_counter()

        def nll_of(batch: Batch) -> tuple[jax.Array, jax.Array]:
            check()
            return eval_step(params, batch, config=settings)

        fields = self._validation.loss(nll_of)
        fields |= self._validation.infill(params, check=check)
        check()
        findings = Findings(fields, self._validation.samples(params))
        if self._clock is not None:
            self._clock += time.perf_counter() - began
        return findings

    def validation(self, step: int, findings: Findings) -> None:
        """Report a validation."""
        if findings.fields:
            self._write({"step": step, **findings.fields})
            shown = ", ".join(f"{name} {value:.4g}" for name, value in findings.fields.items())
            say(f"step {step}: {shown}")
        for sample in findings.samples:
            self._samples.write({"step": step, **sample._asdict()})

    def _tell(self, report: Report, remark: Remark) -> None:
        """Say a remark with the pieces of the batch, and write it down."""
        pieces = [piece for row in report.contents.pieces for piece in row]
        described = [f"{piece} {self._describe(piece)}" for piece in pieces]
        self._write({"step": report.step, **remark.fields, "pieces": described})
        listed = ", ".join(described[:_MOST_PIECES])
        more = f" and {len(pieces) - _MOST_PIECES} more" if len(pieces) > _MOST_PIECES else ""
        say(f"step {report.step}: {remark.text}; pieces {listed}{more}; {remark.outcome}")

    def _stop_if_bad(self, step: int, metrics: Metrics) -> None:
        in_a_row, most = int(metrics.bad_steps), self._loop.max_bad_steps
        if in_a_row < most:
            return
        advice = (
            "so the newest checkpoint has the weights from before them. Look at the pieces named "
            "in metrics.jsonl; where those weights are ruined, start another run with a lower "
            "optimizer.peak_lr"
        )
        if not metrics.moments_are_finite.all():
            advice = (
                "but moments that are not finite stay so. Where the same command stops here again "
                "its newest checkpoint has them, and the weights from before: start another run "
                "with the export of this one as its --model (python -m train export RUN)"
            )
        raise TrainingStopped(
            f"step {step}: {in_a_row} steps in a row were not finite, loop.max_bad_steps allows "
            f"fewer than {most}; none of them changed weights or optimizer, {advice}"
        )

    def _write(self, fields: dict) -> None:
        self._metrics.write(fields)
        self._tensorboard.write(fields)


def _digest(batch: Batch) -> str:
    """16 hexadecimal digits of the SHA-256 of a batch, in which the order of the data shows."""
    arrays = b"".join(np.ascontiguousarray(array).tobytes() for array in batch)
    return hashlib.sha256(arrays).hexdigest()[:16]
