"""The notebooks as files: made from their sources and one address, small, without outputs.

`test_notebooks_install` runs their first cell, `test_notebooks_run` all of them.
"""

import ast
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from colab import build, models
from colab.disconnect import disconnect
from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.generator import embedded_demo
from train.config import LoopConfig, TrainConfig
from train.start_checks import check_start

pytest.importorskip("jupytext", reason="`make test` installs it")

PROJECT = Path(__file__).resolve().parent.parent
ELSEWHERE = "https://github.com/somebody/something"
MOST_LINES = 60
"""Of code, in all cells of a notebook together."""
MOST_CELLS = 12
"""Of code, in a notebook."""


def cells(name: str, kind: str = "") -> list[dict]:
    """The cells of a notebook as it is in the checkout; those of one kind."""
    content = json.loads((build.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if kind in cell["cell_type"]]


def code_lines(cell: dict) -> list[str]:
    """Without blank lines and comments."""
    lines = (line.strip() for line in cell["source"])
    return [line for line in lines if line and not line.startswith("#")]


def test_generated_files_are_up_to_date() -> None:
    """They are exactly what `make notebooks` makes of the sources and the address."""
    for path, text in build.build(build.repository()).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `make notebooks`"


def test_notebooks_are_what_nbformat_takes() -> None:
    nbformat = pytest.importorskip("nbformat", reason="`make test` installs it")
    for name in build.NOTEBOOKS:
        nbformat.validate(json.loads(build.notebook(name, ELSEWHERE)))


def test_another_address_changes_every_place() -> None:
    """It stands once: in no generated file is any of it left when pyproject.toml has another."""
    address = build.repository()
    owner_and_name = address.removeprefix("https://github.com/")
    for path, text in build.build(ELSEWHERE).items():
        assert owner_and_name not in text, path
        had_it = not path.exists() or owner_and_name in path.read_text(encoding="utf-8")
        assert ("somebody/something" in text) == had_it, path
    for name in build.NOTEBOOKS:
        assert build.notebook(name, ELSEWHERE).count("somebody/something") == 2  # badge and clone


def test_address_stands_once() -> None:
    """Every other file that has it is generated from pyproject.toml."""
    listed = subprocess.run(
        ["git", "grep", "--fixed-strings", "-l", build.repository().removeprefix("https://")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    if listed.returncode > 1:
        pytest.skip("not a git checkout")
    found = {PROJECT / line for line in listed.stdout.splitlines()}
    assert found <= {PROJECT / "pyproject.toml", *build.build(ELSEWHERE)}


def test_address_is_marked_as_a_placeholder() -> None:
    if "OWNER" in build.repository():
        text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
        assert re.search(r"# A placeholder[^\[]*Repository = ", text)


def test_address_of_another_host_is_refused() -> None:
    """Colab's links open GitHub's notebooks alone; a badge that leads nowhere is none."""
    with pytest.raises(ValueError, match="badges open https://github"):
        build.badge("parity", "https://example.org/a/b")


def test_a_source_without_its_marker_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook without the first cell would not be noticed until Colab."""
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    (tmp_path / "parity.py").write_text("# %% [markdown]\n# {badge}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"parity.py: expected the line '# \{install\}' once"):
        build.notebook("parity", ELSEWHERE)


def test_command_writes_what_is_not_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "colab.build"], cwd=PROJECT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize("name", build.NOTEBOOKS)
def test_code_is_short(name: str) -> None:
    code = cells(name, "code")
    assert 8 <= len(code) <= MOST_CELLS
    assert 20 < sum(len(code_lines(cell)) for cell in code) <= MOST_LINES


@pytest.mark.parametrize("name", build.NOTEBOOKS)
def test_code_calls_the_library(name: str) -> None:
    """What is more than a few lines long is a function of the library, with its tests."""
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in cells(name, "code"):
        tree = ast.parse("".join(cell["source"]))
        assert not [node for node in ast.walk(tree) if isinstance(node, defined)]


@pytest.mark.parametrize("name", build.NOTEBOOKS)
def test_each_cell_of_code_is_introduced(name: str) -> None:
    """By a sentence; the badge comes first, and there is one cell that installs."""
    kinds = [cell["cell_type"] for cell in cells(name)]
    for before, kind in itertools.pairwise(kinds):
        assert kind == "markdown" or before == "markdown"
    assert cells(name)[0]["source"][0] == f"{build.badge(name, build.repository())}\n"
    code = ["".join(cell["source"]) for cell in cells(name, "code")]
    assert [source for source in code if "subprocess" in source or "install" in source] == [
        build.install_cell(build.repository()).rstrip()
    ]
    assert not any(line.startswith(("!", "%")) for source in code for line in source.splitlines())


@pytest.mark.parametrize("name", build.NOTEBOOKS)
def test_jax_is_imported_after_the_installation(name: str) -> None:
    """A JAX in memory would hide what pip does to the one on the disk."""
    code = ["".join(cell["source"]) for cell in cells(name, "code")]
    install = code.index(build.install_cell(build.repository()).rstrip())
    assert not any("jax" in source.lower() for source in code[:install] if "XLA_" not in source)
    assert code[install + 1].startswith("import jax\n")
    assert "checked_device()" in code[install + 1]


def test_memory_is_shared_before_jax_is_imported() -> None:
    """JAX reads the variable once; PyTorch on the same GPU would find no memory left."""
    first = "".join(cells("parity", "code")[0]["source"])
    assert 'os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"' in first


# What the cells call


@pytest.mark.parametrize("model", ["", models.PUBLISHED])
def test_demo_model_stands_in(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it stands in for the published model, it says so."""

    def fail(model: str) -> Path:
        raise CheckpointError(f"{model}: there is no connection")

    monkeypatch.setattr(models, "resolve", fail)
    assert models.model_or_demo(model) == embedded_demo()
    said = capsys.readouterr().err
    assert ("no connection" in said and "the demo model" in said) == bool(model)


def test_demo_model_stands_in_for_no_other(tmp_path: Path) -> None:
    """A folder that is not there is a mistake, not a lack of network."""
    assert models.model_or_demo(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="no such folder"):
        models.model_or_demo(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_finetuning_settings_suit_the_model_that_is_there(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator without a network, rows of 2,048 were asked of the demo model's 512."""

    def fail(model: str) -> Path:
        raise CheckpointError(f"{model}: there is no connection")

    monkeypatch.setattr(models, "resolve", fail)
    names = {"device": SimpleNamespace(platform=platform)}
    sources = ["".join(cell["source"]) for cell in cells("finetune_tpu", "code")]
    for source in sources:
        if "MODEL" in source or "TrainConfig" in source:
            exec(source, names)
    assert names["folder"] == embedded_demo()
    check_start(names["config"])
    longer = dataclasses.replace(names["config"].batch, seq_len=2048)
    with pytest.raises(ConfigError, match="n_positions 512"):  # what the cell asked for
        check_start(dataclasses.replace(names["config"], batch=longer))


def wait_for_disconnection(run: Path, *, begun: bool, first_step: int) -> None:
    """In `disconnect`, of 10 steps: the first checkpoint comes, then a second goes by."""
    config = TrainConfig(out=str(run), loop=LoopConfig(steps=10))
    checkpoint = run / "checkpoints" / f"step-{first_step:08d}"
    if begun:
        checkpoint.mkdir(parents=True)
    with disconnect(config):
        checkpoint.mkdir(parents=True, exist_ok=True)
        time.sleep(1)


def test_disconnection_comes_after_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        wait_for_disconnection(tmp_path, begun=False, first_step=4)


@pytest.mark.parametrize(("begun", "first_step"), [(True, 4), (False, 10)])
def test_no_disconnection_of_a_run_that_goes_on(
    begun: bool, first_step: int, tmp_path: Path
) -> None:
    """An interruption of a start that has nothing to do would end the cell with an error."""
    wait_for_disconnection(tmp_path, begun=begun, first_step=first_step)
