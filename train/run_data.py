"""What a run shows to its model: tokenizer, tokens and batches, prepared or found prepared."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxcoder.diagnostics import say

from .config import TrainConfig
from .data import BatchSource
from .evaluation import Validation
from .run_record import record_data, recorded_data
from .start import Origin, Start, prepare_start
from .store import open_store


class Data(NamedTuple):
    """What a run shows to its model, and the beginning of the model itself."""

    start: Start
    """The model's config, weights and tokenizer."""
    source: BatchSource
    """The batches, by step."""
    validation: Validation
    """What is measured between steps."""


def prepare_data(run: Path, config: TrainConfig, origin: Origin) -> Data:
    """Tokenizer, tokens and batches of a run; what it began with is written, or compared.

    Args:
      run: the run's folder.
      config: its settings.
      origin: what `check_start` found of the model.

    Raises:
      ConfigError: the model or the data is not usable, or not what the run began with.
    """
    start = prepare_start(config, run, origin)
    human_eval = config.source.human_eval
    store = open_store(
        config,
        start.tokenizer,
        cache_folder(),
        human_eval=None if human_eval is None else Path(human_eval),
        expected=recorded_data(run),
    )
    record_data(run, store.report)
    say(_counts(store.report))
    if not store.report["validation_documents"]:
        say(
            f"data: warning: of {_count(store.report['documents'], 'document')} none is held out "
            f"(share {config.source.validation_share}), so there is no validation; for one, start "
            "a run with a greater --source.validation-share, such as 0.2, and more documents if "
            "these are few"
        )
    source = BatchSource(store, start.tokenizer, config)
    validation = Validation(store, start.config, start.tokenizer, config=config)
    return Data(start, source, validation)


def _counts(report: Mapping[str, Any]) -> str:
    """What the data hold and what was left out, in one line; data.json in the run has it all."""
    left_out = ", ".join(f"{bad['count']} {reason}" for reason, bad in report["bad"].items())
    overlap = report["humaneval_overlap"]
    return (
        f"data: {_count(report['documents'], 'document')} "
        f"({report['validation_documents']} held out), "
        f"{report['tokens']} tokens; left out: {left_out or 'none'}; "
        f"near duplicates: {report['near_duplicates']}; with text of HumanEval: "
        f"{'not looked for (--source.human-eval FILE)' if overlap is None else overlap}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def cache_folder() -> Path:
    """Where token stores are kept: $JAXCODER_CACHE, else ~/.cache/jaxcoder."""
    root = os.environ.get("JAXCODER_CACHE") or Path.home() / ".cache" / "jaxcoder"
    return Path(root) / "tokens"
