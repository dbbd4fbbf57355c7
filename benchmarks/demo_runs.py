"""How the card of the demo model tells its runs: the commands, and the settings side by side."""

from collections.abc import Iterator
from typing import Any

from train.presets import stdlib
from train.run_folder import config_fields


def commands(runs: list[dict[str, Any]], measured: list[str]) -> Iterator[str]:
    """The lines that make the corpus, train, export, measure and write the card.

    Args:
      runs: of the curves' file.
      measured: names of the folders measured, by the steps of all runs; the last is the model's.
    """
    yield "python -m train.demo_corpus --wheels WHEELS --out CORPUS"
    done, before = 0, ""
    for number, run in enumerate(runs, start=1):
        words = [
            "python -m train stdlib --data CORPUS/train",
            *([f"--model {before}"] if before else []),
        ]
        lines = [" ".join([*words, f"--out runs/demo-{number}"])]
        lines += [
            f"--{name.replace('_', '-')} {_words(value)}" for name, value in run["changes"].items()
        ]
        yield " \\\n  ".join(lines)
        last = done + run["steps"]
        if run["steps"] < run["steps_planned"]:
            yield f"# which was stopped, by Ctrl-C, after step {run['steps']}"
        ends = {int(name.partition("-")[0]) for name in measured} | {last}
        for end in sorted(end for end in ends if done < end <= last):
            step = "" if end == done + run["steps_planned"] else f" --step {end - done}"
            export = f"python -m train export runs/demo-{number} exports/{end}-steps{step}"
            yield f"{export} --dtype bfloat16"
        done, before = last, f"exports/{last}-steps"
    earlier = " ".join(f"exports/{name}" for name in measured[:-1])
    yield f"python -m benchmarks.demo_model --model exports/{measured[-1]} \\"
    yield f"  --earlier {earlier} \\"
    yield "  --held-out CORPUS/heldout_stdlib --third-party CORPUS/heldout_thirdparty"
    folders = " ".join(f"runs/demo-{number}" for number in range(1, len(runs) + 1))
    yield f"python -m benchmarks.demo_curve --runs {folders}"
    yield f"python -m benchmarks.demo_card --model exports/{measured[-1]} --out jaxcoder/demo"


_NAMED = {
    "fim.rate": "share of the pieces that are permuted",
    "fim.spm_rate": "of those, suffix first",
    "fim.line_rate": "of those, with one whole line for a middle",
    "batch.piece_tokens": "shortest and longest piece, tokens",
    "batch.middle_weight": "weight of a middle's token in the loss",
    "optimizer.peak_lr": "peak learning rate of AdamW",
    "optimizer.warmup_steps": "steps of warm-up",
    "loop.steps": "steps",
}
"""Settings in words; one that is not here is named as on the command line."""


def setting_rows(runs: list[dict[str, Any]]) -> list[str]:
    """A row of the card's table for each setting that differs between the runs."""
    preset = config_fields(stdlib())
    rows = []
    changed = {name for run in runs for name in run["changes"]}
    for name in [*_NAMED, *sorted(changed - _NAMED.keys())]:
        # How often a run was measured and saved changes nothing.
        if name not in changed or (name.startswith("loop.") and name != "loop.steps"):
            continue
        group, _, key = name.rpartition(".")
        default = preset[group][key] if group else preset[key]
        cells = [_words(run["changes"].get(name, default)) or "as a row" for run in runs]
        rows.append(f"| {_NAMED.get(name, name)} | {' | '.join(cells)} |")
    return rows


def _words(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
