"""``python -m train plot RUN``: the curves of metrics.jsonl as a picture, by matplotlib."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcoder.durable import replace_file

from .metrics import read_json_lines
from .run_folder import METRICS_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "curve.svg"


def plot_run(run: Path, destination: Path | None = None) -> Path:
    """Draw training loss, validation loss and bits per byte against steps.

    Args:
      run: the run directory.
      destination: a .svg, .png or .pdf file; by default curve.svg inside the run.

    Returns:
      The file written.

    Raises:
      ValueError: no metrics there, matplotlib is not installed, or the file cannot be written.
    """
    metrics = run / METRICS_FILE
    if not metrics.exists():
        raise ValueError(f"{metrics}: no such file, expected the metrics of a run; check the path")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as exc:
        raise ValueError(
            "plot: matplotlib is not installed; pip install matplotlib, or read metrics.jsonl"
        ) from exc
    destination = run / PICTURE if destination is None else destination
    if not destination.parent.is_dir():
        raise ValueError(
            f"{destination}: {destination.parent} is no folder, expected one that exists; make it"
        )
    lines = read_json_lines(metrics)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    draw_losses(left, lines)
    draw_bits_per_byte(right, lines)
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=destination.suffix.removeprefix("."))
    finally:
        pyplot.close(figure)
    replace_file(destination, picture.getvalue())
    return destination


def draw_losses(axes: "Axes", lines: Sequence[dict[str, Any]]) -> None:
    """Draw the training and the validation loss against steps.

    Args:
      axes: matplotlib's, to draw on.
      lines: of metrics.jsonl.
    """
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        axes.plot(*_points(lines, name), label=label, linewidth=1)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.legend()
    add_grid(axes)


def draw_bits_per_byte(axes: "Axes", lines: Sequence[dict[str, Any]]) -> None:
    """Draw the bits per byte of held-out text against steps.

    Args:
      axes: matplotlib's, to draw on.
      lines: of metrics.jsonl.
    """
    axes.plot(*_points(lines, "bits_per_byte"), marker=".", color="tab:green")
    axes.set(xlabel="step", ylabel="bits per byte, held out")
    add_grid(axes)


def add_grid(axes: "Axes") -> None:
    """Give `axes` the look of all pictures: a light grid, open at the top and on the right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _points(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
