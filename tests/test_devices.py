"""Which dtype a device gets, and what is said where."""

import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from jaxcoder import Generator
from jaxcoder.devices import (
    announce,
    checked_device,
    default_device,
    resolve_dtype,
    unused_accelerator,
)

pytest_plugins = ["tiny_checkpoint"]


class Device(NamedTuple):
    """What is asked of a `jax.Device`; that of a CPU has no compute capability."""

    platform: str
    device_kind: str


class Gpu(NamedTuple):
    """The same of a GPU."""

    compute_capability: str
    platform: str = "gpu"
    device_kind: str = "a GPU"


CPU, TPU = Device("cpu", "cpu"), Device("tpu", "TPU v5 lite")


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a process that has announced nothing and was asked for no platform."""
    announce.cache_clear()
    for name in ("JAX_PLATFORMS", "TPU_NAME", "COLAB_TPU_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (CPU, "float32"),
        (TPU, "bfloat16"),
        (Gpu("7.5"), "float32"),
        (Gpu("8.0"), "bfloat16"),
        (Gpu("9.0"), "bfloat16"),
        (Gpu("10.0"), "bfloat16"),
        (Gpu("gfx942"), "float32"),
    ],
)
def test_auto_dtype_is_what_suits_the_device(device: Device | Gpu, expected: str) -> None:
    """10.0 is more than 8.0, which text would deny; AMD's name of an architecture was a crash."""
    assert resolve_dtype("auto", device).name == expected


@pytest.mark.parametrize("device", [CPU, TPU, Gpu("7.5")])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_named_dtype_is_had_on_any_device(device: Device | Gpu, name: str) -> None:
    assert resolve_dtype(name, device).name == name


@pytest.mark.parametrize("name", ["float16", "", "f32", "Auto", None, ["float32"], {}])
def test_other_dtypes_are_refused(name: object) -> None:
    """A list was a TypeError: it has no hash."""
    with pytest.raises(ValueError, match=r"expected 'auto', 'float32' or 'bfloat16'") as caught:
        resolve_dtype(name, CPU)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Unable to initialize\nat length"), r" \(Unable to initialize\);"),
        (AssertionError(), "here;"),
    ],
)
def test_platform_that_cannot_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """JAX raises either, by version and platform; the second one says nothing."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ValueError, match=f"JAX_PLATFORMS is .*{reason}.* or set JAX_PLATF") as told:
        default_device()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], None),
        (["dev/null"], None),
        (["dev/nvidiactl"], "an NVIDIA GPU"),
        (["dev/nvidia0"], "an NVIDIA GPU"),
        (["proc/driver/nvidia/version"], "an NVIDIA GPU"),
        (["dev/dxg"], "a GPU, shared with Windows"),
        (["dev/dxg", "dev/nvidia0"], "an NVIDIA GPU"),
        (["dev/accel0"], "a TPU"),
    ],
)
def test_accelerator_is_seen_by_its_files(
    tmp_path: Path, files: list[str], expected: str | None
) -> None:
    """Containers may show the control file of a GPU alone, and WSL2 shows another one."""
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert unused_accelerator(tmp_path) == expected


@pytest.mark.parametrize(
    ("vendor", "device", "expected"),
    [
        ("0x1ae0", "0x0063", "a TPU"),
        ("0x1ae0", "0x0042", None),
        ("0x8086", "0x0063", None),
        ("0x1ae0", None, None),
    ],
)
def test_tpu_is_seen_on_the_bus(
    tmp_path: Path, vendor: str, device: str | None, expected: str | None
) -> None:
    """The network card of Google's machines, 0x0042, has the vendor too and is no TPU."""
    for slot, card in {"0": ("0x8086", "0x1234"), "1": (vendor, device)}.items():
        folder = tmp_path / "sys/bus/pci/devices" / slot
        folder.mkdir(parents=True)
        for name, value in zip(("vendor", "device"), card, strict=True):
            if value is not None:
                (folder / name).write_text(value + "\n")
    assert unused_accelerator(tmp_path) == expected


@pytest.mark.parametrize("name", ["TPU_NAME", "COLAB_TPU_ADDR"])
def test_tpu_is_seen_by_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "somewhere")
    assert unused_accelerator(tmp_path) == "a TPU"


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [("cpu", None), ("cuda,cpu", None), ("", "a TPU"), ("cuda", "a TPU")],
)
def test_asking_for_cpu_means_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platforms: str, expected: str | None
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("TPU_NAME", "somewhere")
    assert unused_accelerator(tmp_path) == expected


def test_device_is_said_once_on_standard_error(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for _ in range(2):
        Generator.from_pretrained(tiny_checkpoint)
    kind = jax.devices()[0].device_kind
    assert capsys.readouterr() == ("", f"jaxcoder: cpu ({kind}), float32\n")


@pytest.mark.parametrize(
    ("found", "remedy"),
    [("a TPU", r'pip install "jax\[tpu\]"'), ("an NVIDIA GPU", r'pip install "jax\[cuda12\]"')],
)
def test_unused_accelerator_is_a_warning_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, found: str, remedy: str
) -> None:
    """Running on the CPU beside a GPU is a fallback, and no fallback is silent."""
    monkeypatch.setattr("jaxcoder.devices.unused_accelerator", lambda: found)
    with pytest.warns(RuntimeWarning, match=f"although this machine has {found}.*{remedy}"):
        announce(CPU, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        announce(CPU, "float32")


def test_no_warning_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcoder.devices.unused_accelerator", lambda: "an NVIDIA GPU")
    announce(TPU, "bfloat16")


@pytest.mark.parametrize("found", ["a TPU", "an NVIDIA GPU"])
def test_fallback_to_the_cpu_is_an_error_where_it_is_checked(
    monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """In a notebook a warning scrolls away, and a cell of seconds takes an hour."""
    monkeypatch.setattr("jaxcoder.devices.unused_accelerator", lambda: found)
    with pytest.raises(RuntimeError, match=f"although this machine has {found}.*restart"):
        checked_device()


def test_device_that_was_asked_for_passes_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU of a machine that has no other device, and an accelerator where there is one."""
    monkeypatch.setattr("jaxcoder.devices.unused_accelerator", lambda: None)
    assert checked_device() == jax.devices()[0]
    monkeypatch.setattr("jaxcoder.devices.default_device", lambda: TPU)
    monkeypatch.setattr("jaxcoder.devices.unused_accelerator", lambda: "a TPU")
    assert checked_device() == TPU
