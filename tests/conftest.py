"""The environment of every test, and the fixtures more than one file uses.

Tests run on the CPU, and without silent rank promotion, so that a forgotten axis is an error
instead of a broadcast. Signals have their defaults: under nohup, or in a shell's background job,
some are ignored, which a run heeds and the tests of its signals would fail by. Subprocesses inherit
all of it.
"""

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# JAX reads these when it is imported, so they come before anything of ours.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import jax

from jaxcoder.config import ModelConfig

PROJECT = Path(__file__).resolve().parent.parent
PARITY_MODULES = ("torch", "transformers")

# Linux allows a process 65,530; test_generate.py takes 7,000.
MOST_MAPPINGS = 30_000

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the StarCoder tokenizer and HumanEval, beside the project."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "../shared/data is absent: this test reads the StarCoder tokenizer and HumanEval"
        )
    return folder


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
    """Forget compiled programs before there are too many.

    XLA's CPU backend maps memory for each of them, and crashed, compiling, where Linux allows a
    process no more mappings.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A config small enough for any test, with the published model's layout and no dropout."""
    return ModelConfig(
        vocab_size=512,
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=64,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip parity tests where PyTorch is absent; with PARITY=1 refuse to run without it."""
    missing = missing_parity_modules()
    parity_items = [item for item in items if item.get_closest_marker("parity")]
    if not missing or not parity_items:
        return
    reason = f"not installed: {', '.join(missing)}"
    if os.environ.get("PARITY", "") not in ("", "0"):
        raise pytest.UsageError(
            f"PARITY is {os.environ['PARITY']!r} but {reason}; "
            "run `make test PARITY=1`, which installs them, or unset PARITY"
        )
    for item in parity_items:
        item.add_marker(pytest.mark.skip(reason=f"parity: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many parity tests were skipped: a green run without them proves less."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "parity" in getattr(report, "keywords", {}) and missing_parity_modules()
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} parity tests skipped: not installed: "
            f"{', '.join(missing_parity_modules())}; `make test PARITY=1` runs them"
        )


def missing_parity_modules() -> list[str]:
    """The modules of `PARITY_MODULES` that this environment lacks."""
    return [name for name in PARITY_MODULES if importlib.util.find_spec(name) is None]
