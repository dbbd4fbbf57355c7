"""The pictures of the documentation are current, and show the committed data."""

import base64
import io
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import pictures
from benchmarks.demo_curve import CURVE, DemoCurve
from benchmarks.demo_runs import commands, setting_rows
from benchmarks.harness import RESULTS
from conversion.parity import LayerRow
from train.presets import stdlib
from train.run_folder import DATA_FILE, METRICS_FILE, config_fields

PROJECT = Path(__file__).resolve().parent.parent
MOST_BYTES = 150_000
# Another processor sums in another order: a colour may be the next one of 256.
NEXT_COLOUR = 2 / 255

LABELS = {
    "training-curve": ["Training of the demo model", "step", "loss, nats per token"],
    "attention-map": ["head 3", "token that reads", "token that is read", r"\n···"],
    "layer-error": ["float32", "bfloat16", "block 19", "RMS error against float64, relative"],
    "decode-cost": ["context in use, tokens", "milliseconds per token", "4,096"],
}

_EMBEDDED = re.compile(r'(?<=base64,)[^"]+')


def committed(name: str) -> str:
    return (pictures.PICTURES / f"{name}.svg").read_text(encoding="utf-8")


def texts(picture: str) -> list[str]:
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(picture.encode())
    assert root.tag == f"{svg}svg"
    return ["".join(text.itertext()).strip() for text in root.iter(f"{svg}text")]


def images(picture: str) -> list[np.ndarray]:
    from matplotlib.image import imread

    found = _EMBEDDED.findall(picture)
    return [imread(io.BytesIO(base64.b64decode(image)), format="png") for image in found]


def drawn(draw, *shape: int):
    """The axes of a figure after `draw` has drawn on them."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    draw(figure.subplots(*shape))
    return figure.axes


def points(line) -> list[tuple[float, float]]:
    return [tuple(point) for point in line.get_xydata().tolist()]


def test_there_is_a_picture_for_every_name_and_no_other() -> None:
    files = sorted(path.name for path in pictures.PICTURES.iterdir())
    assert (
        files
        == sorted(f"{name}.svg" for name in pictures.ALL)
        == sorted(f"{n}.svg" for n in LABELS)
    )


@pytest.mark.parametrize("name", LABELS)
def test_a_picture_is_small_and_says_what_it_shows(name: str) -> None:
    picture = committed(name)
    assert len(picture.encode()) < MOST_BYTES
    assert set(LABELS[name]) <= set(texts(picture))
    assert "dc:date" not in picture


@pytest.mark.parametrize("name", LABELS)
def test_pictures_are_current(name: str) -> None:
    """`python -m benchmarks.pictures` changes nothing: to the byte with the same matplotlib."""
    matplotlib = pytest.importorskip("matplotlib")
    old, new = committed(name), pictures.picture(pictures.ALL[name]).decode()
    assert texts(old) == texts(new)
    for before, after in zip(images(old), images(new), strict=True):
        if before.shape == after.shape:
            np.testing.assert_allclose(before, after, rtol=0, atol=NEXT_COLOUR)
    if f"Matplotlib v{matplotlib.__version__}," in old:
        assert _EMBEDDED.sub("", old) == _EMBEDDED.sub("", new)


def test_two_drawings_are_the_same_bytes() -> None:
    """Ids and dates would make every one another; so would what the reader has set."""
    matplotlib = pytest.importorskip("matplotlib")
    first = pictures.picture(pictures.ALL["decode-cost"])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20}):
        assert pictures.picture(pictures.ALL["decode-cost"]) == first
        assert matplotlib.rcParams["font.size"] == 20


# What is drawn is the data


def test_training_curve_shows_every_point() -> None:
    """Each run's steps come after those of the one before."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    curve = json.loads(CURVE.read_text(encoding="utf-8"))
    pictures.training_curve(figure, curve)
    left, right = figure.axes
    runs = curve["runs"]
    starts = [sum(run["steps"] for run in runs[:number]) for number in range(len(runs))]
    for line, name in (
        (left.lines[0], "loss"),
        (left.lines[1], "validation_loss"),
        (right.lines[0], "bits_per_byte"),
    ):
        expected = [
            (start + each["step"], each[name])
            for start, run in zip(starts, runs, strict=True)
            for each in run["lines"]
            if name in each
        ]
        assert points(line) == expected
        assert points(line)[-1][0] == pytest.approx(starts[-1] + runs[-1]["steps"], abs=50)


def test_the_curve_is_of_the_runs_that_the_card_describes() -> None:
    curve = json.loads(CURVE.read_text(encoding="utf-8"))
    card = " ".join((PROJECT / "jaxcoder/demo/README.md").read_text(encoding="utf-8").split())
    runs = curve["runs"]
    steps = [f"{run['steps']:,}" for run in runs]
    assert f": {', '.join(steps[:-1])} and {steps[-1]} steps of" in card
    assert f"{runs[0]['tokens_per_step_at_most']:,} tokens at most" in card
    assert f"products in {runs[0]['dtype']}." in card
    for row in setting_rows(runs):
        assert " ".join(row.split()) in card
    for run in runs:
        training = [line for line in run["lines"] if "loss" in line]
        assert 200 <= len(training) <= 400


def test_layer_errors_are_those_of_the_table() -> None:
    table = [LayerRow("embedding", 1e-8, 2e-8), LayerRow("block 0", 3e-7, 1e-7)]
    (axes,) = drawn(lambda axes: pictures.layer_errors(axes, table, title="here"))
    assert [points(line) for line in axes.lines] == [[(0, 1e-8), (1, 3e-7)], [(0, 2e-8), (1, 1e-7)]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["embedding", "block 0"]
    (alone,) = drawn(
        lambda axes: pictures.layer_errors(axes, table, title="here", with_pytorch=False)
    )
    assert len(alone.lines) == 1


def test_decode_cost_is_what_was_measured() -> None:
    result = json.loads((RESULTS / "context-float32.json").read_text(encoding="utf-8"))
    (axes,) = drawn(lambda axes: pictures.decode_cost(axes, result))
    costs = result["milliseconds_per_token_by_context"]
    assert points(axes.lines[0]) == [(int(name), cost["median"]) for name, cost in costs.items()]
    (bars,) = axes.collections
    expected = [[cost["min"], cost["max"]] for cost in costs.values()]
    found = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_attention_map_has_a_panel_for_each_head() -> None:
    """Of three heads too: the fourth place stays empty."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    pattern = np.tril(np.random.default_rng(0).random((3, 2, 2)).astype(np.float32))
    pictures.attention_map(figure, pattern, ["def", " f"], title="here")
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(shown, pattern)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["def", "·f"]


def test_a_pattern_of_another_length_is_refused() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    for shape in ((1, 3, 2, 2), (3, 3, 3)):
        with pytest.raises(ValueError, match=r"pattern is .* expected \[heads, T, T\] for T = 2"):
            pictures.attention_map(figure, np.zeros(shape), ["def", " f"], title="here")


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"matplotlib is not installed; pip install"):
        pictures.picture(lambda figure: None)


# The file of the curve


def write_run(folder: Path, *, last: int) -> Path:
    folder.mkdir()
    settings = config_fields(stdlib())
    settings["loop"]["steps"] = 1200
    record = {"config": settings, "versions": {"jax": "0.0"}}
    (folder / "config.json").write_text(json.dumps(record), encoding="utf-8")
    lines = [{"step": step, "loss": 1 / step} for step in range(1, last + 1)]
    lines[4]["loss"] = None
    lines.append({"step": last, "validation_loss": 2.0, "bits_per_byte": 1.0, "infill_lines": 4.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / METRICS_FILE).write_text(text, encoding="utf-8")
    (folder / DATA_FILE).write_text('{"tokens": 7}', encoding="utf-8")
    return folder


def test_a_run_is_thinned(tmp_path: Path) -> None:
    """Every fourth step that has a loss stays, and every validation."""
    run = write_run(tmp_path / "run", last=1200)
    DemoCurve((run, run), out=tmp_path / "curve.json").run()
    first, second = json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))["runs"]
    assert first == second
    lines = first["lines"]
    assert (first["steps"], first["steps_planned"]) == (1200, 1200)
    assert lines[0] == {"step": 4, "loss": 1 / 4}
    assert lines[1] == {"step": 9, "loss": 1 / 9}, "the step without a loss does not count"
    assert lines[-1] == {"step": 1200, "validation_loss": 2.0, "bits_per_byte": 1.0}
    assert len(lines) == 300
    assert first["changes"] == {"loop.steps": 1200}


def test_runs_whose_folders_are_gone_stay(tmp_path: Path) -> None:
    """The first of the file are kept, the rest is put after them; and no more than there are."""
    curve = tmp_path / "curve.json"
    run, other = write_run(tmp_path / "run", last=1200), write_run(tmp_path / "other", last=800)
    DemoCurve((run,), out=curve).run()
    DemoCurve((other,), kept=1, out=curve).run()
    runs = json.loads(curve.read_text(encoding="utf-8"))["runs"]
    assert [(each["steps"], each["steps_planned"]) for each in runs] == [(1200, 1200), (800, 1200)]
    with pytest.raises(ValueError, match=r"kept: 3, but .* has 2 runs"):
        DemoCurve((other,), kept=3, out=curve).run()


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", last=900)
    (run / METRICS_FILE).unlink()
    with pytest.raises(ValueError, match="there are no lines"):
        DemoCurve((run,), out=tmp_path / "curve.json").run()
    assert not (tmp_path / "curve.json").exists()


def test_the_commands_of_the_card_lead_from_one_run_to_the_next() -> None:
    """With every setting that a run changed, and the step at which one was stopped."""
    runs = [
        {"changes": {}, "steps": 80, "steps_planned": 80},
        {
            "changes": {"batch.piece_tokens": [64, 128], "fim.rate": 0.9},
            "steps": 20,
            "steps_planned": 50,
        },
    ]
    told = list(commands(runs, ["40-steps", "80-steps", "100-steps"]))
    assert told[1] == "python -m train stdlib --data CORPUS/train --out runs/demo-1"
    assert told[2:4] == [
        "python -m train export runs/demo-1 exports/40-steps --step 40 --dtype bfloat16",
        "python -m train export runs/demo-1 exports/80-steps --dtype bfloat16",
    ]
    assert "--model exports/80-steps --out runs/demo-2" in told[4]
    assert "--batch.piece-tokens 64 128 \\\n  --fim.rate 0.9" in told[4]
    assert told[5:7] == [
        "# which was stopped, by Ctrl-C, after step 20",
        "python -m train export runs/demo-2 exports/100-steps --step 20 --dtype bfloat16",
    ]
    assert setting_rows(runs)[1] == "| shortest and longest piece, tokens | as a row | 64 128 |"
