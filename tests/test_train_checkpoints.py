"""Checkpoints: what is saved comes back bit for bit; what interrupts a save costs that save alone.

Kills are real ones, in the middle of each phase; damage is done to every file, and found.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxcoder.errors import CheckpointError
from train import checkpoint_folder, folder_probe, orbax_files
from train import checkpoints as checkpoints_module
from train.checkpoint_folder import PHASES, committed_steps, step_folder
from train.checkpoints import Checkpoints

PROJECT = Path(__file__).resolve().parent.parent


class State(NamedTuple):
    """The kinds of nodes and leaves that a training state has."""

    step: Any
    params: Any
    moments: Any


def state(step: int) -> State:
    values = jnp.arange(12, dtype=jnp.float32).reshape(3, 4) + step
    params = {"h_0": {"kernel": values, "bias": values[0]}, "wte": values.astype(jnp.bfloat16)}
    return State(jnp.int32(step), params, (params["h_0"], ()))


def saved(folder: Path, *steps: int, keep: int = 9, run: str = "") -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep, run=run)
    checkpoints.prepare()
    for step in steps:
        checkpoints.save(step, state(step), {"note": step})
    checkpoints.wait()
    return checkpoints


def assert_restores(checkpoints: Checkpoints, step: int) -> None:
    tree, extra = checkpoints.restore(step, state(0))
    assert extra["note"] == step
    assert_same(tree, state(step))


def assert_same(tree: Any, expected: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    """Every dtype and kind of leaf, its device, the extra fields, NaN payloads."""
    odd = np.array([0x7FC1, 0x8000, 1], np.uint16).view(ml_dtypes.bfloat16)
    tree = {
        "state": state(3),
        "numpy": {"bf16": odd, "int64": np.array([2**40]), "bool": np.array(True)},
        "list": [jnp.uint32(7), jnp.float16(0.5)],
        "a/b": jnp.ones(1),
        "a.b": jnp.zeros(1),
    }
    extra = {"epoch": [1, 2.5, None], "name": "é"}
    writer = saved(tmp_path)
    writer.save(7, tree, extra)
    writer.wait()
    reader = Checkpoints(tmp_path)
    assert reader.newest_valid() == 7
    got, got_extra = reader.restore(7, tree)
    assert_same(got, tree)
    assert got_extra == extra
    assert isinstance(got["numpy"]["bf16"], np.ndarray)
    assert got["state"].step.sharding == tree["state"].step.sharding
    shapes = jax.eval_shape(lambda: state(0))
    assert_same(reader.restore(7, {**tree, "state": shapes})[0], tree)


def test_a_checkpoint_is_hashed_once_to_go_on(tmp_path: Path, monkeypatch) -> None:
    """It was read as a whole three times. Any later `restore` verifies again."""
    saved(tmp_path, 1)
    hashed, verify = [], checkpoints_module.verify

    def counted(folder: Path, step: int) -> dict[str, Any]:
        hashed.append(step)
        return verify(folder, step)

    monkeypatch.setattr(checkpoints_module, "verify", counted)
    reader = Checkpoints(tmp_path)
    assert reader.newest_valid() == 1
    assert_restores(reader, 1)
    assert hashed == [1]
    flip(largest(step_folder(tmp_path, 1)))
    with pytest.raises(CheckpointError, match="step-00000001"):
        reader.restore(1, state(0))


def test_buffers_are_free_once_save_returns(tmp_path: Path) -> None:
    """The next step donates the arrays, or writes into them, before they are on the disk."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    tree = {"x": step(jnp.zeros(1 << 16)), "n": np.ones(1 << 16)}
    checkpoints = saved(tmp_path)
    checkpoints.save(1, tree, {})
    values = step(step(tree["x"]))
    tree["n"] += 1
    checkpoints.wait()
    assert tree["x"].is_deleted()
    got, _ = checkpoints.restore(1, {"x": values, "n": tree["n"]})
    assert np.array_equal(got["x"], np.ones(1 << 16))
    assert np.array_equal(got["n"], np.ones(1 << 16))
    assert np.array_equal(step(got["x"]), np.full(1 << 16, 2))


# One process imports everything and forks before JAX has threads: a child per phase in a second.
KILLED_WRITER = """
import json, os, signal, sys, warnings
from pathlib import Path
import numpy as np
from train.checkpoint_folder import PHASES
from train.checkpoints import Checkpoints

def tree(step):
    return {"x": np.arange(5, dtype=np.float32) + step, "n": np.array(step)}

def save_until_killed(folder, phase):
    def kill(at, step):
        if at == phase and (max(saved) == 3 or phase == "deletion"):
            os.kill(os.getpid(), signal.SIGKILL)
    saved = []
    checkpoints = Checkpoints(folder, keep=2, on_phase=kill)
    checkpoints.prepare()
    for step in (1, 2, 3):
        saved.append(step)
        checkpoints.save(step, tree(step), {})
        checkpoints.wait()

warnings.simplefilter("ignore")
ended = {}
for phase in PHASES:
    child = os.fork()
    if not child:
        try:
            save_until_killed(Path(sys.argv[1]) / phase, phase)
        finally:
            os._exit(1)
    ended[phase] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each phase, a folder of saves 1, 2 and 3 (two kept), killed in that phase of the last."""
    folder = tmp_path_factory.mktemp("killed")
    result = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(folder)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(result.stdout) == dict.fromkeys(PHASES, -signal.SIGKILL), result.stderr
    return folder


@pytest.mark.parametrize(
    ("phase", "newest", "left"),
    [
        ("temp write", 2, [1, 2]),
        ("fsync", 2, [1, 2]),
        ("rename", 2, [1, 2]),
        ("directory fsync", 3, [1, 2, 3]),
        ("deletion", 3, [2, 3]),
    ],
)
def test_kill_in_each_phase(killed: Path, tmp_path: Path, capfd, phase, newest, left) -> None:
    """The newest committed step is whole, the half one unseen and cleared; saving goes on."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(killed / phase, folder)
    half = [name for name in names(folder) if name.startswith(".")]
    assert len(half) == (phase != "directory fsync")
    like = {"x": np.zeros(5, np.float32), "n": np.array(0)}
    checkpoints = Checkpoints(folder, keep=2)
    assert committed_steps(folder) == left
    assert checkpoints.newest_valid() == newest
    assert "damaged" not in capfd.readouterr().err
    tree, _ = checkpoints.restore(newest, like)
    assert np.array_equal(tree["x"], np.arange(5, dtype=np.float32) + newest)
    assert tree["n"] == newest
    checkpoints.prepare()
    assert all(name in capfd.readouterr().err for name in half)
    assert names(folder) == [step_folder(folder, step).name for step in left]
    checkpoints.save(4, tree, {})
    checkpoints.wait()
    assert committed_steps(folder) == [newest, 4]


def test_order_of_a_save(tmp_path: Path, monkeypatch) -> None:
    """All files and folders are synced before the rename, the parent after it, then old ones go.

    What a loss of power may undo is what was not synced: a kill cannot show it.
    """
    events: list[tuple[str, Path]] = []
    real_sync, real_rename = checkpoint_folder.sync_to_disk, Path.rename

    def sync(path: Path) -> None:
        events.append(("sync", path))
        real_sync(path)

    def rename(path: Path, target: Path) -> Path:
        inside = {found for found in path.rglob("*")} if path.name.startswith(".step") else set()
        events.append(("rename", Path(target)))
        unsynced = {path, *inside} - {synced for event, synced in events if event == "sync"}
        assert path.parent != folder or not path.name.startswith(".") or not unsynced
        return real_rename(path, target)

    folder = tmp_path / "checkpoints"
    checkpoints = saved(folder, 1, keep=1)
    monkeypatch.setattr(checkpoint_folder, "sync_to_disk", sync)
    monkeypatch.setattr(Path, "rename", rename)
    checkpoints.save(2, state(2), {})
    checkpoints.wait()
    named = [
        (event, path.name.split("-", 2)[:2])
        for event, path in events
        if path.parent == folder or path == folder
    ]
    after = named[named.index(("rename", ["step", "00000002"])) :]
    assert after == [
        ("rename", ["step", "00000002"]),
        ("sync", ["checkpoints"]),
        ("rename", [".step", "00000001.partial"]),
        ("sync", ["checkpoints"]),
    ]
    synced = {path.name for event, path in events if event == "sync"}
    assert {"manifest.json", "_METADATA", "arrays", "manifest.ocdbt"} <= synced


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_keep(tmp_path: Path, keep: int, left: list[int]) -> None:
    """Old ones go, by step and not by time of writing."""
    checkpoints = saved(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert committed_steps(tmp_path) == left
    assert len(names(tmp_path)) == len(left)
    for step in left:
        assert_restores(checkpoints, step)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("d/*")), key=lambda path: path.stat().st_size)


def newer_format(path: Path) -> None:
    path.write_text(json.dumps({"format": 2}))


DAMAGE = {
    "flipped data": (largest, flip, r"arrays/\S+ is not what was written \(SHA-256\)"),
    "cut data": (largest, cut, r"arrays/\S+ has \d+ bytes, expected \d+"),
    "missing data": (largest, Path.unlink, r"arrays/\S+ is missing"),
    "flipped manifest": (lambda f: f / "manifest.json", flip, r"manifest\.json: "),
    "cut manifest": (lambda f: f / "manifest.json", cut, r"manifest\.json: "),
    "missing manifest": (lambda f: f / "manifest.json", Path.unlink, r"manifest\.json: no such"),
    "newer format": (lambda f: f / "manifest.json", newer_format, r"newer code, update"),
    "missing folder": (lambda f: f / "arrays", shutil.rmtree, r"arrays/_METADATA is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_checkpoint(tmp_path: Path, kind: str, capfd) -> None:
    """Found, named with the way out; the older one is taken only when told, and the loss said."""
    checkpoints = saved(tmp_path, 100, 250)
    find, damage, message = DAMAGE[kind]
    damage(find(step_folder(tmp_path, 250)))
    with pytest.raises(CheckpointError, match=message) as refused:
        checkpoints.newest_valid()
    assert "step-00000250: the newest checkpoint is not usable" in str(refused.value)
    assert "continue from step 100, losing 150 steps" in str(refused.value)
    assert "--allow-older-checkpoint" in str(refused.value)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(250, state(0))
    capfd.readouterr()
    assert checkpoints.newest_valid(allow_fallback=True) == 100
    assert "continuing from step 100: 150 steps are lost" in capfd.readouterr().err
    assert_restores(checkpoints, 100)
    assert committed_steps(tmp_path) == [100, 250]
    checkpoints.save(200, state(200), {"note": 200})
    checkpoints.wait()
    assert committed_steps(tmp_path) == [100, 200]


def test_damaged_step_is_saved_again(tmp_path: Path) -> None:
    """After a fallback, the run reaches the damaged step and replaces it, leaving nothing."""
    saved(tmp_path, 1, 2)
    flip(largest(step_folder(tmp_path, 2)))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest_valid(allow_fallback=True) == 1
    checkpoints.save(2, state(2), {"note": 2})
    checkpoints.wait()
    assert Checkpoints(tmp_path).newest_valid() == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_last_valid_stays_when_newer_ones_are_damaged(tmp_path: Path) -> None:
    """Damaged ones do not count as kept: saving after a fallback deletes them, not the valid."""
    checkpoints = saved(tmp_path, 1, 2, 3)
    for step in (2, 3):
        flip(largest(step_folder(tmp_path, step)))
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest_valid(allow_fallback=True) == 1
    checkpoints.save(4, state(4), {"note": 4})
    checkpoints.wait()
    assert committed_steps(tmp_path) == [1, 4]


def test_all_damaged(tmp_path: Path) -> None:
    """Never a silent start from nothing, whatever was allowed."""
    checkpoints = saved(tmp_path, 1, 2)
    for step in (1, 2):
        flip(largest(step_folder(tmp_path, step)))
    for allowed in (False, True):
        with pytest.raises(CheckpointError, match="no older valid checkpoint exists"):
            checkpoints.newest_valid(allow_fallback=allowed)


def test_every_single_bit_flip_is_found(tmp_path: Path) -> None:
    """A seeded sample over all files, the manifest's spaces too."""
    checkpoints = saved(tmp_path, 1)
    files = sorted(path for path in step_folder(tmp_path, 1).rglob("*") if path.is_file())
    generator = random.Random(0)
    for _ in range(200):
        path = generator.choice(files)
        data = path.read_bytes()
        bit = generator.randrange(8 * len(data))
        path.write_bytes(
            data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
        )
        with pytest.raises(CheckpointError):
            checkpoints.newest_valid()
        path.write_bytes(data)
    assert checkpoints.newest_valid() == 1


def test_renamed_folder_is_not_another_step(tmp_path: Path) -> None:
    """A copy under another step's name would make a run skip or repeat steps."""
    checkpoints = saved(tmp_path, 1)
    shutil.copytree(step_folder(tmp_path, 1), step_folder(tmp_path, 5))
    with pytest.raises(CheckpointError, match=r"manifest\.json is of step 1, expected 5"):
        checkpoints.newest_valid()


def test_checkpoint_of_another_run(tmp_path: Path) -> None:
    """Explained, and no damage to fall back from or to delete."""
    saved(tmp_path, 1, 2, run="one")
    other = Checkpoints(tmp_path, run="two")
    for allowed in (False, True):
        with pytest.raises(CheckpointError, match=r"step-00000002: is of another run \('one', exp"):
            other.newest_valid(allow_fallback=allowed)
    with pytest.raises(CheckpointError, match="another run"):
        other.restore(1, state(0))
    assert Checkpoints(tmp_path).newest_valid() == 2


def test_empty_and_absent_folders(tmp_path: Path) -> None:
    """A new run has no checkpoint; what is not one is not counted."""
    assert Checkpoints(tmp_path / "absent").newest_valid() is None
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-00000003 (copy)").mkdir()
    (tmp_path / ".step-00000004.partial-1-ab").mkdir()
    (tmp_path / ".unrelated.partial-1-ab").mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest_valid() is None
    checkpoints.prepare()
    assert names(tmp_path) == [".unrelated.partial-1-ab", "notes", "step-00000003 (copy)"]
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.restore(1, state(0))


def test_disk_full(tmp_path: Path, caplog) -> None:
    """A write that the system cuts off, inside orbax: one error, nothing half, the rest whole."""
    checkpoints = saved(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    try:
        big = {"x": np.random.default_rng(0).standard_normal(1 << 17)}
        checkpoints.save(2, big, {})
        with pytest.raises(CheckpointError, match=r"step-00000002: cannot be written") as failed:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(failed.value)
    assert not caplog.records
    assert f"needs about {8 << 17} bytes, " in str(failed.value)
    assert " are free; older checkpoints are as they were" in str(failed.value)
    assert names(tmp_path) == ["step-00000001"]
    assert_restores(Checkpoints(tmp_path), 1)
    checkpoints.save(2, big, {})
    checkpoints.wait()
    assert checkpoints.newest_valid() == 2


@pytest.mark.parametrize(
    ("phase", "message", "left"),
    [
        ("temp write", r"step-00000002: cannot be written .*needs about \d+ bytes, \d+ are", [1]),
        ("fsync", r"step-00000002: cannot be written .*needs about \d+ bytes, \d+ are", [1]),
        ("rename", r"step-00000002: cannot be written .*needs about \d+ bytes, \d+ are", [1]),
        ("directory fsync", r"step-00000002: written, but not certain", [1, 2]),
        ("deletion", r"step-00000001: an old checkpoint that cannot be deleted", [2]),
    ],
)
@pytest.mark.parametrize("surfaces", [Checkpoints.wait, Checkpoints.raise_if_failed, "save"])
def test_failure_in_each_phase_surfaces(tmp_path: Path, phase, message, left, surfaces) -> None:
    """An error of the background thread is raised in the loop's, once, wherever it looks next."""

    def fail(at: str, step: int) -> None:
        if at == phase and failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    failing = False
    checkpoints = Checkpoints(tmp_path, keep=1, on_phase=fail)
    checkpoints.prepare()
    checkpoints.save(1, state(1), {"note": 1})
    checkpoints.wait()
    failing = True
    checkpoints.save(2, state(2), {"note": 2})
    checkpoints._thread.submit(int).result()  # the save has ended
    with pytest.raises(CheckpointError, match=message):
        if surfaces == "save":
            checkpoints.save(3, state(3), {})
        else:
            surfaces(checkpoints)
    checkpoints.raise_if_failed()
    assert committed_steps(tmp_path) == left
    reader = Checkpoints(tmp_path)
    reader.prepare()
    assert reader.newest_valid() == left[-1]
    assert_restores(reader, left[-1])


def one_bit_off(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    changed = arrays["params/h_0/bias"].copy()
    changed.view(np.uint32)[2] ^= 1
    return arrays | {"params/h_0/bias": changed}


WRONG_WRITES: dict[str, tuple[Callable, str]] = {
    "a bit": (one_bit_off, "params/h_0/bias is not what was written"),
    "a shape": (lambda a: a | {"step": a["step"].reshape(1)}, "step is not what was written"),
    "a type": (
        lambda a: a | {"params/wte": a["params/wte"].astype(np.float32)},
        "params/wte is not what was written",
    ),
    "a leaf too few": (
        lambda a: {name: a[name] for name in a if name != "step"},
        "(?s:.*)that orbax-checkpoint is not older than",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_WRITES)
def test_arrays_written_wrongly_are_found_before_an_old_checkpoint_goes(
    tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hashes were those of whatever lay on the disk, and the last good checkpoint went."""
    checkpoints = saved(tmp_path, 1, keep=1)
    change, message = WRONG_WRITES[mistake]
    write = orbax_files.write_arrays
    with monkeypatch.context() as patch:
        patch.setattr(
            orbax_files, "write_arrays", lambda folder, arrays: write(folder, change(arrays))
        )
        checkpoints.save(2, state(2), {"note": 2})
        with pytest.raises(CheckpointError, match=rf"step-00000002: cannot be written .*{message}"):
            checkpoints.wait()
    assert names(tmp_path) == ["step-00000001"]
    assert_restores(checkpoints, 1)
    checkpoints.save(2, state(2), {"note": 2})
    checkpoints.wait()
    assert names(tmp_path) == ["step-00000002"]


def test_no_memory_for_a_save_is_no_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said "Free space, or check the folder"."""
    checkpoints = saved(tmp_path, 1, keep=1)

    def no_memory(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(orbax_files, "read_arrays", no_memory)
    checkpoints.save(2, state(2), {"note": 2})
    with pytest.raises(MemoryError):
        checkpoints.wait()
    assert names(tmp_path) == ["step-00000001"]


def test_no_old_checkpoint_goes_for_one_that_is_damaged_at_once(tmp_path: Path) -> None:
    """A file system that gives back something else: the new one is read again where it stays."""

    def damage(phase: str, step: int) -> None:
        if (phase, step) == ("directory fsync", 2):
            flip(largest(step_folder(tmp_path, 2)))

    checkpoints = Checkpoints(tmp_path, keep=1, on_phase=damage)
    checkpoints.prepare()
    for step in (1, 2):
        checkpoints.save(step, state(step), {"note": step})
    with pytest.raises(CheckpointError, match=r"step-00000002: .* is not what was written"):
        checkpoints.wait()
    assert committed_steps(tmp_path) == [1, 2]
    assert Checkpoints(tmp_path).newest_valid(allow_fallback=True) == 1


def test_the_damaged_one_is_put_back_where_its_successor_cannot_come(tmp_path: Path) -> None:
    """It was renamed away first, and stayed away: the error said that all were as before."""

    def fail(phase: str, step: int) -> None:
        if phase == "rename":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    saved(tmp_path, 1, 2)
    flip(largest(step_folder(tmp_path, 2)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    checkpoints = Checkpoints(tmp_path, on_phase=fail)
    assert checkpoints.newest_valid(allow_fallback=True) == 1
    checkpoints.save(2, state(2), {"note": 2})
    with pytest.raises(CheckpointError, match=r"step-00000002: cannot be written .*Input/output"):
        checkpoints.wait()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folder_deleted_meanwhile(tmp_path: Path) -> None:
    """Somebody removes the run's folder: the save says so, and does not make it anew."""
    folder = tmp_path / "checkpoints"
    checkpoints = saved(folder, 1)
    shutil.rmtree(folder)
    checkpoints.save(2, state(2), {})
    with pytest.raises(CheckpointError, match=r"step-00000002: cannot be written \(FileNotFound"):
        checkpoints.wait()
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder(tmp_path: Path) -> None:
    """Permission removed while the run goes on, and before it starts."""
    checkpoints = saved(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        checkpoints.save(2, state(2), {})
        with pytest.raises(CheckpointError, match="Permission denied"):
            checkpoints.wait()
        with pytest.raises(CheckpointError, match="cannot be written here"):
            Checkpoints(tmp_path).prepare()
        assert_restores(checkpoints, 1)
    finally:
        tmp_path.chmod(0o700)


def test_prepare_without_a_folder(tmp_path: Path) -> None:
    """A file in the place of the folder is found before the first step, not at the first save."""
    (tmp_path / "run").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be made"):
        Checkpoints(tmp_path / "run" / "checkpoints").prepare()


def refuse(number: int) -> Callable[[Path], None]:
    def sync(path: Path) -> None:
        if path.is_dir():
            raise OSError(number, os.strerror(number))

    return sync


def test_file_system_that_cannot_sync_folders(tmp_path: Path, monkeypatch, capfd) -> None:
    """Warned of at the start, and then saves work; a real failure to sync is an error."""
    monkeypatch.setattr(folder_probe, "sync_to_disk", refuse(errno.EINVAL))
    monkeypatch.setattr(checkpoint_folder, "sync_to_disk", refuse(errno.EINVAL))
    checkpoints = saved(tmp_path, 1)
    assert "warning: folders cannot be synced to the disk" in capfd.readouterr().err
    assert_restores(checkpoints, 1)
    monkeypatch.setattr(checkpoint_folder, "sync_to_disk", refuse(errno.EIO))
    checkpoints.save(2, state(2), {})
    with pytest.raises(CheckpointError, match=r"step-00000002: cannot be written .*Input/output"):
        checkpoints.wait()


def test_probe_of_a_healthy_folder(tmp_path: Path) -> None:
    """No false alarm, nothing left behind."""
    assert folder_probe.probe_folder(tmp_path) == []
    assert names(tmp_path) == []


def test_restore_lists_every_difference(tmp_path: Path) -> None:
    """Another model or optimizer: all leaves that differ, in one error."""
    checkpoints = saved(tmp_path, 1)
    params = {
        "h_0": {"kernel": jnp.zeros((4, 3)), "scale": jnp.zeros(4)},
        "wte": jnp.zeros((3, 4)),
    }
    with pytest.raises(CheckpointError, match="4 problems; resume with the settings") as refused:
        checkpoints.restore(1, state(0)._replace(params=params))
    for line in (
        "params/h_0/scale is missing",
        "params/h_0/bias is not part of this run",
        "params/h_0/kernel is float32 [3, 4], expected float32 [4, 3]",
        "params/wte is bfloat16 [3, 4], expected float32 [3, 4]",
    ):
        assert f"\n  - {line}" in str(refused.value)


@pytest.mark.parametrize(
    ("tree", "extra", "message"),
    [
        ({"x": 1.0}, {}, "x is a float, expected an array"),
        ({"a": {"x": np.zeros((0, 3))}}, {}, r"a/x is float64\[0, 3\], expected an array with"),
        ({"k": jax.random.key(0)}, {}, "k is key<fry>"),
        ({"x": np.zeros(1)}, {"loss": float("nan")}, "extra is not JSON"),
        ({"x": np.zeros(1)}, {"path": Path("x")}, "extra is not JSON"),
        ({"a": {"b": np.zeros(1)}, "a/b": np.zeros(1)}, {}, "leaves share a name: a/b"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, tree, extra, message: str) -> None:
    """Refused at once, in the caller's thread, before anything is written."""
    checkpoints = saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        checkpoints.save(1, tree, extra)
    assert names(tmp_path) == []


def test_same_step_twice(tmp_path: Path) -> None:
    """A signal right after a periodic save must not write the step again, nor fail."""
    checkpoints = saved(tmp_path, 1)
    before = step_folder(tmp_path, 1).stat().st_ino
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    assert step_folder(tmp_path, 1).stat().st_ino == before
    # One that looked at nothing first could be another run's: it may not replace what is whole.
    stranger = Checkpoints(tmp_path)
    stranger.save(1, state(9), {})
    with pytest.raises(CheckpointError, match="step-00000001: holds a valid checkpoint already"):
        stranger.wait()
    assert_restores(checkpoints, 1)


def test_extra_is_taken_when_save_is_called(tmp_path: Path) -> None:
    """The loop may go on changing what it passed."""
    checkpoints = saved(tmp_path)
    extra = {"losses": [1.0]}
    checkpoints.save(1, state(1), extra)
    extra["losses"].append(2.0)
    checkpoints.wait()
    assert checkpoints.restore(1, state(0))[1] == {"losses": [1.0]}


def test_keep_must_be_positive(tmp_path: Path) -> None:
    """keep=0 would delete the last valid one."""
    with pytest.raises(ValueError, match="keep is 0, expected at least 1"):
        Checkpoints(tmp_path, keep=0)
