"""Which device runs, which dtype suits it, and a loud word when an accelerator lies unused."""

import functools
import os
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def resolve_dtype(name: str, device: jax.Device) -> jnp.dtype:
    """The dtype called `name`; "auto" asks the device.

    bfloat16 on TPUs and on GPUs of compute capability 8.0 or more. float32 on CPUs, where bfloat16
    decoding is slower, and on older GPUs, which have no bfloat16 units.

    Raises:
      ValueError: another name.
    """
    if name == "auto":
        return jnp.dtype(jnp.bfloat16 if _has_bfloat16(device) else jnp.float32)
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, expected 'auto', 'float32' or 'bfloat16'")
    return jnp.dtype(DTYPES[name])


def _has_bfloat16(device: jax.Device) -> bool:
    if device.platform == "gpu":
        # NVIDIA's are such as "9.0"; AMD's, such as "gfx942", are no number.
        major = device.compute_capability.partition(".")[0]
        return major.isdecimal() and int(major) >= 8
    return device.platform == "tpu"


@functools.cache
def announce(device: jax.Device, dtype_name: str) -> None:
    """Say once per process, on stderr, where the model runs; warn when that is a fallback."""
    print(f"jaxcoder: {device.platform} ({device.device_kind}), {dtype_name}", file=sys.stderr)
    unused = unused_accelerator() if device.platform == "cpu" else None
    if unused:
        warnings.warn(
            f"running on CPU although this machine has {unused}. Install JAX for it: "
            f'pip install "jax[{"tpu" if "TPU" in unused else "cuda12"}]", '
            "or set JAX_PLATFORMS=cpu to say that CPU is meant",
            RuntimeWarning,
            stacklevel=3,
        )


def unused_accelerator(root: Path = Path("/")) -> str | None:
    """What accelerator the machine shows although JAX runs on CPU; None if that was asked for."""
    if "cpu" in os.environ.get("JAX_PLATFORMS", "").split(","):
        return None
    if (root / "dev/nvidia0").exists() or (root / "proc/driver/nvidia/version").exists():
        return "an NVIDIA GPU"
    if (root / "dev/accel0").exists() or {"TPU_NAME", "COLAB_TPU_ADDR"} & os.environ.keys():
        return "a TPU"
    return None
