"""One .safetensors file: what is written comes back, and what is odd is refused by name.

The table of damaged files is in test_broken_checkpoints; here are the properties of the module.
"""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from checkpoint_files import join_file, split_file

from jaxcoder.errors import CheckpointError
from jaxcoder.safetensors_file import open_tensors, read_header, read_tensor, write_safetensors
from jaxcoder.safetensors_header import TensorInfo


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_dtype_comes_back_bit_for_bit(path: Path, dtype: type) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 6 * 4 * np.dtype(dtype).itemsize, np.uint8)
    array = bits.view(dtype).reshape(6, 4)
    write_safetensors(path, {"a": array})
    back = read_tensor(path, "a")
    assert back.dtype == array.dtype and back.shape == (6, 4)
    assert back.tobytes() == array.tobytes()


def test_header_gives_dtype_shape_range_and_metadata(path: Path) -> None:
    write_safetensors(path, {"a": np.zeros((2, 3), np.float32)}, metadata={"format": "np"})
    header = read_header(path)
    assert header.tensors == {"a": TensorInfo("F32", (2, 3), 0, 24)}
    assert header.metadata == {"format": "np"}


def test_metadata_says_pt_by_default(path: Path) -> None:
    """transformers refuses a file whose metadata has no known format."""
    write_safetensors(path, {"a": np.zeros(1, np.float32)})
    assert read_header(path).metadata == {"format": "pt"}


@pytest.mark.parametrize("layout", ["transposed", "strided", "fortran", "big-endian"])
def test_any_memory_layout_is_written_in_row_order(path: Path, layout: str) -> None:
    """safetensors 0.8.0 writes the memory of a view as it lies: wrong numbers, no error."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = {
        "transposed": array.T,
        "strided": array[:, ::2],
        "fortran": np.asfortranarray(array),
        "big-endian": array.astype(">f4"),
    }[layout]
    write_safetensors(path, {"a": view})
    np.testing.assert_array_equal(read_tensor(path, "a"), view)


@pytest.mark.skipif(safetensors.__version__ != "0.8.0", reason="a bug of safetensors 0.8.0")
def test_the_library_alone_writes_a_view_wrongly(path: Path) -> None:
    """Control of the test above: without our copy the same view comes back scrambled."""
    view = np.arange(12, dtype=np.float32).reshape(3, 4).T
    safetensors.numpy.save_file({"a": view}, path)
    assert not np.array_equal(read_tensor(path, "a"), view)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_of_a_written_file_follows_the_umask(path: Path, umask: int, mode: int) -> None:
    """The library leaves 0600, which locks colleagues out of a shared folder."""
    before = os.umask(umask)
    try:
        write_safetensors(path, {"a": np.zeros(1, np.float32)})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_a_written_file_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    write_safetensors(path, {"a": np.zeros(1, np.float32)})
    assert synced == [path.stat().st_ino]


def test_writer_refuses_a_dtype_the_reader_would(path: Path) -> None:
    with pytest.raises(ValueError, match="tensor 'a' is float64, expected one of float32"):
        write_safetensors(path, {"a": np.zeros(1)})
    assert not path.exists()


def test_writer_reports_the_operating_system(path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        write_safetensors(path.parent / "absent" / "x", {"a": np.zeros(1, np.float32)})


def test_an_unknown_tensor_is_named(path: Path) -> None:
    write_safetensors(path, {"a": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has no tensor 'b'"):
        read_tensor(path, "b")


@pytest.mark.parametrize("length", range(0x20, 0x90))
def test_a_length_that_looks_like_a_magic_number_is_not_one(path: Path, length: int) -> None:
    """A header of 60 bytes begins with '<', one of 128 as a pickle; neither is what it seems."""
    entry = b'{"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'
    if length >= len(entry):
        join_file(path, entry.ljust(length), b"")
        assert read_header(path).tensors == {"a": TensorInfo("F16", (0,), 0, 0)}
    path.write_bytes(length.to_bytes(8, "little") + entry[:20])
    with pytest.raises(CheckpointError, match="cut off"):
        read_header(path)


def test_masks_of_other_dtypes_are_tolerated_where_they_are_skipped(path: Path) -> None:
    """Old GPT-2 files keep causal masks as bytes; a weight of that dtype is refused."""
    entry = {"dtype": "U8", "shape": [1, 1, 2, 2], "data_offsets": [0, 4]}
    join_file(path, {"h.0.attn.bias": entry}, bytes(4))
    assert read_header(path).tensors["h.0.attn.bias"].dtype == "U8"
    join_file(path, {"h.0.attn.c_attn.bias": entry}, bytes(4))
    with pytest.raises(CheckpointError, match="dtype 'U8' is not supported, expected one of F32"):
        read_header(path)


def test_all_problems_are_listed_up_to_twenty(path: Path) -> None:
    write_safetensors(path, {f"t{i:02d}": np.zeros(1, np.float32) for i in range(25)})
    header, data = split_file(path)
    for name, entry in header.items():
        if name != "__metadata__":
            entry["dtype"] = "F64"
    join_file(path, header, data)
    with pytest.raises(CheckpointError, match="25 problems") as caught:
        read_header(path)
    message = str(caught.value)
    assert "'t00'" in message and "'t19'" in message and "'t20'" not in message
    assert "and 5 more" in message


class Panic(BaseException):
    """As a Rust panic arrives in Python: not an Exception."""


def test_whatever_the_library_raises_becomes_one_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_safetensors(path, {"a": np.zeros(1, np.float32)})

    def panic(*_: object, **__: object) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr(safetensors, "safe_open", panic)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be opened \(Panic: ind"):
        read_tensor(path, "a")


def test_an_interrupt_stays_an_interrupt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(path, {"a": np.zeros(1, np.float32)})

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors, "safe_open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_tensor(path, "a")


def test_a_file_replaced_during_loading_is_named(path: Path) -> None:
    """Half of the old and half of the new file would be a model that nobody trained."""
    write_safetensors(path, {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    with open_tensors(path, read_header(path)) as read:
        assert read("a").shape == (1,)
        other = path.with_name("other")
        write_safetensors(other, {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)})
        other.replace(path)
        with pytest.raises(CheckpointError, match="changed while tensor 'b' was read"):
            read("b")


def test_a_file_rewritten_in_place_during_loading_is_named(path: Path) -> None:
    """Same file, same size, other content: only the time of its last change tells."""
    write_safetensors(path, {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    with open_tensors(path, read_header(path)) as read:
        assert read("a").shape == (1,)
        before = path.stat()
        raw = path.read_bytes()
        with path.open("r+b") as file:
            file.write(raw[:-4] + np.ones(1, np.float32).tobytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
        assert path.stat().st_ino == before.st_ino
        with pytest.raises(CheckpointError, match="changed while tensor 'b' was read"):
            read("b")


def test_a_file_cut_off_during_loading_is_named(path: Path) -> None:
    """Behind a memory map the same cut kills the process with SIGBUS."""
    write_safetensors(path, {name: np.zeros(1 << 16, np.float32) for name in "ab"})
    with open_tensors(path, read_header(path)) as read:
        os.truncate(path, 1 << 18)
        with pytest.raises(CheckpointError, match=r"tensor 'b' cannot be read"):
            read("b")


def test_a_file_removed_during_loading_is_named(path: Path) -> None:
    write_safetensors(path, {"a": np.zeros(1, np.float32)})
    with open_tensors(path, read_header(path)) as read:
        path.unlink()
        with pytest.raises(CheckpointError, match=r"tensor 'a' cannot be read \(FileNotFound"):
            read("a")


def test_bfloat16_loads_where_nothing_else_imported_ml_dtypes(path: Path) -> None:
    write_safetensors(path, {"a": np.arange(3).astype(ml_dtypes.bfloat16)})
    code = (
        "import sys; from pathlib import Path; from jaxcoder.safetensors_file import read_tensor\n"
        "array = read_tensor(Path(sys.argv[1]), 'a'); print(array.dtype, array.astype(float))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.stdout == "bfloat16 [0. 1. 2.]\n", done.stderr
