"""The notebooks run from top to bottom: offline, with the demo model, on the CPU.

Each runs in a kernel of this interpreter, in a copy of the checkout, so that what it writes goes
with the test. The first cell's installation has tests of its own: test_notebooks_install.
"""

import importlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from colab.install import installed

nbclient = pytest.importorskip("nbclient", reason="`make test` installs it")
nbformat = pytest.importorskip("nbformat", reason="`make test` installs it")
pytest.importorskip("ipykernel", reason="`make test` installs it")

PROJECT = Path(__file__).resolve().parent.parent
FOLDERS = ("jaxcoder", "conversion", "train", "benchmarks", "colab")
KERNEL = "this-interpreter"
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
    # For whatever else might try: nobody answers there.
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter|nb|zmq|tornado).*")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages."""
    folder = tmp_path_factory.mktemp("notebooks") / "checkout"
    for name in FOLDERS:
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs")
        )
    shutil.copy(PROJECT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Variables of the kernel; its name stands for this interpreter, whatever the user has set."""
    specification = tmp_path / "jupyter" / "kernels" / KERNEL / "kernel.json"
    specification.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    fields = {"argv": command, "display_name": KERNEL, "language": "python"}
    specification.write_text(json.dumps(fields), encoding="utf-8")
    folders = {
        "JUPYTER_PATH": "jupyter",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "JAXCODER_CACHE": "cache",
    }
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    for name, folder in folders.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # its warning would be an error
    return tmp_path


def execute(notebook: Path, cwd: Path) -> list[str]:
    """Run a notebook; what each cell of code printed and showed.

    Any error of a cell is raised. No installed package is changed.
    """
    before = installed()
    content = nbformat.read(notebook, as_version=4)
    client = nbclient.NotebookClient(
        content, kernel_name=KERNEL, timeout=300, resources={"metadata": {"path": str(cwd)}}
    )
    client.execute()
    importlib.invalidate_caches()
    assert installed() == before
    return [shown(cell) for cell in content.cells if cell.cell_type == "code"]


def shown(cell: Any) -> str:
    """All outputs of a cell as text; a picture by its media type."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        else:
            data = output.get("data", {})
            texts += [data.get("text/html", ""), *(kind for kind in data if "image/" in kind)]
    return "".join(texts)


def test_inference(environment: Path, checkout: Path) -> None:
    cells = execute(checkout / "colab" / "inference.ipynb", checkout / "colab")
    said = "\n".join(cells)
    assert "added: nothing;" in cells[0]
    assert cells[1].startswith("cpu: cpu, ")
    assert "OpenRAIL-M" in cells[2] and "Instead: the demo model" in cells[2]
    assert '"""Return the lines of a file."""' in cells[3]
    assert len(cells[4].strip()) > 20, "nothing was streamed"
    assert re.search(r"def __init__\(self\):⟦[^⟧]+⟧", cells[5])
    assert re.search(r"compiling: [\d.]+ s, once; again: 0.0 s\nrunning: \d+ tokens/s", said)
    assert "image/png" in said
    assert "after 4 blocks: " in said
    assert cells[-1].count("<span") > 20


def test_finetuning(environment: Path, checkout: Path) -> None:
    """It really stops and goes on, learns something, and the export is the model that it shows."""
    cells = execute(checkout / "colab" / "finetune_tpu.ipynb", checkout / "colab")
    said = "\n".join(cells)
    stopped = re.search(r"Outcome\(step=(\d+), is_finished=False\)", said)
    assert stopped and 0 < int(stopped[1]) < 60
    assert f"going on after step {stopped[1]} of 60" in said
    assert "Outcome(step=60, is_finished=True)" in said
    losses = [float(text) for text in re.findall(r"validation_loss ([\d.]+)", said)]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.2
    assert "image/svg+xml" in said
    assert "README.md config.json" in said and "model.safetensors" in said
    holes = re.findall("⟦(.*?)⟧", said, re.DOTALL)
    assert len(holes) == 2 and holes[0] != holes[1]
    assert (checkout / "colab" / "runs" / "notebook" / "export-60").is_dir()


@pytest.mark.skipif(not HAS_TORCH, reason="parity: torch or transformers is not installed")
def test_parity(environment: Path, checkout: Path) -> None:
    said = "\n".join(execute(checkout / "colab" / "parity.ipynb", checkout / "colab"))
    assert "float64 alone" not in said
    assert "image/png" in said
    errors = dict(re.findall(r"(jaxcoder|PyTorch): KL (\S+) nat", said))
    assert {*errors} == {"jaxcoder", "PyTorch"} and float(errors["jaxcoder"]) < 1e-9
    agreements = re.findall(r"as in float64: ([\d.]+)%", said)
    assert len(agreements) == 2 and all(float(share) > 99 for share in agreements)
    assert re.findall(r"tokens: (\d+) of 32 are equal", said) == ["32"] * 3


def test_parity_without_pytorch(
    environment: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so and compares with float64; this one runs from the checkout's root."""
    absent = environment / "absent" / "torch"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(absent.parent))
    said = "\n".join(execute(checkout / "colab" / "parity.ipynb", checkout))
    assert "Compared with float64 alone: verify compares with PyTorch, but torch is not" in said
    assert re.search(r"jaxcoder: KL \S+ nat", said) and "PyTorch: KL" not in said
    assert "image/png" in said


def test_fallback_to_the_cpu_stops_a_notebook(
    environment: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its second cell, before anything takes long."""
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("COLAB_TPU_ADDR", "somewhere")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="this machine has a TPU"):
        execute(checkout / "colab" / "inference.ipynb", checkout / "colab")
