"""The programs compile for TPUs on a machine without one, in the memory that docs/tpu.md quotes.

Compiling needs libtpu (`make test-tpu-plan` installs it) and happens in a process of its own:
libtpu reads its environment when it is loaded. The nightly tests take minutes and 10 GB.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcoder.cache import cache_bytes
from jaxcoder.config import ModelConfig
from jaxcoder.errors import ConfigError
from jaxcoder.hf_names import tensor_shapes
from train.plan import Memory, Plan, PlanConfig, main, plan
from train.tpu_programs import DTYPE

PROJECT = Path(__file__).resolve().parent.parent
TOPOLOGIES = ("v5e:2x2", "v6e:2x2")
SMALL = ModelConfig(vocab_size=1024, n_positions=8192, n_embd=256, n_layer=2, n_head=4, n_inner=512)
QUICK = PlanConfig(topologies=TOPOLOGIES[:1], seq_len=256)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: `make test-tpu-plan` installs it",
)


def run_plan(config: PlanConfig, model: ModelConfig) -> subprocess.CompletedProcess[str]:
    """`train.plan.main` in a process of its own."""
    code = (
        "import sys; from jaxcoder.config import ModelConfig; "
        "from train.plan import PlanConfig, main; "
        f"sys.exit(main({config!r}, {model!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)


def planned(config: PlanConfig, model: ModelConfig, out: Path) -> dict[str, dict]:
    """The plans of one topology by program, from the file that the command writes."""
    done = run_plan(dataclasses.replace(config, out=str(out)), model)
    assert done.returncode == 0, done.stderr
    return by_program(json.loads(out.read_text(encoding="utf-8")), *config.topologies)


def by_program(report: dict, topology: str) -> dict[str, dict]:
    return {each["program"]: each for each in report["plans"] if each["topology"] == topology}


def parameter_count(model: ModelConfig) -> int:
    shapes = tensor_shapes(model).values()
    return sum(_product(shape) for shape in shapes)


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def check_sizes(plans: dict[str, dict], config: PlanConfig, model: ModelConfig) -> None:
    """Arguments are what they must be, and what is donated is written in place."""
    # Weights and Adam's two moments, float32. The layout of a TPU pads vectors and small sides.
    state = 3 * 4 * parameter_count(model)
    memory = plans["train"]["memory"]
    assert state <= memory["argument_bytes"] <= 1.1 * state
    assert memory["alias_bytes"] >= state
    weights = DTYPE.itemsize * parameter_count(model)
    cache = config.rows * cache_bytes(model, config.seq_len, DTYPE)
    for program in ("prefill", "decode"):
        memory = plans[program]["memory"]
        assert weights + cache <= memory["argument_bytes"] <= 1.1 * (weights + cache)
        assert cache <= memory["alias_bytes"] <= memory["output_bytes"]


@needs_libtpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_two_layers_compile_for_a_tpu_that_is_not_there(topology: str, tmp_path: Path) -> None:
    """The quick form: train step, prefill and decode; donated buffers are reused on a TPU too."""
    config = dataclasses.replace(QUICK, topologies=(topology,))
    plans = planned(config, SMALL, tmp_path / "plan.json")
    assert set(plans) == {"train", "prefill", "decode"}
    assert {each["device_kind"] for each in plans.values()} == {f"TPU {topology[:2]} lite"}
    check_sizes(plans, config, SMALL)


@needs_libtpu
def test_program_that_does_not_fit_is_reported(tmp_path: Path) -> None:
    """Exit status 1, and the line and the file say why; 4,096 caches take 16 GiB of v5e's 15.75."""
    out = tmp_path / "plan.json"
    config = dataclasses.replace(QUICK, programs=("decode",), rows=4096, seq_len=8192, out=str(out))
    done = run_plan(config, SMALL)
    assert done.returncode == 1, done.stderr
    assert "decode: does not fit: RESOURCE_EXHAUSTED" in done.stderr
    (refused,) = json.loads(out.read_text(encoding="utf-8"))["plans"]
    assert refused["memory"] is None and "HBM" in refused["refusal"]


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x2", "v7e:2x2"])
def test_slice_that_is_none_is_refused(topology: str, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = run_plan(dataclasses.replace(QUICK, topologies=(topology,), out=str(out)), SMALL)
    assert f"ConfigError: plan: topology is '{topology}', expected a slice" in done.stderr
    assert not out.exists()


def test_mistakes_are_listed_together_before_anything_compiles() -> None:
    """An empty topology would make libtpu search the network for minutes."""
    config = PlanConfig(
        topologies=("",), rows=0, seq_len=8193, n_layer=3, loss_chunk=0, out="absent/plan.json"
    )
    with pytest.raises(ConfigError) as caught:
        next(plan(config, SMALL))
    for words in (
        "rows is 0, expected at least 1",
        "seq_len is 8193, expected at least 1 and at most the model's 8192",
        "n_layer is 3, expected at least 1 and at most the model's 2",
        "loss_chunk is 0",
        "topology is ''",
        "out is absent/plan.json",
    ):
        assert words in str(caught.value)


def test_absent_libtpu_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"libtpu is not installed.*tpu-plan"):
        main(QUICK, SMALL)


def test_total_counts_a_reused_argument_once() -> None:
    memory = Memory(
        argument_bytes=5 << 30, output_bytes=4 << 30, alias_bytes=3 << 30, temp_bytes=2 << 30,
        code_bytes=1 << 30,
    )  # fmt: skip
    assert memory.total_bytes == 9 << 30
    line = str(Plan("train", "v5e:2x2", "TPU v5 lite", memory, "", 60.0))
    assert line.startswith("v5e:2x2 (TPU v5 lite) train: argument 5.000")
    assert "total 9.000 GiB" in line


def published(name: str = "tpu-plan.json") -> dict:
    return json.loads((PROJECT / "docs" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_page_quotes_its_file(topology: str) -> None:
    """docs/tpu.md has the memory of the full model at 1 x 8,192, as docs/tpu-plan.json has it."""
    report = published()
    settings = report["settings"]
    assert (settings["rows"], settings["seq_len"], settings["n_layer"]) == (1, 8192, None)
    assert (settings["remat"], settings["dropout"]) == ("block", True)
    assert settings["dtype"] == "bfloat16"
    assert report["model"]["n_layer"] == ModelConfig.tiny_starcoder().n_layer
    page = (PROJECT / "docs/tpu.md").read_text(encoding="utf-8")
    for program, each in by_program(report, topology).items():
        sizes = (*(each["memory"][f"{name}_bytes"] for name in COLUMNS), each["total_bytes"])
        cells = " | ".join(f"{size / 2**30:.2f}" for size in sizes)
        assert f"| {program} | {topology[:3]} | {cells} |" in page


def test_page_quotes_the_step_that_keeps_all() -> None:
    """Without computing blocks again the same step takes more than twice as much."""
    report = published("tpu-plan-no-remat.json")
    differing = {"topologies", "programs", "remat"}
    settings, others = report["settings"], published()["settings"]
    assert {name for name in settings if settings[name] != others[name]} == differing
    (plan,) = report["plans"]
    page = (PROJECT / "docs/tpu.md").read_text(encoding="utf-8")
    assert f"takes {plan['total_bytes'] / 2**30:.2f} GiB (`tpu-plan-no-remat.json`)" in page


COLUMNS = ("argument", "output", "alias", "temp", "code")


@pytest.mark.nightly
@needs_libtpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_full_model_at_its_longest_context(topology: str, tmp_path: Path) -> None:
    """164M, 1 x 8,192, bfloat16, blocks computed again: fits, in about the memory published."""
    config = PlanConfig(topologies=(topology,))
    plans = planned(config, ModelConfig.tiny_starcoder(), tmp_path / "plan.json")
    check_sizes(plans, config, ModelConfig.tiny_starcoder())
    for program, each in by_program(published(), topology).items():
        # Another version of the compiler may arrange things otherwise.
        assert plans[program]["total_bytes"] <= 1.25 * each["total_bytes"], program
