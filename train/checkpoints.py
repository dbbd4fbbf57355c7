"""Checkpoints of a run: saved and read back in the background, verified before use, few kept.

`orbax_files` stores the arrays; `checkpoint_folder` makes a save atomic.
"""

import contextlib
import json
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
    sync_directory,
    verify,
)
from .folder_probe import probe_folder
from .leaves import describe, host_copy, leaf_problems, named_leaves, placed
from .orbax_files import read_arrays, write_and_read_back

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
        self._found: dict[int, dict[str, Any]] = {}
        self._damaged: set[int] = set()

    def prepare(self) -> None:
        """Make the folder, try it, and delete what killed saves left in it.

        Raises:
          CheckpointError: it cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise CheckpointError(
                f"{self._folder}: cannot be made ({exc.strerror}); check the path and its mode"
            ) from exc
        # The run's folder may be new too; above it there may be none that we can open.
        for parent in (self._folder.parent, self._folder.parent.parent):
            with contextlib.suppress(OSError):
                sync_directory(parent)
        left = remove_leftovers(self._folder)
        if left:
            say(f"{self._folder}: removed what interrupted saves left: {', '.join(left)}")
        for problem in probe_folder(self._folder):
            say(f"{self._folder}: warning: {problem}")

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
        if step in self._verified and step_folder(self._folder, step).exists():
            return
        arrays = {name: host_copy(name, leaf) for name, leaf in named_leaves(tree)}
        fields = {
            "run": self._run,
            "extra": _json_copy(extra),
            "leaves": {name: describe(array) for name, array in arrays.items()},
        }
        self._saving = self._thread.submit(self._save, step, arrays, fields)

    def raise_if_failed(self) -> None:
        """Raise the error of a save that ended since the last call, if it failed.

        Raises:
          CheckpointError: names the path, and the bytes needed and free.
        """
        if self._saving is not None and self._saving.done():
            self.wait()

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
          CheckpointError: the newest is damaged and no fallback was allowed, all are damaged, or
            the newest that is not is of another run.
        """
        damage: list[tuple[int, str]] = []
        for step in reversed(committed_steps(self._folder)):
            try:
                fields = verify(self._folder, step)
            except CheckpointError as exc:
                damage.append((step, str(exc)))
                continue
            self._check_run(step, fields)
            if damage:
                self._fall_back(step, damage, allowed=allow_fallback)
            self._verified.add(step)
            self._found = {step: fields}
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
          step: As `newest_valid` gives it, verified there; any other is verified now.
          like: Pytree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes and dtypes
            that were saved. Each leaf is put where its counterpart is, a shape's without a sharding
            on the default device; NumPy stays NumPy.

        Raises:
          CheckpointError: damaged, absent, of another run, or not of this structure: lists every
            leaf that is missing, unexpected or different.
        """
        fields = self._found.pop(step, None) or verify(self._folder, step)
        self._check_run(step, fields)
        path = step_folder(self._folder, step)
        expected = dict(named_leaves(like))
        raise_if_any(
            leaf_problems(fields["leaves"], expected),
            path,
            remedy="resume with the settings that the run was started with",
            error=CheckpointError,
        )
        arrays = read_arrays(path / _ARRAYS, expected)
        leaves = [placed(arrays.pop(name), leaf) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), fields["extra"]

    def _save(self, step: int, arrays: dict[str, np.ndarray], fields: dict[str, Any]) -> None:
        """Runs in the background thread."""
        commit(
            self._folder,
            step,
            write=lambda folder: write_and_read_back(folder / _ARRAYS, arrays),
            fields=fields,
            needed_bytes=sum(array.nbytes for array in arrays.values()),
            on_phase=self._on_phase,
        )
        self._damaged.discard(step)
        superseded = self._superseded(step)
        if superseded:
            # Before the last one that is known to be whole goes.
            verify(self._folder, step)
        self._verified.add(step)
        for old in superseded:
            self._verified.discard(old)
            self._damaged.discard(old)
            delete(self._folder, old, on_phase=self._on_phase)

    def _superseded(self, newest: int) -> list[int]:
        """Steps to delete once `newest` is saved: all but the newest few, and what a fallback left.

        Steps after `newest` that were not found damaged are none of this run's doing: they stay.
        """
        steps = committed_steps(self._folder)
        usable = [step for step in steps if step not in self._damaged and step <= newest]
        return [*usable[: -self._keep], *(step for step in steps if step in self._damaged)]

    def _check_run(self, step: int, fields: Mapping[str, Any]) -> None:
        if self._run and fields["run"] != self._run:
            raise CheckpointError(
                f"{step_folder(self._folder, step)}: is of another run ({fields['run']!r}, "
                f"expected {self._run!r}); move it back where it belongs"
            )

    def _fall_back(self, step: int, damage: list[tuple[int, str]], *, allowed: bool) -> None:
        newest = damage[0][0]
        text = "".join(f"\n  - {problem}" for _, problem in damage)
        if not allowed:
            raise CheckpointError(
                f"{step_folder(self._folder, newest)}: the newest checkpoint is not usable; "
                f"restore its files, or continue from step {step}, losing {newest - step} steps, "
                f"with --allow-older-checkpoint{text}"
            )
        self._damaged.update(step for step, _ in damage)
        say(
            f"{self._folder}: continuing from step {step}: {newest - step} steps are lost and will "
            f"be done again. The next save deletes what is damaged{text}"
        )


def _json_copy(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What reading will give back, whatever the caller does with `extra` meanwhile."""
    try:
        return json.loads(json_bytes(extra))
    except (TypeError, ValueError) as exc:
        raise ValueError(f"extra is not JSON ({exc}); use plain finite values") from exc
