"""Benchmarks run, and what they write is what they measured: tiny shapes, one round each."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from model_cases import MQA, random_tensors

from benchmarks import (
    context,
    decode,
    harness,
    interrupted_run,
    layouts,
    prefill,
    proof,
    resume,
    train_step,
)
from benchmarks.interrupted_run import Link, counts, was_interrupted
from benchmarks.interrupted_start import Interruption
from jaxcoder.config import ModelConfig

# As many positions as the published shape has: `context` compares 8,192 with 512.
TINY = dataclasses.replace(MQA, n_positions=8192)
SPREAD = {"median", "min", "max"}


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published shape is a tiny one, and PyTorch is not measured."""
    monkeypatch.setattr(ModelConfig, "tiny_starcoder", lambda: TINY)
    for module in (decode, prefill):
        monkeypatch.setattr(module, "torch_model", lambda *_, **__: None)


def run(benchmark: object, out: Path) -> dict:
    benchmark.run()
    result = json.loads(out.read_text(encoding="utf-8"))
    assert set(result["environment"]) >= {"date", "device", "cores", "commit", "versions"}
    return result


# What all of them share


def test_measures_run_in_turn_after_one_warm_up_each() -> None:
    """A machine's speed drifts: A A B B would compare its two moods."""
    order = []

    def measure(name: str) -> Callable[[], harness.Measurement]:
        def run_one() -> harness.Measurement:
            order.append(name)
            return {"number": len(order)}

        return run_one

    results = harness.interleaved({"a": measure("a"), "b": measure("b")}, rounds=2)
    assert "".join(order) == "ababab"
    assert results == {"a": [{"number": 3}, {"number": 5}], "b": [{"number": 4}, {"number": 6}]}


def test_ratios_are_of_one_round() -> None:
    """The ratio of the medians would be 1 here; within the rounds it is 10 twice."""
    ours, theirs = [1.0, 10.0, 100.0], [100.0, 1.0, 10.0]
    results = {"ours": [{"speed": x} for x in ours], "theirs": [{"speed": x} for x in theirs]}
    summary = harness.summarise(results, ours="ours", others=["theirs", "absent"])
    assert summary["ours"]["speed"] == {"median": 10, "min": 1, "max": 100}
    assert summary["ratios"] == {"ours / theirs": {"speed": {"median": 10, "min": 0.01, "max": 10}}}


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no os.sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert harness.environment()["cores"] == os.cpu_count()


# PyTorch's side


@pytest.mark.parity
def test_torch_model_has_our_weights() -> None:
    import torch

    tensors = random_tensors(MQA)
    model = harness.torch_model(MQA, tensors, "float32")
    assert model.device.type == "cpu"
    assert torch.equal(model.lm_head.weight, torch.from_numpy(tensors["transformer.wte.weight"]))


@pytest.mark.parity
@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_torch_model_without_our_weights_is_not_measured(change: str) -> None:
    """A tensor that transformers names otherwise would be left random without a word."""
    tensors = random_tensors(MQA)
    name = "transformer.h.1.mlp.c_fc.bias"
    tensors["transformer.h.1.mlp.other"] = tensors[name]
    if change == "missing":
        del tensors["transformer.h.1.mlp.other"], tensors[name]
    with pytest.raises(ValueError, match=f"{change} .*mlp"):
        harness.torch_model(MQA, tensors, "float32")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("backend", "has_cuda", "device"),
    [("gpu", True, "cuda"), ("gpu", False, "cpu"), ("cpu", True, "cpu")],
)
def test_torch_runs_where_jax_runs(
    monkeypatch: pytest.MonkeyPatch, backend: str, has_cuda: bool, device: str
) -> None:
    """A GPU measured against a CPU would be no comparison."""
    import torch

    moved_to = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, device, dtype: moved_to.append(device) or self
    )
    harness.torch_model(MQA, random_tensors(MQA), "float32")
    assert moved_to == [device]


@pytest.mark.parity
def test_decode_and_prefill_measure_transformers_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ModelConfig, "tiny_starcoder", lambda: MQA)
    out = tmp_path / "result.json"
    for benchmark in (
        decode.Decode(prompt=4, tokens=4, rounds=1, out=out),
        prefill.Prefill(length=8, rounds=1, out=out),
    ):
        result = run(benchmark, out)
        assert result["settings"]["torch_device"] == "cpu"
        ratio = result["ratios"]["jaxcoder / transformers"]["tokens_per_second"]["median"]
        ours, theirs = (
            result[name]["tokens_per_second"]["median"] for name in ("jaxcoder", "transformers")
        )
        assert ratio == pytest.approx(ours / theirs)


@pytest.mark.parity
def test_train_step_measures_the_memory_of_one_side_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The peak of transformers had JAX, Flax and optax in it: 170 MB of a margin of 320."""
    real, imported = subprocess.run, {}

    def listened(command: list[str], **settings: Any) -> subprocess.CompletedProcess:
        done = real(command, **settings)
        if "--only" in command:
            lines = done.stderr.splitlines()
            imported[command[command.index("--only") + 1]] = {
                line.rpartition("|")[2].strip() for line in lines
            }
        return done

    monkeypatch.setattr(ModelConfig, "tiny_starcoder", lambda: MQA)
    monkeypatch.setattr(train_step.subprocess, "run", listened)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    out = tmp_path / "result.json"
    result = run(train_step.TrainStep(length=8, rounds=1, out=out), out)
    libraries = {"jax", "flax", "optax", "jaxcoder", "torch", "transformers"}
    assert libraries & imported["jaxcoder"] == libraries - {"torch", "transformers"}
    assert libraries & imported["transformers"] == {"torch", "transformers"}
    assert result["settings"] == {"dtype": "float32", "rows": 1, "length": 8, "remat": False}
    assert all(result["peak_bytes"][side] > 1e8 for side in ("jaxcoder", "transformers"))
    assert result["ratios"]["jaxcoder / transformers"]["tokens_per_second"]["median"] > 0


def test_train_step_of_one_side_needs_its_inputs() -> None:
    with pytest.raises(ValueError, match="only is jaxcoder and inputs is None, expected both"):
        train_step.TrainStep(only="jaxcoder").run()


# One round of each


def test_decode(tiny_shape: None, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = run(decode.Decode(prompt=4, tokens=4, batch=2, rounds=1, out=out), out)
    assert result["settings"] == {
        "dtype": "float32",
        "prompt": 4,
        "tokens": 4,
        "batch": 2,
        "torch_device": None,
    }
    assert set(result["jaxcoder"]["tokens_per_second"]) == SPREAD
    assert result["ratios"] == {}


def test_prefill(tiny_shape: None, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = run(prefill.Prefill(length=8, rounds=1, out=out), out)
    assert result["settings"] == {"dtype": "float32", "length": 8, "torch_device": None}
    assert result["jaxcoder"]["tokens_per_second"]["median"] > 0


def test_context(tiny_shape: None, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = run(context.Context(contexts=(200,), tokens=16, rounds=1, out=out), out)
    at_256 = result["milliseconds_per_token_at_256"]
    assert set(at_256) == {"allowed 8192", "allowed 512"}
    curve = result["milliseconds_per_token_by_context"]
    for figures in (*at_256.values(), curve["200"]):
        assert set(figures) == {"capacity", *SPREAD}
        assert figures["capacity"] == 256
    long, short = (at_256[name]["median"] for name in ("allowed 8192", "allowed 512"))
    assert result["ratio_8192_to_512"]["median"] == pytest.approx(long / short)


def test_context_stays_within_one_capacity(
    tiny_shape: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The stretch ends at the named context: at 512 of 512 slots, not from 496 into 1,024."""
    stretches = []

    def measure_ours(model: object, params: object, prompts: list, tokens: int) -> Callable:
        stretches.append((len(prompts[0]), tokens))
        return lambda: {"tokens_per_second": 100.0}

    monkeypatch.setattr(context, "measure_ours", measure_ours)
    out = tmp_path / "result.json"
    result = run(context.Context(contexts=(512, 4096), rounds=1, out=out), out)
    assert stretches == [(224, 32), (224, 32), (480, 32), (4064, 32)]
    curve = result["milliseconds_per_token_by_context"]
    assert [curve[used]["capacity"] for used in ("512", "4096")] == [512, 4096]
    assert curve["512"]["median"] == pytest.approx(10)


@pytest.mark.parametrize(("used", "tokens"), [(270, 32), (256, 256), (16, 32)])
def test_context_across_two_capacities_is_refused(
    tiny_shape: None, used: int, tokens: int, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    with pytest.raises(ValueError, match=rf"context {used} with {tokens} tokens: .*--tokens"):
        context.Context(contexts=(used,), tokens=tokens, rounds=1, out=out).run()
    assert not out.exists()


def test_layouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, size in {"L": 2, "D": 8, "N": 2, "H": 4, "F": 16, "V": 32, "P": 64}.items():
        monkeypatch.setattr(layouts, name, size)
    out = tmp_path / "result.json"
    result = run(layouts.Layouts(context=32, rounds=1, out=out), out)
    assert set(result["settings"]["compile_seconds"]) == set(layouts.LAYOUTS)
    others = [name for name in layouts.LAYOUTS if name != "base"]
    assert list(result["ratios"]) == [f"base / {name}" for name in others]
    base = result["base"]["milliseconds_per_token"]["median"]
    for name in others:
        ratio = result["ratios"][f"base / {name}"]["milliseconds_per_token"]["median"]
        assert ratio == pytest.approx(base / result[name]["milliseconds_per_token"]["median"])


def test_proof(
    tiny_shape: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it says is counted: the parameters of this shape, not of the published one."""
    monkeypatch.setattr(proof, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(proof, "NEW_TOKENS", 4)
    assert proof.main() == 0
    out = capsys.readouterr().out
    count = sum(tensor.size for tensor in random_tensors(TINY).values())
    assert f"loaded {count:,} parameters" in out
    assert "4 of 4 decoded tokens are the float64 argmax, or tie with it" in out


def test_proof_fails_on_a_wrong_logit(
    tiny_shape: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative control: an error beyond the bound is a failure, whatever the argmax is."""
    monkeypatch.setattr(proof, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(proof, "NEW_TOKENS", 4)
    real = proof.parity.forward

    def forward(model: object, params: dict, tokens: np.ndarray) -> object:
        layered = real(model, params, tokens)
        return layered._replace(logits=layered.logits + 0.1)

    monkeypatch.setattr(proof.parity, "forward", forward)
    assert proof.main() == 1
    assert "THE PROOF FAILED" in capsys.readouterr().out


# Runs that are interrupted


def ended(number: int, status: int, said: str = "", *, logged: int = 0, committed: int = 0) -> Link:
    """A start that signal `number` was sent to."""
    return Link(Interruption(signal=number), status, said, 1.0, committed, "", logged)


ENDINGS = {
    signal.SIGKILL: [(0, ""), (-signal.SIGKILL, "")],
    signal.SIGTERM: [
        (0, ""),
        (-signal.SIGTERM, ""),
        (0, "SIGTERM: ended after step 3 of 60; the same command goes on"),
    ],
}
"""Of a process that a signal is sent to: the first is over already."""


@pytest.mark.parametrize(("number", "endings"), ENDINGS.items())
def test_a_signal_interrupts_what_it_ends(number: int, endings: list[tuple[int, str]]) -> None:
    found = [was_interrupted(ended(number, *ending)) for ending in endings]
    assert found == [False, *[True] * (len(endings) - 1)]


def test_as_many_interruptions_as_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill that came as the process ended was a stop, and not done again: 29 kills of 30."""
    endings = {number: itertools.cycle(each) for number, each in ENDINGS.items()}

    class Rigged:
        """A process that waits for its signal, if it is to get one."""

        def __init__(self, words: list[str], **_: Any) -> None:
            self.returncode, self._said = 0, ""
            if json.loads(words[3])["place"] != "nowhere":
                self.send_signal(signal.SIGKILL)

        def communicate(self, timeout: float | None = None) -> tuple[str, str]:
            if timeout is not None:
                raise subprocess.TimeoutExpired("", timeout)
            return "", self._said

        def send_signal(self, number: int) -> None:
            self.returncode, self._said = next(endings[number])

    monkeypatch.setattr(interrupted_run.subprocess, "Popen", Rigged)
    monkeypatch.setattr(resume, "differences", lambda *_: [])
    found = resume.measure(tmp_path, threads=2, kills=9, stops=5, seed=0)
    assert (found["kills"], found["stops"]) == (9, 5)


def test_a_stop_before_a_step_does_not_lose_what_a_kill_lost() -> None:
    """SIGTERM amid the imports, after a kill: the steps after its checkpoint are the kill's."""
    killed = ended(signal.SIGKILL, -signal.SIGKILL, logged=7, committed=5)
    stopped = ended(signal.SIGTERM, -signal.SIGTERM, logged=7, committed=5)
    found = counts([killed, stopped])
    assert (found["kills"], found["stops"]) == (1, 1)
    assert found["most steps done again after a kill"] == 2
    assert found["most steps done again after a stop"] == 0
    late = stopped._replace(logged=8)
    assert counts([killed, late])["most steps done again after a stop"] == 3
