"""What the programs need of a TPU's memory, found by compiling them on a machine without one.

libtpu is the compiler as much as the driver: it describes a slice by its name, and JAX compiles for
one of its devices, which nothing can run on. A program that does not fit is refused as it would be
on the TPU. Bytes are the compiler's own; its estimates of time are not used, they are not
trustworthy.

To compile the full train step takes minutes and 10 GB of memory, which the compiler keeps; so each
program is compiled in a process of its own.
"""

import dataclasses
import importlib.util
import multiprocessing
import platform
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax

from jaxcoder.config import ModelConfig
from jaxcoder.diagnostics import say
from jaxcoder.durable import replace_file
from jaxcoder.errors import ConfigError
from jaxcoder.json_file import json_bytes
from jaxcoder.problems import raise_if_any

from .tpu_programs import (
    DTYPE,
    described_device,
    lower_decode_chunk,
    lower_prefill,
    lower_train_step,
)

Program = Literal["train", "prefill", "decode"]


@dataclass(frozen=True)
class PlanConfig:
    """The programs to compile, and for which TPUs."""

    topologies: tuple[str, ...] = ("v5e:2x2", "v6e:2x2")
    """Slices, as libtpu names them; one device of each is used."""
    programs: tuple[Program, ...] = ("train", "prefill", "decode")
    """What to compile: the train step, the prefill of a prompt's longest piece, a decode chunk."""
    rows: int = 1
    """Rows of a batch (B)."""
    seq_len: int = 8192
    """Tokens a row predicts in the train step (T); slots of the cache."""
    n_layer: int | None = None
    """Blocks, fewer than the model's for a quick answer; None: all of them."""
    remat: Literal["none", "block"] = "block"
    """Train step: what the backward pass computes again, nothing or each block."""
    dropout: bool = True
    """Train step: whether the model's dropout acts."""
    loss_chunk: int = 512
    """Train step: tokens whose logits are held at once."""
    out: str = ""
    """JSON file to write; empty: none."""


@dataclass(frozen=True)
class Memory:
    """What a program takes of a device's memory, in bytes."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    """Of the output, what lies where a donated argument lay."""
    temp_bytes: int
    code_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it, at the same time."""
        kept = self.argument_bytes + self.output_bytes - self.alias_bytes
        return kept + self.temp_bytes + self.code_bytes


@dataclass(frozen=True)
class Plan:
    """One program compiled for one device."""

    program: Program
    topology: str
    device_kind: str
    memory: Memory | None
    """None where the program does not fit."""
    refusal: str
    """What the compiler said then."""
    compile_seconds: float

    def __str__(self) -> str:
        """One line, in GiB."""
        head = f"{self.topology} ({self.device_kind}) {self.program}:"
        if self.memory is None:
            return f"{head} does not fit: {self.refusal}"
        fields = dataclasses.asdict(self.memory) | {"total_bytes": self.memory.total_bytes}
        sizes = (f"{name[:-6]} {count / 2**30:.3f}" for name, count in fields.items())
        return f"{head} {', '.join(sizes)} GiB; compiled in {self.compile_seconds:.0f} s"


def main(config: PlanConfig, model: ModelConfig) -> int:
    """Compile, print a line for each program, and write `config.out`; 1 if one does not fit.

    Raises:
      ConfigError: see `plan`.
    """
    plans = []
    for each in plan(config, model):
        say(str(each))
        plans.append(each)
        # After each: the next one may take minutes.
        if config.out:
            path = Path(config.out)
            path.touch()
            replace_file(path, json_bytes(report(config, model, plans)))
    return int(any(each.memory is None for each in plans))


def report(config: PlanConfig, model: ModelConfig, plans: list[Plan]) -> dict[str, Any]:
    """The plans with what they depend on, for a JSON file."""
    settings: dict[str, Any] = {**dataclasses.asdict(config)}
    del settings["out"]
    libraries = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "libtpu")}
    return {
        "versions": libraries | {"python": platform.python_version()},
        "settings": settings | {"dtype": DTYPE.name},
        "model": model.to_hf_config(),
        "plans": [
            dataclasses.asdict(each)
            | {"total_bytes": None if each.memory is None else each.memory.total_bytes}
            for each in plans
        ],
    }


def plan(config: PlanConfig, model: ModelConfig) -> Iterator[Plan]:
    """Compile the programs of `config` one after the other; each may take minutes.

    Raises:
      ConfigError: libtpu is absent, a topology is none, or sizes are outside the model's, before
        anything is compiled; or the compiler was killed.
    """
    _check(config, model)
    for topology in config.topologies:
        described_device(topology)
    model = dataclasses.replace(model, n_layer=config.n_layer or model.n_layer)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for topology in config.topologies:
            for program in config.programs:
                try:
                    yield pool.submit(_plan_one, program, topology, config, model).result()
                except BrokenProcessPool as exc:
                    raise ConfigError(
                        f"plan: the compiler of {program} for {topology} was killed, for want of "
                        "memory most likely: the full train step takes 10 GB; lower n_layer"
                    ) from exc


def _plan_one(program: Program, topology: str, config: PlanConfig, model: ModelConfig) -> Plan:
    device = described_device(topology)
    start = time.perf_counter()
    memory, refusal = _compile(_lower(program, config, model, device))
    seconds = round(time.perf_counter() - start, 1)
    return Plan(program, topology, device.device_kind, memory, refusal, seconds)


def _check(config: PlanConfig, model: ModelConfig) -> None:
    problems = []
    for name, value, most in (
        ("rows", config.rows, None),
        ("seq_len", config.seq_len, model.n_positions),
        ("n_layer", config.n_layer, model.n_layer),
        ("loss_chunk", config.loss_chunk, None),
    ):
        if value is not None and (value < 1 or (most is not None and value > most)):
            limit = "" if most is None else f" and at most the model's {most}"
            problems.append(f"{name} is {value}, expected at least 1{limit}")
    for topology in config.topologies:
        # An empty name would make libtpu search the network for the TPU.
        if not re.fullmatch(r"\w+:\d+(x\d+)+", topology):
            problems.append(f"topology is {topology!r}, expected a slice such as v5e:2x2")
    if config.out and not Path(config.out).parent.is_dir():
        problems.append(f"out is {config.out}, expected a file in a folder that exists")
    raise_if_any(problems, "plan", remedy="change it", error=ConfigError)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "plan: libtpu is not installed, it has the compiler for TPUs; install the extra "
            'tpu-plan (pip install -e ".[tpu-plan]") or run `make test-tpu-plan`'
        )


def _compile(lowered: jax.stages.Lowered) -> tuple[Memory | None, str]:
    """The memory of a program, or None and the compiler's refusal."""
    try:
        analysis = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as exc:
        message = str(exc).splitlines()[0]
        if not message.startswith("RESOURCE_EXHAUSTED"):
            raise
        return None, message
    if analysis is None:
        raise ConfigError("plan: this compiler reports no memory; use a jaxlib and libtpu that do")
    memory = Memory(
        argument_bytes=analysis.argument_size_in_bytes,
        output_bytes=analysis.output_size_in_bytes,
        alias_bytes=analysis.alias_size_in_bytes,
        temp_bytes=analysis.temp_size_in_bytes,
        code_bytes=analysis.generated_code_size_in_bytes,
    )
    return memory, ""


def _lower(
    program: Program, config: PlanConfig, model: ModelConfig, device: jax.Device
) -> jax.stages.Lowered:
    rows, length = config.rows, config.seq_len
    if program == "train":
        if not config.dropout:
            model = dataclasses.replace(model, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
        return lower_train_step(
            model,
            device,
            rows=rows,
            seq_len=length,
            remat=config.remat == "block",
            loss_chunk=config.loss_chunk,
        )
    lower = lower_prefill if program == "prefill" else lower_decode_chunk
    return lower(model, device, rows=rows, capacity=length)
