"""Nightly: the proof and the cost bounds at the exact 164M shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.nightly


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )


@pytest.mark.parity
def test_verify_full_holds_on_a_checkpoint_that_transformers_wrote() -> None:
    """164 prompts x 64 tokens, 4,096 positions: every bound."""
    done = run_module("conversion", "verify", "--synthetic", "--full", "--json")
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    failed = [bound for bound in report["bounds"] if not bound["holds"]]
    assert done.returncode == 0, failed
    assert report["positions"] >= 4000


def test_cost_follows_the_used_context_and_not_the_allowed_one(tmp_path: Path) -> None:
    """At 256 used positions, 8,192 allowed costs at most 1.2 x what 512 allowed costs."""
    out = tmp_path / "context.json"
    done = run_module("benchmarks.context", "--contexts", "256", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["ratio_8192_to_512"]["median"] <= 1.2


def test_proof_holds() -> None:
    done = run_module("benchmarks.proof")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the proof holds" in done.stdout
