"""The command line of training: ``python -m train PRESET | export RUN | plot RUN | plan``.

What is said goes to standard error; export and plot print the path they wrote. A mistake is exit
status 2, a run that had to stop 1.
"""

import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxcoder.diagnostics import say

from .config import TrainConfig
from .config_checks import setting_names
from .presets import PRESETS
from .run_folder import EXPORT
from .stopped import TrainingStopped

_USAGE = """usage: python -m train PRESET [--data DATA] [--out RUN] [--model MODEL] [...]
       python -m train export RUN [DST] [--dtype DTYPE] [...]
       python -m train plot RUN [FILE]
       python -m train plan [--out FILE] [...]

{presets}

`python -m train PRESET --help` lists every setting. A run that exists goes on where it stopped."""


@dataclass(frozen=True)
class ExportCommand:
    """Write the newest checkpoint of a run as a Hugging Face folder."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    destination: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DST")] = None
    """A new or empty folder; by default export-STEP inside the run."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights written."""
    allow_older_checkpoint: bool = False
    """When the newest checkpoint is damaged, take the one before."""


@dataclass(frozen=True)
class PlotCommand:
    """Draw the curves of a run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    destination: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FILE")] = None
    """A .svg, .png or .pdf file; by default curve.svg inside the run."""


@dataclass(frozen=True)
class TrainCommand:
    """All settings of a run, and what to do with what is there."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    resume: bool = True
    """Go on with a run that exists; otherwise refuse it."""
    allow_older_checkpoint: bool = False
    """When the newest checkpoint is damaged, go on from the one before: its steps are lost."""
    export: bool = True
    """Write the finished run as a Hugging Face folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    if name in ("", "-h", "--help"):
        print(_usage(), file=sys.stderr if name == "" else sys.stdout)
        return 2 if name == "" else 0
    try:
        return _run(name, words[1:])
    except (ValueError, OSError) as exc:
        say(f"train: {exc}")
        return 2
    except TrainingStopped as exc:
        say(f"train: {exc}")
        return 1
    except (MemoryError, RuntimeError) as exc:
        from .memory import is_out_of_memory, out_of_memory

        if not is_out_of_memory(exc):
            raise
        say(f"train: {out_of_memory(exc)}; what is saved is whole: give the command more memory")
        return 1
    except KeyboardInterrupt:
        return 130


def _run(name: str, words: list[str]) -> int:
    commands = {"export": _export, "plot": _plot, "plan": _plan}
    if name in commands:
        return commands[name](words)
    if name not in PRESETS:
        raise ValueError(
            f"{name!r} is no preset or command, expected {', '.join([*PRESETS, *commands])}; "
            "see python -m train --help"
        )
    return _train(name, words)


def _export(words: list[str]) -> int:
    command = tyro.cli(ExportCommand, args=words, prog="python -m train export")
    from .export import export_run

    path = export_run(
        command.run,
        command.destination,
        step=command.step,
        dtype=command.dtype,
        allow_older_checkpoint=command.allow_older_checkpoint,
    )
    print(path)
    return 0


def _plot(words: list[str]) -> int:
    command = tyro.cli(PlotCommand, args=words, prog="python -m train plot")
    from .plot import plot_run

    print(plot_run(command.run, command.destination))
    return 0


def _plan(words: list[str]) -> int:
    from jaxcoder.config import ModelConfig

    from .plan import PlanConfig, main

    config = tyro.cli(
        PlanConfig,
        args=words,
        prog="python -m train plan",
        description="Compile for TPUs that are not there, at TinyStarCoderPy's shape: what memory "
        "the train step and decoding need.",
    )
    return main(config, ModelConfig.tiny_starcoder())


def _train(preset: str, words: list[str]) -> int:
    command, unknown = tyro.cli(
        TrainCommand,
        args=words,
        default=TrainCommand(PRESETS[preset]()),
        prog=f"python -m train {preset}",
        description=PRESETS[preset].__doc__,
        return_unknown_args=True,
    )
    if unknown:
        from .start_checks import check_start

        check_start(command.config, further=list(_mistyped(unknown)))
    from .loop import fit
    from .signals import stop_on_signals

    outcome = fit(
        command.config,
        allow_older_checkpoint=command.allow_older_checkpoint,
        resume=command.resume,
    )
    if outcome.is_finished and command.export:
        from .export import export_run

        run = Path(command.config.out)
        folder = run / f"{EXPORT}-{outcome.step}"
        # It takes seconds and is whole or absent: signals let it end.
        with stop_on_signals():
            print(folder if folder.exists() else export_run(run, folder, step=outcome.step))
    return 0


def _mistyped(words: Sequence[str]) -> Iterator[str]:
    """A problem for each of the words that are no option, values of such options aside."""
    names = setting_names(TrainCommand(TrainConfig()))
    known = ["--" + name.removeprefix("config.").replace("_", "-") for name in names]
    is_value = False
    for word in words:
        if word.startswith("--"):
            near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            yield f"{word}: no such setting, expected {near[0] if near else 'one of --help'}"
        elif not is_value:
            yield f"{word!r}: a word without an option, expected --NAME before it"
        is_value = word.startswith("--") and "=" not in word


def _usage() -> str:
    described = {name: (make.__doc__ or "").splitlines()[0] for name, make in PRESETS.items()}
    lines = ["presets:", *(f"  {name:15} {line}" for name, line in described.items())]
    return _USAGE.format(presets="\n".join(lines))
