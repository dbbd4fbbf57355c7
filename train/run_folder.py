"""What a run directory says about its run: the resolved config, and where it came from."""

import dataclasses
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxcoder.durable import replace_file
from jaxcoder.errors import ConfigError
from jaxcoder.json_file import json_bytes, read_json_object
from jaxcoder.problems import shorten

from .config import TrainConfig

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
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
}

_LIMIT = 1 << 20


def config_fields(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON has them: nested objects, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def read_config(folder: Path) -> TrainConfig:
    """The config that a run directory was started with.

    Raises:
      ConfigError: no such file, or not one that this version wrote.
    """
    path = folder / CONFIG_FILE
    fields = read_json_object(path, limit=_LIMIT, error=ConfigError).get("config")
    try:
        return _build(TrainConfig, fields)
    except (TypeError, AttributeError) as exc:
        raise ConfigError(
            f"{path}: config does not have the fields of this version ({exc}); "
            "use the version named in the file"
        ) from exc


def record_config(folder: Path, config: TrainConfig) -> bool:
    """Write the resolved config, or compare with the one that is there; whether it was there.

    Raises:
      ConfigError: the directory belongs to a run with other settings; lists each field.
    """
    path = folder / CONFIG_FILE
    if path.exists():
        _refuse_changes(path, config)
        return True
    path.touch()
    replace_file(path, json_bytes({"config": config_fields(config), **provenance()}))
    return False


def provenance() -> dict[str, Any]:
    """Versions of the packages that compute, and the commit of the checkout where there is one."""
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _refuse_changes(path: Path, config: TrainConfig) -> None:
    stored = _flat(read_json_object(path, limit=_LIMIT, error=ConfigError).get("config"))
    given = _flat(config_fields(config))
    changes = [
        f"\n  - {name}: {shorten(stored.get(name))} in the run, {shorten(given.get(name))} now"
        for name in sorted(stored.keys() | given.keys())
        if name not in _FREE and stored.get(name) != given.get(name)
    ]
    if changes:
        raise ConfigError(
            f"{path.parent}: holds a run with other settings; give the same ones to go on with it, "
            f"or another --out{''.join(changes)}"
        )


def _flat(fields: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in (fields or {}).items():
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
