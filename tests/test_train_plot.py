"""The picture of a run's curves."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from train.plot import plot_run
from train.run_folder import METRICS_FILE

LINES = [
    {"step": 0, "validation_loss": 6.0, "bits_per_byte": 4.0},
    *({"step": step, "loss": 6.0 - step / 10} for step in range(1, 11)),
    {"step": 10, "validation_loss": 5.0, "bits_per_byte": 3.0},
    {"step": 11, "loss": None},
    {"step": 11, "bad_tensors": ["wte/weight"], "pieces": ["1 a.py[0:3]"]},
]


def write_metrics(folder: Path, lines: list[dict]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / METRICS_FILE).write_text(text)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose metrics have a step that was not finite, and a line cut off."""
    pytest.importorskip("matplotlib")
    write_metrics(tmp_path, LINES)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 12, "lo')
    return tmp_path


def curves_of(picture: Path) -> list[int]:
    """How many points each curve of an SVG has, axes and their ticks aside."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(picture).getroot()
    assert root.tag == f"{svg}svg"
    lines = (group for group in root.iter(f"{svg}g") if group.get("id", "").startswith("line2d_"))
    paths = (path.get("d", "") for group in lines for path in group.findall(f"{svg}path"))
    return [path.count("M") + path.count("L") for path in paths if path]


def test_it_draws_every_finite_point(run: Path) -> None:
    """Control: a run with one step less has a point less."""
    path = plot_run(run)
    assert path == run / "curve.svg"
    counts = curves_of(path)
    assert 10 in counts, "training loss"
    assert counts.count(2) >= 2, "validation loss and bits per byte, among the grid's lines"
    write_metrics(run, LINES[:10])
    assert 9 in curves_of(plot_run(run))
    assert 10 not in curves_of(plot_run(run))


@pytest.mark.parametrize(("name", "begins"), [("curve.png", b"\x89PNG"), ("curve.pdf", b"%PDF")])
def test_the_ending_decides_the_format(run: Path, name: str, begins: bytes) -> None:
    path = plot_run(run, run / name)
    assert path.read_bytes().startswith(begins)
    assert not (run / "curve.svg").exists()


def test_an_unknown_ending_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="xyz"):
        plot_run(run, run / "curve.xyz")
    assert not (run / "curve.xyz").exists()


def test_a_missing_folder_is_named(run: Path) -> None:
    """It was a bare message of the system."""
    with pytest.raises(ValueError, match=r"none/curve\.png: .*none is no folder, expected"):
        plot_run(run, run / "none" / "curve.png")
    assert not (run / "none").exists()


def test_a_name_without_an_ending_is_refused(run: Path) -> None:
    """The picture was written under another name than the one told."""
    before = sorted(run.iterdir())
    with pytest.raises(ValueError, match="is not supported"):
        plot_run(run, run / "curve")
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize("lines", [[], LINES[:1], [{"step": 1, "loss": 3.0}]])
def test_a_run_that_has_hardly_begun_can_be_drawn(run: Path, lines: list[dict]) -> None:
    """Also one that holds nothing out, and so has no validation."""
    assert curves_of(plot_run(write_metrics(run, lines)))


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no such file, expected the metrics"):
        plot_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        plot_run(write_metrics(tmp_path, LINES))
