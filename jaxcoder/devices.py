"""Which device runs, which dtype suits it, and a loud word when an accelerator lies unused."""

import contextlib
import functools
import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp

from .diagnostics import say

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# What jax._src.hardware_utils looks at, and the driver's own word.
_NVIDIA_FILES = ("dev/nvidia0", "dev/nvidiactl", "proc/driver/nvidia/version")
_WSL_GPU_FILE = "dev/dxg"
# Google's vendor alone is no TPU: network cards and disks of its machines have it too.
_GOOGLE_VENDOR = "0x1ae0"
_TPU_DEVICES = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")


def default_device() -> jax.Device:
    """The device that JAX runs on by default.

    Raises:
      ValueError: JAX cannot start the platform it was told to use.
    """
    try:
        return jax.devices()[0]
    # Which of the two it is depends on the platform and the version.
    except (RuntimeError, AssertionError) as exc:
        # pyrefly: ignore[missing-attribute]: JAX gives its config these attributes as it starts
        platforms = jax.config.jax_platforms
        reason = f" ({str(exc).splitlines()[0]})" if str(exc) else ""
        raise ValueError(
            f"JAX_PLATFORMS is {platforms!r}, which JAX cannot start here{reason}; install JAX for "
            'it, such as pip install "jax[cuda12]", or set JAX_PLATFORMS=cpu, or unset it'
        ) from exc


def resolve_dtype(name: str, device: jax.Device) -> jnp.dtype:
    """The dtype called `name`; "auto" asks the device.

    bfloat16 on TPUs and on GPUs of compute capability 8.0 or more. float32 on CPUs, where bfloat16
    decoding is slower, and on older GPUs, which have no bfloat16 units.

    Raises:
      ValueError: another name.
    """
    if name == "auto":
        return jnp.dtype(jnp.bfloat16 if _has_bfloat16(device) else jnp.float32)
    if not isinstance(name, str) or name not in DTYPES:
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
    """Say once per process, on stderr, where the model runs; warn when that is a fallback.

    Args:
      device: where it runs.
      dtype_name: of its products.
    """
    say(f"jaxcoder: {device.platform} ({device.device_kind}), {dtype_name}")
    unused = unused_accelerator() if device.platform == "cpu" else None
    if unused:
        warnings.warn(_fallback(unused), RuntimeWarning, stacklevel=3)


def checked_device() -> jax.Device:
    """`default_device`, unless that is a CPU although the machine shows an accelerator.

    For notebooks, where a warning scrolls away and the work takes a hundred times longer.

    Raises:
      RuntimeError: JAX has fallen back to the CPU.
      ValueError: JAX cannot start the platform it was told to use.
    """
    device = default_device()
    unused = unused_accelerator() if device.platform == "cpu" else None
    if unused:
        raise RuntimeError(
            f"{_fallback(unused)}; an accelerator that another process holds is not seen either: "
            "end that process, or restart the notebook's runtime"
        )
    return device


def _fallback(unused: str) -> str:
    return (
        f"running on CPU although this machine has {unused}. Install JAX for it: "
        f'pip install "jax[{"tpu" if "TPU" in unused else "cuda12"}]", '
        "or set JAX_PLATFORMS=cpu to say that CPU is meant"
    )


def unused_accelerator(root: Path = Path("/")) -> str | None:
    """What accelerator the machine shows although JAX runs on CPU; None if that was asked for."""
    if "cpu" in os.environ.get("JAX_PLATFORMS", "").split(","):
        return None
    if any((root / name).exists() for name in _NVIDIA_FILES):
        return "an NVIDIA GPU"
    if {"TPU_NAME", "COLAB_TPU_ADDR"} & os.environ.keys() or _has_tpu(root):
        return "a TPU"
    if (root / _WSL_GPU_FILE).exists():
        return "a GPU, shared with Windows"
    return None


def _has_tpu(root: Path) -> bool:
    if (root / "dev/accel0").exists():
        return True
    for card in (root / "sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):  # a card may go, or hide, while it is looked at
            vendor, device = ((card / name).read_text().strip() for name in ("vendor", "device"))
            if vendor == _GOOGLE_VENDOR and device in _TPU_DEVICES:
                return True
    return False
