"""What a run directory says about its run: the resolved config, and where it came from."""

import dataclasses
import json
import platform
import secrets
import subprocess
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from jaxcoder.diagnostics import say
from jaxcoder.durable import replace_file
from jaxcoder.errors import ConfigError
from jaxcoder.json_file import json_bytes, read_json_object
from jaxcoder.problems import shorten

from .checkpoint_folder import committed_steps
from .config import TrainConfig
from .run_lock import LOCK_FILE

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
DATA_FILE = "data.json"
EXPORT = "export"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
START_FILE = "start.json"
TENSORBOARD = "tensorboard"
TOKENIZER_FILE = "tokenizer.json"

_PACKAGES = [
    "jaxcoder",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tokenizers",
]

# A run goes on under other values of these: they change no number that it computes.
_FREE = {
    "out",
    "compute.prefetch_threads",
    "loop.log_every",
    "loop.keep",
    "loop.save_every",
    "loop.tensorboard",
    "source.human_eval",
}

_LIMIT = 1 << 20
_MOST_NAMED = 5


def config_fields(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON has them: nested objects, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def read_config(folder: Path) -> TrainConfig:
    """The config that a run directory was started with.

    Raises:
      ConfigError: no such file, or not one that this version wrote.
    """
    path = folder / CONFIG_FILE
    fields: Any = read_json_object(path, limit=_LIMIT, error=ConfigError).get("config")
    try:
        return _build(TrainConfig, fields)
    except (TypeError, AttributeError) as exc:
        raise ConfigError(
            f"{path}: config does not have the fields of this version ({exc}); "
            "use the version named in the file"
        ) from exc


def folder_problems(folder: Path) -> list[str]:
    """Whether what is in `folder`, if it is there, is something else than a run.

    What a start that was killed before it began leaves is nothing: a lock, a folder for
    checkpoints, hidden files.
    """
    if folder.exists() and not folder.is_dir():
        return [f"out: {str(folder)!r}: is a file, expected a folder, new or a run's"]
    path = folder / CONFIG_FILE
    if path.exists():
        try:
            fields = read_json_object(path, limit=_LIMIT, error=ConfigError)
        except ConfigError as exc:
            return [f"out: {exc}"]
        if isinstance(fields.get("config"), dict):
            return []
        return [
            f"out: {str(folder)!r}: its {CONFIG_FILE} is not one of a run, expected an object "
            "'config' in it; give another --out"
        ]
    allowed = {LOCK_FILE} if committed_steps(folder / CHECKPOINTS) else {LOCK_FILE, CHECKPOINTS}
    try:
        names = {path.name for path in folder.iterdir()} - allowed
    except OSError:  # absent, or not to be read: the lock of the run tells
        return []
    found = sorted(name for name in names if not name.startswith("."))
    if not found:
        return []
    shown = ", ".join(found[:_MOST_NAMED]) + (", ..." if len(found) > _MOST_NAMED else "")
    return [
        f"out: {str(folder)!r}: holds {shown} and no run ({CONFIG_FILE}), expected a folder that "
        "is new, empty or a run's; give another --out"
    ]


class RunRecord(NamedTuple):
    """A run directory that belongs to the config at hand."""

    identity: str
    """Drawn when the run began; its checkpoints carry it. Empty: of a version that drew none."""
    is_new: bool
    """Whether this start is the first."""


def record_config(folder: Path, config: TrainConfig) -> RunRecord:
    """Write the resolved config, or compare with the one that is there.

    Raises:
      ConfigError: the directory belongs to a run with other settings; lists each field.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        identity = secrets.token_hex(8)
        fields = {"config": config_fields(config), "run": identity, **provenance()}
        replace_file(path, json_bytes(fields))
        return RunRecord(identity, True)
    stored = read_json_object(path, limit=_LIMIT, error=ConfigError)
    # A setting that came later is by default what was done before there was one.
    then = _flat(config_fields(TrainConfig())) | _flat(stored.get("config"))
    changes = differences(then, _flat(config_fields(config)), free=_FREE)
    if changes:
        raise ConfigError(
            f"{folder}: holds a run with other settings; give the same ones to go on with it, "
            f"or another --out{''.join(changes)}"
        )
    _say_other_versions(folder, stored.get("versions"))
    return RunRecord(str(stored.get("run", "")), False)


def differences(stored: Any, given: Mapping[str, Any], *, free: Collection[str] = ()) -> list[str]:
    """A line for each field, by its dotted name, that is not now what it was in the run.

    Args:
      stored: JSON, as it was read.
      given: JSON objects in JSON objects.
      free: names that may differ.
    """
    then, now = _flat(stored), _flat(given)
    return [
        f"\n  - {name}: {_shown(then, name)} in the run, {_shown(now, name)} now"
        for name in sorted(then.keys() | now.keys())
        if name not in free and (name not in then or name not in now or then[name] != now[name])
    ]


def provenance() -> dict[str, Any]:
    """Versions of the packages that compute, and the commit of the checkout where there is one."""
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _say_other_versions(folder: Path, stored: Any) -> None:
    """Other versions may compute other last bits: that is allowed, and said."""
    then, now = _flat(stored), provenance()["versions"]
    changes = [
        f"{name} {then[name]} -> {now[name]}"
        for name in now
        if now[name] != then.get(name, now[name])
    ]
    if changes:
        say(
            f"{folder}: warning: versions are not those that the run began with, so its numbers "
            f"may differ in their last bits from an uninterrupted run's: {', '.join(changes)}"
        )


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return shorten(fields[name]) if name in fields else "absent"


def _flat(fields: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _build(cls: type, fields: dict[str, Any]) -> Any:
    """A dataclass of `fields`, its nested dataclasses by their defaults' types."""
    default = cls()
    values = {}
    for name, value in fields.items():
        nested = getattr(default, name)
        if dataclasses.is_dataclass(nested):
            value = _build(type(nested), value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
