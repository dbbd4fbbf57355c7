"""Checkpoints come back bit for bit, appear whole or not at all, and load in bounded memory."""

import dataclasses
import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import MQA, edit_json, random_tensors, snapshot, write_plain

from jaxcoder import checkpoint, durable
from jaxcoder.checkpoint import load_checkpoint, save_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError
from jaxcoder.hf_names import Params, params_from_hf, params_to_hf
from jaxcoder.safetensors_file import read_header, read_tensor, write_safetensors

CONFIGS = {
    "mqa": MQA,
    "mha": dataclasses.replace(MQA, multi_query=False),
    "gpt2": dataclasses.replace(MQA, multi_query=False, model_type="gpt2"),
    "untied": dataclasses.replace(MQA, tie_word_embeddings=False),
}


def random_params(config: ModelConfig = MQA, dtype: str = "float32") -> Params:
    return params_from_hf(random_tensors(config, dtype), config)


def assert_same_bits(params: Params, expected: Params) -> None:
    left, right = jax.tree.flatten(params), jax.tree.flatten(expected)
    assert left[1] == right[1]
    for one, other in zip(left[0], right[0], strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_bytes", [None, 2000])
@pytest.mark.parametrize("layout", CONFIGS)
def test_round_trip_is_bit_equal(
    tmp_path: Path, layout: str, shard_bytes: int | None, dtype: str
) -> None:
    config = CONFIGS[layout]
    params = random_params(config, dtype)
    folder = tmp_path / "saved"
    save_checkpoint(folder, config, params, max_shard_bytes=shard_bytes)
    assert (folder / "model.safetensors.index.json").exists() == (shard_bytes is not None)
    loaded_config, loaded = load_checkpoint(str(folder))
    assert loaded_config == config
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    assert_same_bits(loaded, params)


def test_folder_holds_the_expected_files_with_the_mode_of_the_umask(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text('{"model": {}}')
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "saved", MQA, random_params(), tokenizer_file=tokenizer)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert modes == dict.fromkeys(
        ["config.json", "model.safetensors", "tokenizer.json", "jaxcoder_manifest.json"], 0o640
    )
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


def test_manifest_has_the_hash_of_every_file_and_tensor(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    folder = tmp_path / "saved"
    save_checkpoint(folder, MQA, random_params(), tokenizer_file=tokenizer, max_shard_bytes=3000)
    manifest = json.loads((folder / "jaxcoder_manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "tokenizer.json", "model.safetensors.index.json")
    }
    tensors = random_tensors(MQA)
    assert manifest["tensors"] == {
        name: {
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
            "shape": list(array.shape),
            "dtype": "F32",
        }
        for name, array in tensors.items()
    }


def test_shards_keep_to_their_limit_and_the_index_to_the_shards(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_checkpoint(folder, MQA, random_params(), max_shard_bytes=2000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    sizes = [
        [info.end - info.begin for info in read_header(file).tensors.values()] for file in files
    ]
    assert all(sum(size) <= 2000 for size in sizes)
    assert sum(map(sum, sizes)) == index["metadata"]["total_size"]


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("held", ["float32", "bfloat16", "float16"])
def test_cast_equals_the_cast_of_each_tensor(tmp_path: Path, stored: str, held: str) -> None:
    params = random_params(dtype=stored)
    save_checkpoint(tmp_path / "saved", MQA, params)
    _, loaded = load_checkpoint(tmp_path / "saved", dtype=held)
    assert_same_bits(loaded, jax.tree.map(lambda leaf: leaf.astype(held), params))


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'float64', expected one of float32, bfloat16"):
        load_checkpoint(tmp_path, dtype="float64")


def test_arrays_own_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU a JAX array may share NumPy's memory; then a file mapped there must outlive it."""
    write_plain(tmp_path / "plain", MQA, random_tensors(MQA))
    aligned: list[np.ndarray] = []

    def read_aligned(folder: object, config: ModelConfig, *_: object) -> Any:
        for name, leaf in (("a", (64, 64)), ("b", (64,))):
            buffer = np.zeros(64 * 64 * 4 + 64, np.uint8)
            start = -buffer.ctypes.data % 64
            size = int(np.prod(leaf)) * 4
            aligned.append(buffer[start : start + size].view(np.float32).reshape(leaf))
            yield (name,), aligned[-1]

    monkeypatch.setattr(checkpoint, "iter_params", read_aligned)
    _, params = load_checkpoint(tmp_path / "plain")
    for array in aligned:
        array += 1
    assert all(float(leaf.max()) == 0 for leaf in jax.tree.leaves(params))
    # Control: device_put of the same arrays does share on this backend.
    shared = jax.device_put(aligned[0])
    assert shared.unsafe_buffer_pointer() == aligned[0].ctypes.data


def test_one_tensor_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all, then placing all, would hold a checkpoint twice."""
    write_plain(tmp_path / "plain", MQA, random_tensors(MQA))
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    inner = checkpoint.value_problem

    def count(name: str, array: np.ndarray) -> str | None:
        nonlocal most
        alive.append(weakref.ref(array))
        most = max(most, sum(reference() is not None for reference in alive))
        return inner(name, array)

    monkeypatch.setattr(checkpoint, "value_problem", count)
    load_checkpoint(tmp_path / "plain")
    assert len(alive) == 28
    assert most <= 2  # the generator still holds the tensor before, until the next is read


def test_names_without_prefix_and_mask_buffers(tmp_path: Path) -> None:
    """As a bare GPTBigCodeModel, and as old GPT-2 files with their causal masks, are stored."""
    tensors = random_tensors(MQA)
    bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    bare["h.1.attn.masked_bias"] = np.full((), -1e4, np.float32).reshape(1)
    write_plain(tmp_path / "plain", MQA, bare)
    _, params = load_checkpoint(tmp_path / "plain")
    assert_same_bits(params, params_from_hf(tensors, MQA))


@pytest.mark.parametrize("stored", ["both", "head only"])
def test_a_tied_head_may_be_stored_beside_or_instead_of_the_embedding(
    tmp_path: Path, stored: str
) -> None:
    tensors = random_tensors(MQA)
    embedding = tensors["transformer.wte.weight"]
    on_disk = tensors | {"lm_head.weight": embedding}
    if stored == "head only":
        del on_disk["transformer.wte.weight"]
    write_plain(tmp_path / "plain", MQA, on_disk)
    _, params = load_checkpoint(tmp_path / "plain")
    assert_same_bits(params, params_from_hf(tensors, MQA))


def test_saved_arrays_of_any_layout_and_kind(tmp_path: Path) -> None:
    """Transposed views and JAX arrays are stored by value."""
    params = random_params()
    expected = params_to_hf(params, MQA)
    wte = np.asfortranarray(params["wte"]["weight"])
    wpe = jnp.array(params["wpe"]["weight"])
    changed = params | {"wte": {"weight": wte}, "wpe": {"weight": wpe}}
    save_checkpoint(tmp_path / "saved", MQA, changed)
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        stored = read_tensor(tmp_path / "saved" / "model.safetensors", name)
        assert stored.tobytes() == expected[name].tobytes()


def test_mixed_dtypes_keep_theirs(tmp_path: Path) -> None:
    params = random_params()
    params["ln_f"] = {key: leaf.astype("float16") for key, leaf in params["ln_f"].items()}
    save_checkpoint(tmp_path / "saved", MQA, params)
    assert_same_bits(load_checkpoint(tmp_path / "saved")[1], params)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "float32"


WRONG_TREES = {
    "missing": (lambda p: p["ln_f"].pop("bias"), "missing ln_f/bias"),
    "extra": (lambda p: p.update(lm_head={"weight": p["wte"]["weight"]}), "unexpected lm_head/wei"),
    "shape": (
        lambda p: p["wpe"].update(weight=p["wpe"]["weight"][:4]),
        r"wpe/weight is \[4, 12\], expected \[8, 12\]",
    ),
    "dtype": (
        lambda p: p["wpe"].update(weight=p["wpe"]["weight"].astype("float64")),
        "wpe/weight is float64, expected one of float32, bfloat16, float16",
    ),
    "nan": (
        lambda p: p["wpe"]["weight"].__setitem__((0, 0), np.nan),
        r"'transformer\.wpe\.weight' holds 1 NaN and 0 Inf",
    ),
}


@pytest.mark.parametrize("fault", WRONG_TREES)
def test_a_tree_that_would_not_load_is_not_saved(tmp_path: Path, fault: str) -> None:
    break_tree, message = WRONG_TREES[fault]
    params = random_params()
    break_tree(params)
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "saved", MQA, params)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "5GB"])
def test_shard_limit_is_checked(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(ValueError, match=r"max_shard_bytes is .*, expected a positive integer"):
        save_checkpoint(tmp_path / "saved", MQA, random_params(), max_shard_bytes=limit)


def test_a_missing_tokenizer_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.json: no such file"):
        save_checkpoint(
            tmp_path / "saved", MQA, random_params(), tokenizer_file=tmp_path / "absent.json"
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["full folder", "file", "dangling link", "link to empty folder"])
def test_an_existing_destination_is_left_alone(tmp_path: Path, kind: str) -> None:
    destination = tmp_path / "saved"
    if kind == "full folder":
        destination.mkdir()
        (destination / "notes.txt").write_text("mine")
    elif kind == "file":
        destination.write_text("mine")
    else:
        if kind == "link to empty folder":
            (tmp_path / "empty").mkdir()
        destination.symlink_to(tmp_path / "empty")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"saved: exists, expected a new or an empty folder"):
        save_checkpoint(destination, MQA, random_params())
    assert snapshot(tmp_path) == before


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for destination in (tmp_path / "empty", tmp_path / "a" / "b" / "new"):
        save_checkpoint(destination, MQA, random_params())
        assert load_checkpoint(destination)[0] == MQA


@pytest.mark.parametrize("limit", [0, 1, 300, 3000, 5000, 9000, 9600])
def test_a_file_that_cannot_grow_leaves_nothing_behind(tmp_path: Path, limit: int) -> None:
    """The limit stands for a full disk: the error of the operating system comes mid-write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            CheckpointError,
            match=r"saved: cannot be written \(.*File too large.*needs about \d+ bytes, \d+ are",
        ):
            save_checkpoint(tmp_path / "new" / "saved", MQA, random_params())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["write_safetensors", "sync", "rename"])
@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_any_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    if step == "write_safetensors":
        monkeypatch.setattr(checkpoint, "write_safetensors", fail)
    elif step == "sync":
        monkeypatch.setattr(durable, "sync_to_disk", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
    disk_full = isinstance(failure, OSError)
    expected = CheckpointError if disk_full else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if disk_full else None):
        save_checkpoint(tmp_path / "saved", MQA, random_params())
    assert not any(tmp_path.iterdir())


def test_everything_is_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without these, a loss of power after the rename leaves a folder of empty files."""
    events = []
    inner = Path.rename
    monkeypatch.setattr(durable, "sync_to_disk", lambda path: events.append(path.name))

    def rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return inner(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    save_checkpoint(tmp_path / "new" / "saved", MQA, random_params())
    files = {path.name for path in (tmp_path / "new" / "saved").iterdir()}
    at = events.index("rename")
    assert set(events[: at - 1]) == files
    assert events[at - 1].startswith(".saved.partial-")
    assert set(events[at + 1 :]) == {"new", tmp_path.name}


def test_a_folder_that_cannot_be_synced_after_the_rename_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = durable.sync_to_disk

    def sync(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        inner(path)

    monkeypatch.setattr(durable, "sync_to_disk", sync)
    with pytest.raises(CheckpointError, match=r"saved: written, but not certain .*Input/output"):
        save_checkpoint(tmp_path / "saved", MQA, random_params())
    assert load_checkpoint(tmp_path / "saved")[0] == MQA


def test_a_killed_save_leaves_no_checkpoint_and_the_next_save_works(tmp_path: Path) -> None:
    """kill -9 gives no chance to clean up: what is left must not pass for a checkpoint."""
    code = (
        "import os, sys; sys.path.insert(0, 'tests')\n"
        "from test_checkpoint import MQA, checkpoint, random_params, save_checkpoint\n"
        "checkpoint.write_safetensors = lambda path, tensors: os.kill(os.getpid(), 9)\n"
        "save_checkpoint(sys.argv[1], MQA, random_params())"
    )
    destination = tmp_path / "saved"
    done = subprocess.run(
        [sys.executable, "-c", code, str(destination)],
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == -9
    (partial,) = tmp_path.iterdir()
    with pytest.raises(CheckpointError, match="left by a save that was interrupted"):
        load_checkpoint(partial)
    save_checkpoint(destination, MQA, random_params())
    assert load_checkpoint(destination)[0] == MQA


@pytest.mark.parity
@pytest.mark.parametrize("layout", CONFIGS)
def test_transformers_loads_what_we_save_without_a_missing_tensor(
    tmp_path: Path, layout: str
) -> None:
    import torch
    import transformers

    config = CONFIGS[layout]
    params = random_params(config, "bfloat16")
    save_checkpoint(tmp_path / "saved", config, params, max_shard_bytes=2000)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype="auto"
    )
    assert model.dtype == torch.bfloat16
    assert not any(info.values())
    for name, array in params_to_hf(params, config).items():
        theirs = model.state_dict()[name].view(torch.uint8).numpy()
        assert theirs.tobytes() == array.tobytes(), name
    model.save_pretrained(tmp_path / "theirs")
    loaded_config, loaded = load_checkpoint(tmp_path / "theirs")
    assert loaded_config == config
    assert_same_bits(loaded, params)


MEMORY_PROBE = """
import sys
import jax, numpy as np
from jaxcoder.checkpoint import load_checkpoint

def peak():  # of this program alone: ru_maxrss would count the parent before exec
    status = open('/proc/self/status').read()
    return 1024 * int(status.split('VmHWM:')[1].split()[0])

jax.block_until_ready(jax.numpy.zeros(8) + 1)
before = peak()
config, params = load_checkpoint(sys.argv[1], dtype=sys.argv[2])
jax.block_until_ready(params)
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(peak() - before, held)
"""

MEMORY_WRITER = """
import sys
import numpy as np
from jaxcoder.checkpoint import save_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf, tensor_shapes

config = ModelConfig.tiny_starcoder()
rng = np.random.default_rng(0)
tensors = {
    name: rng.standard_normal(shape, np.float32) for name, shape in tensor_shapes(config).items()
}
save_checkpoint(sys.argv[1], config, params_from_hf(tensors, config))
"""


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which Linux has")
def test_peak_memory_of_loading_the_full_shape(tmp_path: Path) -> None:
    """The bound: 1.3 times the parameters as held, and once the file."""
    run_python(MEMORY_WRITER, str(tmp_path / "full"))
    file_bytes = (tmp_path / "full" / "model.safetensors").stat().st_size
    for dtype, held_bytes in (("float32", 656_576_512), ("bfloat16", 328_288_256)):
        peak, held = map(int, run_python(MEMORY_PROBE, str(tmp_path / "full"), dtype).split())
        assert held == held_bytes
        assert held <= peak, "the probe does not measure"
        assert peak <= 1.3 * held + file_bytes


def test_a_config_edited_by_hand_loads_once_the_manifest_is_removed(tmp_path: Path) -> None:
    """The remedy that the error names works."""
    folder = tmp_path / "saved"
    save_checkpoint(folder, MQA, random_params())
    edit_json(folder / "config.json", attn_pdrop=0.5)
    with pytest.raises(CheckpointError, match=r"config\.json is not the file that .*manifest"):
        load_checkpoint(folder)
    (folder / "jaxcoder_manifest.json").unlink()
    assert load_checkpoint(folder)[0].attn_pdrop == 0.5


def test_other_files_beside_the_weights_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    write_plain(folder, MQA, random_tensors(MQA))
    write_safetensors(folder / "adapter_model.safetensors", {"a": np.zeros(1, np.float32)})
    os.mkfifo(folder / "pytorch_model.bin")
    assert load_checkpoint(folder)[0] == MQA
