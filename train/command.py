"""The words of the command line that say a run's settings: what `cli` reads, written."""

import dataclasses
from typing import Any

from .config import TrainConfig


def command_words(config: TrainConfig) -> list[str]:
    """What stands after ``python -m train`` for a run: its preset, and every setting by name."""
    return [config.preset, *_words(config, "--")]


def _words(fields: Any, prefix: str) -> list[str]:
    words = []
    for field in dataclasses.fields(fields):
        value = getattr(fields, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += _words(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            words.append(f"{prefix}{'' if value else 'no-'}{name}")
        elif value is not None:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"{prefix}{name}", *map(str, values)]
    return words
