"""Checkpoints of a run: saved in the background, verified before use, the newest few kept.

The only file that knows orbax, which stores the arrays; `checkpoint_folder` makes a save atomic.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcoder.diagnostics import say
from jaxcoder.errors import CheckpointError
from jaxcoder.json_file import json_bytes
from jaxcoder.problems import raise_if_any

from .checkpoint_folder import (
    PhaseHook,
    commit,
    committed_steps,
    delete,
    no_hook,
    remove_leftovers,
    step_folder,
    verify,
)

_ARRAYS = "arrays"


class Checkpoints:
    """The checkpoints in one folder.

    One process may write: it holds the lock of the run and calls `prepare` first. Reading needs
    neither.

    Args:
      folder: Holds one folder per step.
      keep: Checkpoints kept, at least 1.
      run: Identity of the run, stored in each checkpoint; one of another run is refused. Empty:
        any is taken.
      on_phase: Called inside each phase of a save, in the background thread; tests kill there.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, run: str = "", on_phase: PhaseHook = no_hook
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1; one checkpoint always stays")
        # orbax takes absolute paths only.
        self._folder = folder.absolute()
        self._keep = keep
        self._run = run
        self._on_phase = on_phase
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._verified: set[int] = set()

    def prepare(self) -> None:
        """Make the folder, and delete what killed saves left in it.

        Raises:
          CheckpointError: the operating system refused.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise CheckpointError(
                f"{self._folder}: cannot be made ({exc.strerror}); check the path and its mode"
            ) from exc
        left = remove_leftovers(self._folder)
        if left:
            say(f"{self._folder}: removed what interrupted saves left: {', '.join(left)}")

    def save(self, step: int, tree: Any, extra: Mapping[str, Any]) -> None:
        """Start to save `tree`, after the save before it has ended.

        The arrays are copied to the host before this returns, so that they may be donated.

        Args:
          step: Optimizer steps done. A step that was saved or verified already is left alone.
          tree: Pytree of arrays, none empty and none a typed PRNG key.
          extra: JSON fields that `restore` gives back.

        Raises:
          CheckpointError: the save before this one failed.
          ValueError: a leaf cannot be stored, or `extra` is no JSON.
        """
        self.wait()
        if step in self._verified:
            return
        arrays = {name: _host_copy(name, leaf) for name, leaf in _named_leaves(tree)}
        fields = {
            "run": self._run,
            "extra": dict(extra),
            "leaves": {name: _description(array) for name, array in arrays.items()},
        }
        try:
            json_bytes(fields)
        except (TypeError, ValueError) as exc:
            raise ValueError(f"extra of step {step} is no JSON ({exc}); use plain values") from exc
        self._saving = self._thread.submit(self._save, step, arrays, fields)

    def raise_if_failed(self) -> None:
        """Raise the error of a save that ended since the last call, if it failed.

        Raises:
          CheckpointError: names the path, and the bytes needed and free.
        """
        if self._saving is not None and self._saving.done():
            saving, self._saving = self._saving, None
            saving.result()

    def wait(self) -> None:
        """Return when no save is under way; call it before the process ends.

        Raises:
          CheckpointError: the save failed.
        """
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def newest_valid(self, *, allow_fallback: bool = False) -> int | None:
        """The last step that can be restored, every file of it verified; None: there is none.

        Args:
          allow_fallback: Take an older one where the newest is damaged, and say what is lost.

        Raises:
          CheckpointError: the newest is damaged and no fallback was allowed, or all are damaged.
        """
        damage: list[tuple[int, str]] = []
        for step in reversed(committed_steps(self._folder)):
            try:
                self._verify(step)
            except CheckpointError as exc:
                damage.append((step, str(exc)))
                continue
            if damage:
                self._fall_back(step, damage, allowed=allow_fallback)
            return step
        raise_if_any(
            [text for _, text in damage],
            self._folder,
            remedy="no older valid checkpoint exists: restore the files, or start another run",
            error=CheckpointError,
        )
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The tree and the extra fields saved at `step`.

        Args:
          step: As `newest_valid` gives it; verified again only if this object has not done so.
          like: Pytree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes and dtypes
            that were saved. Each leaf is put where its counterpart is; NumPy stays NumPy.

        Raises:
          CheckpointError: damaged, absent, of another run, or not of this structure: lists every
            leaf that is missing, unexpected or different.
        """
        fields = self._verify(step)
        path = step_folder(self._folder, step)
        expected = dict(_named_leaves(like))
        raise_if_any(
            _leaf_problems(fields["leaves"], expected),
            path,
            remedy="resume with the settings that the run was started with",
            error=CheckpointError,
        )
        arrays = _read_arrays(path / _ARRAYS, expected)
        leaves = [_placed(arrays.pop(name), leaf) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), fields["extra"]

    def _save(self, step: int, arrays: dict[str, np.ndarray], fields: dict[str, Any]) -> None:
        """Runs in the background thread."""
        commit(
            self._folder,
            step,
            write=lambda folder: _write_arrays(folder / _ARRAYS, arrays),
            fields=fields,
            needed_bytes=sum(array.nbytes for array in arrays.values()),
            on_phase=self._on_phase,
        )
        self._verified.add(step)
        steps = committed_steps(self._folder)
        # Later ones are what a fallback left behind: damaged, and now another future.
        later = [other for other in steps if other > step]
        for other in [*steps[: len(steps) - len(later)][: -self._keep], *later]:
            self._verified.discard(other)
            delete(self._folder, other, on_phase=self._on_phase)

    def _verify(self, step: int) -> dict[str, Any]:
        fields = verify(self._folder, step)
        if self._run and fields["run"] != self._run:
            raise CheckpointError(
                f"{step_folder(self._folder, step)}: is of another run ({fields['run']!r}, "
                f"expected {self._run!r}); move it back where it belongs"
            )
        self._verified.add(step)
        return fields

    def _fall_back(self, step: int, damage: list[tuple[int, str]], *, allowed: bool) -> None:
        newest = damage[0][0]
        text = "".join(f"\n  - {problem}" for _, problem in damage)
        if not allowed:
            raise CheckpointError(
                f"{step_folder(self._folder, newest)}: the newest checkpoint is not usable; "
                f"restore its files, or continue from step {step}, losing {newest - step} steps, "
                f"with --allow-older-checkpoint{text}"
            )
        say(
            f"{self._folder}: continuing from step {step}: {newest - step} steps are lost and will "
            f"be done again. The next save deletes what is damaged{text}"
        )


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with names such as ``params/wte/embedding``, in the tree's order."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
    if len(dict(named)) < len(named):
        names = [name for name, _ in named]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"leaves share a name: {', '.join(twice)}; expected one name per leaf")
    return named


def _host_copy(name: str, leaf: Any) -> np.ndarray:
    if not isinstance(leaf, np.ndarray | jax.Array):
        raise ValueError(f"{name} is a {type(leaf).__name__}, expected an array")
    if not leaf.size or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"{name} is {leaf.dtype}{list(leaf.shape)}, expected an array with elements; a typed "
            "PRNG key is stored as its jax.random.key_data"
        )
    # A view would show what a donated buffer holds later.
    return np.array(leaf, copy=True)


def _description(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _leaf_problems(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    problems = [f"{name} is missing" for name in expected if name not in saved]
    problems += [f"{name} is not part of this run" for name in saved if name not in expected]
    for name, leaf in expected.items():
        wanted = _description(leaf)
        found = saved.get(name, wanted)
        if found != wanted:
            problems.append(
                f"{name} is {found['dtype']} {found['shape']}, "
                f"expected {wanted['dtype']} {wanted['shape']}"
            )
    return problems


def _placed(array: np.ndarray, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return array
    # Not an alias of NumPy's memory, which could not be donated.
    return jax.device_put(array, like.sharding, may_alias=False)


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    # Weights hardly compress: 8 % smaller for three times the time.
    with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(folder, arrays)


def _read_arrays(folder: Path, names: Mapping[str, Any]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    try:
        with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
            return checkpointer.restore(folder, restore_args=as_numpy)
    except Exception as exc:
        # The files are those that were written, so this is memory, or orbax itself.
        raise CheckpointError(
            f"{folder}: cannot be loaded ({type(exc).__name__}: {exc}); check the memory, and "
            "that orbax-checkpoint is not older than the one that wrote it"
        ) from exc
