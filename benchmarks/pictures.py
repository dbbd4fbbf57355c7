"""The pictures of the documentation, from committed measurements and the demo model.

``python -m benchmarks.pictures`` writes docs/pictures/*.svg. The same data and matplotlib give the
same bytes. The functions that draw take figures or axes, and serve notebooks too.
"""

import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from conversion.parity import LayerRow
from jaxcoder import Generator, inspect
from jaxcoder.durable import replace_file
from train.plot import add_grid, draw_bits_per_byte, draw_losses

from .demo_curve import CURVE
from .harness import RESULTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"

_VERIFIED = Path(__file__).parents[1] / "docs" / "verify-synthetic.json"

TEXT = """def total(prices):
    result = 0
    for price in prices:
        result += price
    return result
"""
LAYER = 3

# Text stays text, so that it can be searched for; ids do not depend on the run.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxcoder",
    "font.size": 9.0,
    "font.sans-serif": ["DejaVu Sans"],
    "font.monospace": ["DejaVu Sans Mono"],
}


@dataclass(frozen=True)
class Pictures:
    """Draw the pictures of the documentation."""

    out: Path = PICTURES
    """The folder to write into; it is made where it lacks."""

    def run(self) -> None:
        """Write the pictures.

        Raises:
          ValueError: matplotlib is not installed.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        for name, draw in ALL.items():
            replace_file(self.out / f"{name}.svg", picture(draw))
            print(self.out / f"{name}.svg")


def picture(draw: "Callable[[Figure], None]") -> bytes:
    """An SVG of what `draw` puts on an empty figure.

    Raises:
      ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ValueError(
            "pictures: matplotlib is not installed; pip install '.[train]' has it"
        ) from exc
    written = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # what the reader has set does not count
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(layout="constrained")
        draw(figure)
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def training_curve(figure: "Figure", curve: Mapping[str, Any]) -> None:
    """Draw runs one after the other: losses on the left, bits per byte on the right.

    Args:
      figure: an empty one.
      curve: what `demo_curve` writes.
    """
    runs = curve["runs"]
    starts = list(itertools.accumulate((run["steps"] for run in runs), initial=0))
    lines = [
        line | {"step": line["step"] + start}
        for run, start in zip(runs, starts, strict=False)
        for line in run["lines"]
    ]
    left, right = figure.subplots(1, 2)
    draw_losses(left, lines)
    draw_bits_per_byte(right, lines)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        for border in starts[1:-1]:
            axes.axvline(border, color="gray", linestyle="--", linewidth=0.8)
    for number, (start, stop) in enumerate(itertools.pairwise(starts), start=1):
        left.annotate(f"run {number}", ((start + stop) / 2, 5.5), ha="center")
    figure.suptitle("Training of the demo model")
    counts = [f"{run['steps']:,}" for run in runs]
    add_caption(
        figure,
        f"{', '.join(counts[:-1])} and {counts[-1]} steps of at most "
        f"{runs[0]['tokens_per_step_at_most']:,} tokens, products in {runs[0]['dtype']}; "
        f"validation on plain text of held-out files; jax {runs[0]['jax']}",
    )


def attention_map(
    figure: "Figure", pattern: np.ndarray, tokens: Sequence[str], *, title: str
) -> None:
    """Draw the attention weights of every head of a layer, two heads a line.

    Args:
      figure: an empty one.
      pattern: float32 [N, T, T]: of each head, by query and key.
      tokens: T texts.
      title: of the whole.

    Raises:
      ValueError: a pattern that is not [N, T, T] for T tokens.
    """
    if pattern.ndim != 3 or pattern.shape[1:] != (len(tokens), len(tokens)):
        raise ValueError(
            f"pattern is {list(pattern.shape)}, expected [heads, T, T] for T = {len(tokens)} "
            "tokens; take one row of the batch"
        )
    lines = -(-len(pattern) // 2)
    panels = figure.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
    labels = [token.replace("\n", r"\n").replace(" ", "·") for token in tokens]
    places = range(len(labels))
    for axes in panels.flat[len(pattern) :]:
        axes.set_axis_off()
    for head, (axes, weights) in enumerate(zip(panels.flat, pattern, strict=False)):
        image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"head {head}")
        axes.set_xticks(places, labels, rotation=90, fontsize=7, family="monospace")
        axes.set_yticks(places, labels, fontsize=7, family="monospace")
    figure.supxlabel("token that is read")
    figure.supylabel("token that reads")
    figure.colorbar(image, ax=panels, shrink=0.5, label="attention weight, a row sums to 1")
    figure.suptitle(title)


def layer_errors(
    axes: "Axes", table: Sequence[LayerRow], *, title: str, with_pytorch: bool = True
) -> None:
    """Draw the error of the residual stream after each layer.

    Args:
      axes: matplotlib's, to draw on.
      table: by `conversion.parity.layer_table`, relative to the stream's own RMS.
      title: of this part.
      with_pytorch: draw PyTorch's error too.
    """
    places = range(len(table))
    axes.plot(places, [row.ours for row in table], ".-", linewidth=1, label="jaxcoder")
    if with_pytorch:
        axes.plot(places, [row.pytorch for row in table], ".-", linewidth=1, label="PyTorch")
    axes.set_xticks(places, [row.name for row in table], rotation=90)
    axes.set(title=title, xlabel="layer", ylabel="RMS error against float64, relative")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    axes.set_ylim(bottom=0)
    axes.legend()
    add_grid(axes)


def decode_cost(axes: "Axes", result: Mapping[str, Any]) -> None:
    """Draw milliseconds per decoded token against the context in use.

    Args:
      axes: matplotlib's, to draw on.
      result: what `context` measured.
    """
    costs = result["milliseconds_per_token_by_context"]
    contexts = [int(context) for context in costs]
    medians = np.array([cost["median"] for cost in costs.values()])
    lowest, highest = (np.array([cost[end] for cost in costs.values()]) for end in ("min", "max"))
    axes.errorbar(contexts, medians, [medians - lowest, highest - medians], marker="o", capsize=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.set(
        title="Cost of a decoded token",
        xlabel="context in use, tokens",
        ylabel="milliseconds per token",
    )
    axes.set_ylim(bottom=0)
    add_grid(axes)


def add_caption(figure: "Figure", text: str) -> None:
    """Write `text`, what was measured where, in small letters below all else in `figure`."""
    figure.supxlabel(text, fontsize=7, color="dimgray")


def _training_curve(figure: "Figure") -> None:
    figure.set_size_inches(9, 3.6)
    training_curve(figure, _read(CURVE))


def _attention_map(figure: "Figure") -> None:
    figure.set_size_inches(8.6, 8.6)
    pattern, tokens = demo_attention()
    attention_map(figure, pattern, tokens, title=f"Attention of the demo model, block {LAYER}")
    figure.text(0.995, 0.005, "float32; · is a blank", ha="right", fontsize=7, color="dimgray")


def _layer_error(figure: "Figure") -> None:
    figure.set_size_inches(9, 4.2)
    verified = _read(_VERIFIED)
    panels = figure.subplots(1, len(verified["layers"]))
    for axes, (dtype, rows) in zip(panels, verified["layers"].items(), strict=True):
        layer_errors(axes, [LayerRow(**row) for row in rows], title=dtype)
    figure.suptitle("Rounding error by layer")
    libraries = ("jax", "torch", "transformers")
    versions = ", ".join(f"{name} {verified['versions'][name]}" for name in libraries)
    add_caption(
        figure,
        f"{verified['checkpoint']}, {verified['positions']:,} positions, "
        f"{verified['device']}; {versions}",
    )


def _decode_cost(figure: "Figure") -> None:
    figure.set_size_inches(5.2, 3.6)
    result = _read(RESULTS / "context-float32.json")
    decode_cost(figure.subplots(), result)
    machine = result["environment"]
    add_caption(
        figure,
        "164M shape, float32, 1 prompt; median, bars to the least and the greatest\n"
        f"{machine['processor']}, {machine['cores']} cores; jax {machine['versions']['jax']}, "
        f"{machine['date']}",
    )


ALL: "dict[str, Callable[[Figure], None]]" = {
    "training-curve": _training_curve,
    "attention-map": _attention_map,
    "layer-error": _layer_error,
    "decode-cost": _decode_cost,
}
"""The pictures by name, each drawn on an empty figure."""


def demo_attention() -> tuple[np.ndarray, list[str]]:
    """Attention weights float32 [N, T, T] of the demo model in `LAYER` for `TEXT`, and T tokens."""
    generator = Generator.from_pretrained(dtype="float32")
    tokenizer = generator.tokenizer
    tokens = tokenizer.encode(TEXT)
    name = f"h.{LAYER}.attn.pattern"
    run = inspect.run(generator, [tokens], capture=[name])
    pattern = np.asarray(run.activations[name][0])
    return pattern, [tokenizer.decode([token]) for token in tokens]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    tyro.cli(Pictures).run()
