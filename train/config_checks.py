"""`check_config`: every mistake of a training configuration in one error, before work is done."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args, get_type_hints

from jaxcoder.errors import ConfigError
from jaxcoder.problems import raise_if_any, shorten

from .config import BatchConfig, LoraConfig, ShapeConfig, TrainConfig
from .pieces import RESERVE, SHORTEST_PIECE, SHORTEST_WINDOW
from .tokenizer_training import SMALLEST_VOCABULARY, SPECIAL_TOKENS


def check_config(config: TrainConfig, *, further: Sequence[str] = ()) -> None:
    """Raise one error for all that is wrong with `config` by itself.

    What depends on the model or the data (a window longer than the model's positions, say) is
    told by `start_checks.check_start`.

    Args:
      config: the settings.
      further: problems found where the settings were read, to be listed with these.

    Raises:
      ConfigError: lists every problem: the field, its value, what was expected.
    """
    raise_if_any(
        [*further, *config_problems(config)],
        "training configuration",
        remedy="mend the settings named",
        error=ConfigError,
    )


def setting_names(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings, such as optimizer.peak_lr."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def window_problems(seq_len: int, n_positions: int) -> list[str]:
    """Whether rows of `seq_len` tokens fit a model of `n_positions`."""
    if seq_len <= n_positions:
        return []
    return [f"batch.seq_len: {seq_len}, expected at most the model's n_positions {n_positions}"]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "count": (_is_count, "an integer of 1 or more"),
    "index": (_is_index, "an integer of 0 or more"),
    # JAX's keys have no room for more: a greater seed would give the weights of a smaller one.
    "seed": (lambda v: _is_index(v) and v < 2**32, f"an integer from 0 to {2**32 - 1}"),
    "share": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "below one": (lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1"),
    "positive": (lambda v: _is_number(v) and v > 0, "a finite number above 0"),
    "not negative": (lambda v: _is_number(v) and v >= 0, "a finite number of 0 or more"),
}

_FIELDS = {
    "count": """
        shape.vocab_size shape.n_positions shape.n_embd shape.n_layer shape.n_head
        source.max_line_chars batch.size batch.seq_len batch.accumulation compute.loss_chunk
        loop.steps loop.log_every loop.eval_every loop.eval_batches loop.save_every loop.keep
        loop.max_bad_steps
    """,
    "index": """
        optimizer.warmup_steps lora.rank compute.prefetch_threads
        loop.eval_infills loop.eval_samples
    """,
    "seed": "seed",
    "share": "source.error_budget fim.rate fim.spm_rate fim.line_rate optimizer.final_lr_ratio",
    "below one": "source.validation_share shape.dropout optimizer.beta1 optimizer.beta2",
    "positive": """
        optimizer.peak_lr optimizer.epsilon optimizer.clip_norm lora.alpha batch.middle_weight
    """,
    "not negative": "optimizer.weight_decay optimizer.z_loss",
}


def config_problems(config: TrainConfig) -> Iterator[str]:
    """All that is wrong with `config` by itself; each begins with the field's name and a colon."""
    yield from _missing(config)
    for rule, names in _FIELDS.items():
        holds, expected = _RULES[rule]
        for name in names.split():
            value = _value(config, name)
            if not holds(value):
                yield f"{name}: {shorten(value)}, expected {expected}"
    yield from _choice_problems(config, "")
    yield from _batch_problems(config.batch)
    yield from _piece_problems(config)
    yield from _middle_problems(config)
    if not config.model:
        yield from _shape_problems(config)
    yield from _relation_problems(config)


def _missing(config: TrainConfig) -> Iterator[str]:
    if not config.data:
        yield "data: empty, expected a folder, a .jsonl file, hf:NAME or stdlib (--data)"
    if not config.out:
        yield "out: empty, expected the folder of the run (--out)"
    if config.model == "" and (config.fresh or config.revision is not None):
        yield "fresh, revision: given without a model, expected --model with them"
    if config.revision == "":
        yield "revision: '', expected a commit, a branch or nothing"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _choice_problems(config: Any, prefix: str) -> Iterator[str]:
    """Fields with a fixed set of values: Python callers have no command line to check them."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), get_args(hints[field.name])
        if dataclasses.is_dataclass(value):
            yield from _choice_problems(value, f"{prefix}{field.name}.")
            continue
        is_fixed = bool(choices) and all(isinstance(choice, str) for choice in choices)
        if is_fixed and value not in choices:
            yield f"{prefix}{field.name}: {shorten(value)}, expected {' or '.join(choices)}"


def _batch_problems(batch: BatchConfig) -> Iterator[str]:
    if _is_count(batch.seq_len) and batch.seq_len + 1 < SHORTEST_WINDOW:
        yield (
            f"batch.seq_len: {batch.seq_len}, expected at least {SHORTEST_WINDOW - 1}, of which "
            f"{RESERVE} are kept for fill-in-the-middle"
        )
    if _is_count(batch.size) and _is_count(batch.accumulation) and batch.size % batch.accumulation:
        yield (
            f"batch.accumulation: {batch.accumulation}, expected a divisor of "
            f"batch.size {batch.size}"
        )


def _piece_problems(config: TrainConfig) -> Iterator[str]:
    lengths: Any = config.batch.piece_tokens  # whatever a caller from Python has given
    seq_len = config.batch.seq_len
    given = f"batch.piece_tokens: {shorten(lengths)}"
    is_two = isinstance(lengths, tuple) and len(lengths) in (0, 2)
    is_long = is_two and all(_is_count(each) and each >= SHORTEST_PIECE for each in lengths)
    if not is_long or lengths != tuple(sorted(lengths)):
        yield (
            f"{given}, expected nothing, or two integers of {SHORTEST_PIECE} or more, the shorter "
            "first"
        )
    elif lengths and config.fim.level == "document":
        yield (
            f"{given} with fim.level 'document', expected none: there, documents are permuted "
            "whole; give it no numbers, or set fim.level to 'context'"
        )
    elif lengths and _is_count(seq_len) and lengths[0] >= (room := seq_len + 1 - RESERVE):
        yield (
            f"{given}, expected a shortest below the {room} tokens that a row of batch.seq_len "
            f"{seq_len} holds; lower it, raise batch.seq_len, or give it no numbers"
        )


def _middle_problems(config: TrainConfig) -> Iterator[str]:
    batch = config.batch
    if not _is_number(batch.middle_weight) or batch.middle_weight == 1:
        return
    if batch.loss == "middle":
        yield (
            f"batch.middle_weight: {batch.middle_weight!r} with batch.loss 'middle', expected 1: "
            "nothing else counts"
        )
    elif config.fim.rate == 0:
        yield (
            f"batch.middle_weight: {batch.middle_weight!r} with fim.rate 0, expected 1: there are "
            "no middles"
        )


def _shape_problems(config: TrainConfig) -> Iterator[str]:
    shape: ShapeConfig = config.shape
    if _is_count(shape.vocab_size) and shape.vocab_size < SMALLEST_VOCABULARY:
        yield (
            f"shape.vocab_size: {shape.vocab_size}, expected at least {SMALLEST_VOCABULARY}: "
            f"{len(SPECIAL_TOKENS)} special tokens and 256 bytes"
        )
    counts = [shape.n_embd, shape.n_head, shape.n_positions, config.batch.seq_len]
    if not all(map(_is_count, counts)):
        return
    if shape.n_embd % shape.n_head:
        yield f"shape.n_embd: {shape.n_embd}, expected a multiple of shape.n_head {shape.n_head}"
    yield from window_problems(config.batch.seq_len, shape.n_positions)


def _relation_problems(config: TrainConfig) -> Iterator[str]:
    warmup, steps = config.optimizer.warmup_steps, config.loop.steps
    if _is_index(warmup) and _is_count(steps) and warmup >= steps:
        yield f"optimizer.warmup_steps: {warmup}, expected fewer than loop.steps {steps}"
    if config.fim.line_rate and config.fim.cut == "token":
        yield (
            f"fim.line_rate: {config.fim.line_rate!r} with fim.cut 'token', expected 0: lines are "
            "found in characters; set fim.cut to 'character'"
        )
    if config.batch.loss == "middle" and config.fim.rate == 0:
        yield "batch.loss: 'middle' with fim.rate 0, expected a rate above 0: nothing would count"
    if config.lora.rank and not config.model:
        yield f"lora.rank: {config.lora.rank} without a model, expected --model with it"
    known, targets = LoraConfig().targets, config.lora.targets
    if not isinstance(targets, tuple):
        targets = (targets,)
    if not targets or not set(targets) <= set(known) or len(set(targets)) < len(targets):
        yield (
            f"lora.targets: {', '.join(map(str, targets)) or 'empty'}, expected one or more of "
            f"{', '.join(known)}, each once"
        )
