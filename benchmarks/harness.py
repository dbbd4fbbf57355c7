"""What every benchmark shares: the machine's name, medians, interleaving, the result file.

JAX, and what imports it, is imported in functions: `train_step` measures the memory of a process
that has PyTorch alone.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcoder.config import ModelConfig
    from jaxcoder.model import GPTBigCode

RESULTS = Path(__file__).parent / "results"

Measurement = dict[str, float]


def environment() -> dict[str, Any]:
    """Date, device, processor and versions that a figure depends on."""
    import jax

    device = jax.devices()[0]
    return {
        "date": date.today().isoformat(),
        "device": f"{device.platform} ({device.device_kind})",
        "processor": _processor(),
        "cores": _cores(),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("jax", "flax", "torch", "transformers")},
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} " + " ".join(sys.argv[1:]),
    }


def interleaved(
    measures: dict[str, Callable[[], Measurement]], *, rounds: int
) -> dict[str, list[Measurement]]:
    """Run each measure once to warm up, then all in turn, `rounds` times: A B A B ...

    A machine's speed drifts, so only figures of one round are compared.
    """
    for name, measure in measures.items():
        print(f"warming up: {name}", file=sys.stderr)
        measure()
    results: dict[str, list[Measurement]] = {name: [] for name in measures}
    for number in range(rounds):
        for name, measure in measures.items():
            result = measure()
            results[name].append(result)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in result.items())
            print(f"round {number + 1}: {name}: {shown}", file=sys.stderr)
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(
    results: dict[str, list[Measurement]], *, ours: str, others: Sequence[str]
) -> dict[str, Any]:
    """Spread of every figure, and of the ratio ours / other within each round."""
    summary: dict[str, Any] = {
        name: {key: spread([run[key] for run in runs]) for key in runs[0]}
        for name, runs in results.items()
    }
    summary["ratios"] = {
        f"{ours} / {other}": {
            key: spread(
                [a[key] / b[key] for a, b in zip(results[ours], results[other], strict=True)]
            )
            for key in results[other][0]
            if key in results[ours][0]
        }
        for other in others
        if other in results
    }
    return summary


def write_result(name: str, content: dict[str, Any], *, out: Path | None) -> None:
    """Write `content` with the environment to `out`, or to results/NAME.json; print it last."""
    result = {"environment": environment()} | content
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def full_shape(dtype: str) -> "tuple[GPTBigCode, dict, dict]":
    """Our model at the published 164M shape, its parameters on the device, and the HF tensors."""
    import jax

    from conversion.synthetic import synthetic_tensors
    from jaxcoder.config import ModelConfig
    from jaxcoder.hf_names import params_from_hf
    from jaxcoder.model import GPTBigCode

    config = ModelConfig.tiny_starcoder()
    tensors = synthetic_tensors(config)
    kind = jax.numpy.dtype(dtype)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(leaf, kind), params_from_hf(tensors, config)
    )
    return GPTBigCode(config, dtype=kind, param_dtype=kind), params, tensors


def torch_model(
    config: "ModelConfig", tensors: dict, dtype: str, *, device: str | None = None
) -> Any:
    """`torch_model_of` the fields of `config`."""
    return torch_model_of(config.to_hf_config(), tensors, dtype, device=device)


def torch_model_of(
    fields: Mapping[str, Any], tensors: dict, dtype: str, *, device: str | None = None
) -> Any:
    """The same weights in transformers; None, saying so, where torch or transformers is absent.

    Args:
      fields: the model's config.json.
      tensors: by their Hugging Face names.
      dtype: of the weights and the computation.
      device: torch's name of it; None takes cuda where JAX runs on a GPU and torch can, else cpu.

    Raises:
      ValueError: transformers does not know a tensor, or lacks one other than the tied head.
    """
    try:
        import torch
        import transformers
    except ImportError as exc:
        print(f"{exc.name} is not installed: PyTorch is not measured", file=sys.stderr)
        return None
    shape = {name: value for name, value in fields.items() if name != "architectures"}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**shape), attn_implementation="sdpa"
    )
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = sorted(set(missing) - {"lm_head.weight"})
    if missing or unexpected:
        raise ValueError(
            f"transformers {transformers.__version__}: tensors missing {missing}, unexpected "
            f"{unexpected}, expected none but lm_head.weight; compare the names with hf_names.py"
        )
    if device is None:
        import jax

        on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        device = "cuda" if on_gpu else "cpu"
    return model.to(device, getattr(torch, dtype)).eval()


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
