"""``python -m train plot RUN``: the curves of metrics.jsonl as a picture, by matplotlib."""

import io
from pathlib import Path

from jaxcoder.durable import replace_file

from .metrics import read_json_lines
from .run_folder import METRICS_FILE

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
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        points = _points(lines, name)
        left.plot(*points, label=label, linewidth=1)
    left.set(xlabel="step", ylabel="loss, nats per token")
    left.legend()
    right.plot(*_points(lines, "bits_per_byte"), marker=".", color="tab:green")
    right.set(xlabel="step", ylabel="bits per byte, held out")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=destination.suffix.removeprefix("."))
    finally:
        pyplot.close(figure)
    replace_file(destination, picture.getvalue())
    return destination


def _points(lines: list[dict], name: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
