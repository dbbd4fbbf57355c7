"""What ``verify`` found, for people and as JSON."""

import dataclasses
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from .parity import Divergence, LayerRow


class Bound(NamedTuple):
    """One line of the proof."""

    name: str
    """What was measured, with its precision."""
    value: float
    """What was found."""
    limit: float
    """The most it may be."""
    pytorch_error: float | None
    """PyTorch's own error against float64 in the same measure, where there is one."""

    @property
    def holds(self) -> bool:
        """Whether the value is within the limit; NaN is not."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Report:
    """What a run of verify found; `to_json` is what --json prints."""

    checkpoint: str
    """Its name."""
    mode: str
    """"quick" or "full"."""
    device: str
    """Where our side ran."""
    positions: int
    """Positions whose logits are held against float64."""
    prompts: str
    """How many prompts, and where they are from."""
    bounds: list[Bound]
    """The proof, line by line."""
    layers: dict[str, list[LayerRow]]
    """dtype -> error of each layer."""
    divergences: list[Divergence]
    """Where greedy texts part."""
    bfloat16_agreement: dict[str, float]
    """Shares of positions with the same likeliest token, and lengths of equal text."""
    seconds: float
    """The whole of it took."""

    @property
    def holds(self) -> bool:
        """Whether every bound does."""
        return all(bound.holds for bound in self.bounds)

    def to_json(self) -> dict[str, Any]:
        """All of it, with the verdicts and the versions of the libraries, for ``json.dumps``."""
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
