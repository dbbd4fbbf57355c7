"""What a run tells of its steps; those that are not finite change nothing, through the loop."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from train_cases import assert_bitwise_equal
from training_run import MODEL, command_words, run_config
from watched_steps import WatchedSteps, watched

from jaxcoder.checkpoint import load_checkpoint
from jaxcoder.tokenizer import Tokenizer
from train import cli
from train import report as report_module
from train.config import LoraConfig, TrainConfig
from train.data import Batch, BatchSource, Contents
from train.fim import unpermute
from train.loop import fit
from train.metrics import flops_per_token, read_json_lines
from train.remarks import LOSSES_KEPT
from train.report import Report, Reporter
from train.run_data import cache_folder
from train.step import (
    Metrics,
    StepConfig,
    TrainState,
    apply_gradients,
    loss_and_gradients,
    train_step,
)
from train.stopped import TrainingStopped
from train.store import open_store
from train.token_store import document_ids

BAD_TENSOR = "h_1/mlp/c_fc/weight"
STEPS = 8  # the same in every test: a step is compiled for the length of its run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path_factory.getbasetemp() / "report_cache"))


@functools.partial(jax.jit, static_argnames="config")
def bad_gradient(
    state: TrainState, batch: Batch, *, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """A step with one NaN in the gradient of one tensor; the loss is finite."""
    loss, gradients = loss_and_gradients(state, batch, config=config)
    *blocks, name = BAD_TENSOR.split("/")
    tensors = functools.reduce(dict.__getitem__, blocks, gradients)
    tensors[name] = tensors[name].at[3, 5].set(np.nan)
    tokens = batch.loss_mask.sum()
    return apply_gradients(state, gradients, loss=loss, tokens=tokens, config=config)


@functools.partial(jax.jit, static_argnames="config")
def bad_loss(state: TrainState, batch: Batch, *, config: StepConfig) -> tuple[TrainState, Metrics]:
    """A step whose loss is NaN though every gradient is finite."""
    loss, gradients = loss_and_gradients(state, batch, config=config)
    tokens = batch.loss_mask.sum()
    return apply_gradients(state, gradients, loss=loss * np.nan, tokens=tokens, config=config)


def bad_data(state: TrainState, batch: Batch, *, config: StepConfig) -> tuple[TrainState, Metrics]:
    """A step on a batch with one weight of a token that is no number."""
    batch.loss_mask[1, 7] = np.nan
    return train_step(state, batch, config=config)


def bad_moment(
    state: TrainState, batch: Batch, *, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """A step from a state with one NaN among the first moments."""
    *blocks, name = BAD_TENSOR.split("/")
    tensors = functools.reduce(dict.__getitem__, blocks, state.opt_state[1].mu)
    tensors[name] = tensors[name].at[3, 5].set(np.nan)
    return train_step(state, batch, config=config)


def no_token(state: TrainState, batch: Batch, *, config: StepConfig) -> tuple[TrainState, Metrics]:
    """A step on a batch of which nothing counts."""
    return train_step(state, batch._replace(loss_mask=0 * batch.loss_mask), config=config)


BAD_STEPS = {"gradient": bad_gradient, "loss": bad_loss, "data": bad_data}


def assert_pieces(described: list[str], config: TrainConfig, step: int) -> None:
    """They are those of the step's batch: number, document, and tokens in it."""
    tokenizer = Tokenizer.from_file(Path(config.model) / "tokenizer.json", vocab_size=288)
    store = open_store(config, tokenizer, cache_folder())
    batch, contents = BatchSource(store, tokenizer, config).batch(step)
    numbers = [piece for row in contents.pieces for piece in row]
    segments = [
        tokens[segment_ids == segment]
        for tokens, segment_ids in zip(batch.tokens, batch.segment_ids, strict=True)
        for segment in range(1, segment_ids.max() + 1)
    ]
    for piece, number, ids in zip(described, numbers, segments, strict=True):
        start, stop = (int(offset) for offset in piece.split("[")[1].strip("]").split(":"))
        name = piece.split(" ")[1].split("[")[0]
        assert piece == f"{number} {name}[{start}:{stop}]"
        document = document_ids(store, store.names.index(name))
        assert tokenizer.decode(document[start:stop]) == unpermute(ids, tokenizer)


def told(run: Path) -> list[dict]:
    """The lines of the metrics about steps that were not finite."""
    return [line for line in read_json_lines(run / "metrics.jsonl") if "bad_tensors" in line]


def assert_unchanged(steps: WatchedSteps, number: int) -> None:
    before, after = steps.states[number], steps.states[number + 1]
    for name in ("params", "frozen", "opt_state"):
        assert_bitwise_equal(getattr(after, name), getattr(before, name))
    assert (int(before.step), int(after.step)) == (number, number + 1)


@pytest.mark.parametrize("kind", BAD_STEPS)
def test_one_bad_step_is_told_and_skipped(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The state stays bitwise; pieces and tensors are named; the run goes on to its end.

    Control: the steps around it change every weight, and are not told.
    """
    config = run_config(tmp_path, steps=STEPS, save_every=STEPS, eval_every=STEPS)
    steps = watched(monkeypatch, spoiled={2: BAD_STEPS[kind]})
    assert fit(config) == (STEPS, True)
    assert_unchanged(steps, 2)
    for number in (0, 1, 3, 4):
        before, after = steps.states[number].params, steps.states[number + 1].params
        moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), before, after)
        assert all(jax.tree.leaves(moved)), number
    assert [int(state.bad_steps) for state in steps.states] == [0, 0, 0, 1, 0, 0, 0, 0, 0]

    (line,) = told(tmp_path / "run")
    assert line["step"] == 3
    assert_pieces(line["pieces"], config, 2)
    names = line["bad_tensors"]
    if kind == "gradient":
        assert names == [BAD_TENSOR]
    elif kind == "loss":
        assert names == []
    else:
        assert BAD_TENSOR in names
    said = capsys.readouterr().err
    assert "step 3: not finite" in said
    assert (", ".join(names) or "no tensor") in said
    assert f"pieces {', '.join(line['pieces'])}; " in said
    assert "weights and optimizer are as they were" in said
    assert said.count("not finite") == 1


def test_the_steps_after_are_those_of_a_run_that_never_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skipped step counts for batch, schedule and dropout, and for nothing else."""
    config = run_config(tmp_path, steps=STEPS, save_every=STEPS, eval_every=STEPS)
    spoiled = watched(monkeypatch, spoiled={1: bad_gradient})
    fit(config)

    def skip(state: TrainState, batch: Batch, *, config: StepConfig) -> tuple[TrainState, Metrics]:
        kept = state._replace(step=state.step + 1)
        metrics = Metrics(*(np.float32(1) for _ in Metrics._fields))
        return kept, metrics._replace(is_finite=np.bool_(True))

    skipped = watched(monkeypatch, spoiled={1: skip})
    fit(dataclasses.replace(config, out=str(tmp_path / "skipped")))
    for number in range(2, STEPS + 1):
        expected = skipped.states[number]._replace(bad_steps=spoiled.states[number].bad_steps)
        assert_bitwise_equal(spoiled.states[number], expected)


@pytest.mark.parametrize("kind", BAD_STEPS)
def test_the_command_stops_after_too_many_in_a_row(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Exit status 1, no traceback, no export; every one of them is told; the state is whole."""
    config = run_config(tmp_path, steps=STEPS, save_every=2, eval_every=STEPS, max_bad_steps=3)
    steps = watched(monkeypatch, spoiled=dict.fromkeys(range(3, STEPS), BAD_STEPS[kind]))
    assert cli.main(command_words(config)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "train: step 6: 3 steps in a row were not finite" in said.err
    assert "loop.max_bad_steps" in said.err
    assert "Traceback" not in said.err
    assert [line["step"] for line in told(tmp_path / "run")] == [4, 5, 6]
    for number in (3, 4, 5):
        assert_unchanged(steps, number)
    assert not list((tmp_path / "run").glob("export*"))

    # With good data it goes on, from weights without a bad step in them.
    again = watched(monkeypatch)
    assert cli.main(command_words(config)) == 0
    for name in ("params", "opt_state"):
        assert_bitwise_equal(getattr(again.states[0], name), getattr(steps.states[3], name))


def test_bad_steps_with_good_ones_between_do_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tmp_path, steps=STEPS, save_every=STEPS, eval_every=STEPS, max_bad_steps=2)
    steps = watched(monkeypatch, spoiled=dict.fromkeys((0, 2, 4, 6), bad_gradient))
    assert fit(config) == (STEPS, True)
    assert [line["step"] for line in told(tmp_path / "run")] == [1, 3, 5, 7]
    assert max(int(state.bad_steps) for state in steps.states) == 1


def test_one_too_many_at_the_last_step_stops_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tmp_path, steps=STEPS, save_every=STEPS, eval_every=STEPS, max_bad_steps=1)
    watched(monkeypatch, spoiled={STEPS - 1: bad_loss})
    with pytest.raises(TrainingStopped, match="step 8: 1 steps in a row"):
        fit(config)


def test_a_bad_adapter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Names are those of what is trained."""
    config = run_config(tmp_path, steps=STEPS, save_every=STEPS, eval_every=STEPS)
    config = dataclasses.replace(config, lora=LoraConfig(rank=2, targets=("attn/q",)))
    steps = watched(monkeypatch, spoiled={1: bad_data})
    assert fit(config) == (STEPS, True)
    assert_unchanged(steps, 1)
    (line,) = told(tmp_path / "run")
    assert set(line["bad_tensors"]) == {f"h_{n}/attn/q/{part}" for n in (0, 1) for part in "ab"}


def test_a_bad_moment_never_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The run stops, since no later step mends it; what it says of the checkpoints is true.

    It went into the weights, and they were saved: "the newest checkpoint has the weights from
    before them", said the end.
    """
    config = run_config(tmp_path, steps=STEPS, save_every=2, eval_every=STEPS, max_bad_steps=3)
    steps = watched(monkeypatch, spoiled={2: bad_moment})
    assert cli.main(command_words(config)) == 1
    said = capsys.readouterr().err
    expected = rf"step 3: not finite: loss \d\S+, gradients of no tensor, moments of {BAD_TENSOR}; "
    assert re.search(expected, said)
    assert "train: step 5: 3 steps in a row were not finite" in said
    assert "its newest checkpoint has them, and the weights from before" in said
    assert [line["bad_moments"] for line in told(tmp_path / "run")] == [[BAD_TENSOR]] * 3
    for number in (3, 4, 5):
        assert_bitwise_equal(steps.states[number].params, steps.states[2].params)

    assert cli.main(command_words(config)) == 1, "the same command stops here again"
    assert "train: step 5: 3 steps in a row" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "export")]) == 0
    _, params = load_checkpoint(tmp_path / "export", dtype="float32")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_batch_without_a_counted_token_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It went by without a word where its step was none of those that are logged."""
    config = run_config(tmp_path, steps=STEPS, save_every=STEPS, eval_every=STEPS, log_every=STEPS)
    steps = watched(monkeypatch, spoiled={2: no_token})
    assert fit(config) == (STEPS, True)
    assert_unchanged(steps, 2)
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    (line,) = [line for line in lines if "skipped" in line]
    assert (line["step"], line["skipped"]) == (3, "no token counts")
    assert_pieces(line["pieces"], config, 2)
    said = capsys.readouterr().err
    assert (
        f"step 3: no token of its batch counts in the loss; pieces {', '.join(line['pieces'])}; "
        "weights and optimizer are as they were"
    ) in said
    assert not told(tmp_path / "run")


def test_a_run_that_holds_nothing_out_has_no_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Control: with the share of the other tests there is one before and one after the steps."""
    config = run_config(tmp_path, steps=STEPS, save_every=STEPS, eval_every=STEPS, eval_samples=1)
    none = dataclasses.replace(
        config,
        source=dataclasses.replace(config.source, validation_share=0.0),
        out=str(tmp_path / "none"),
    )
    for each, expected in ((none, []), (config, [0, STEPS])):
        assert fit(each) == (STEPS, True)
        lines = read_json_lines(Path(each.out) / "metrics.jsonl")
        assert [line["step"] for line in lines if "validation_loss" in line] == expected
        assert len([line for line in lines if "loss" in line]) == STEPS
        assert (Path(each.out) / "samples.jsonl").exists() == bool(expected)
        assert ("validation_loss" in capsys.readouterr().err) == bool(expected)


def reporter_of(run: Path, config: TrainConfig, **arguments: Any) -> Reporter:
    """One without a validation; pieces are described as their numbers."""
    return Reporter(
        run, config, MODEL, None, tensors=[], describe=str, **{"after_step": 0} | arguments
    )


def metrics_of(loss: float, *, tokens: float = 9.0) -> Metrics:
    """Of a step that is finite."""
    flags = np.array([], np.bool_)
    return Metrics(np.float32(loss), tokens, 0.5, 1e-3, np.bool_(True), flags, flags, np.int32(0))


ONE_TOKEN = Batch(*(np.ones((1, 2), np.int32) for _ in Batch._fields))


def report_losses(reporter: Reporter, losses: list[float], *, after: int = 0) -> None:
    for step, loss in enumerate(losses, after + 1):
        reporter.step(Report(step, ONE_TOKEN, Contents([[4, 5], [6]], 0), metrics_of(loss)))


def spikes(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = read_json_lines(path) if path.exists() else []
    return [line for line in lines if "loss_spike" in line]


def test_a_loss_spike_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A loss of a hundred times the usual one went by without a word. The run goes on.

    Control: less than three times is nothing to speak of.
    """
    reporter = reporter_of(tmp_path, run_config(tmp_path, steps=200, log_every=100))
    report_losses(reporter, [3.0, 2.0, 2.5] * 4 + [7.4, 250.0, 2.5])
    (line,) = spikes(tmp_path)
    pieces = ["4 4", "5 5", "6 6"]
    assert line == {"step": 14, "loss_spike": 250.0, "median_loss": 2.5, "pieces": pieces}
    assert capsys.readouterr().err == (
        "step 14: loss 250 is more than 3 times the median 2.5 of the last 13; "
        "pieces 4 4, 5 5, 6 6; the step was taken, the run goes on\n"
    )


def test_three_times_next_to_nothing_is_no_spike(tmp_path: Path) -> None:
    """Losses of text that is known by heart; half a nat more is told all the same."""
    reporter = reporter_of(tmp_path, run_config(tmp_path, steps=200, log_every=100))
    report_losses(reporter, [0.001] * 12 + [0.4, 0.6])
    assert [line["step"] for line in spikes(tmp_path)] == [14]


def test_a_spike_needs_losses_to_stand_out_from(tmp_path: Path) -> None:
    """The first losses of a run are not judged; a lasting new height is soon the usual one."""
    reporter = reporter_of(tmp_path, run_config(tmp_path, steps=200, log_every=1000))
    report_losses(reporter, [2.0] * 7 + [20.0])
    assert not spikes(tmp_path)
    report_losses(reporter, [2.0] * LOSSES_KEPT + [20.0] * 99, after=8)
    told = [line["step"] for line in spikes(tmp_path)]
    assert told == [*range(8 + LOSSES_KEPT + 1, told[-1] + 1)]
    assert len(told) <= LOSSES_KEPT // 2 + 1


def test_losses_to_compare_with_go_on_with_a_run(tmp_path: Path) -> None:
    """A start says what the run without an interruption says. Control: without them, nothing."""
    config = run_config(tmp_path, steps=200, log_every=100)
    first = reporter_of(tmp_path, config)
    report_losses(first, [0.2, 0.3] * 20)
    report_losses(first, [1.9], after=40)
    totals = json.loads(json.dumps(first.totals()))
    whole = spikes(tmp_path)
    assert [line["step"] for line in whole] == [41]
    for name, given in (("goes on", totals), ("forgets", None)):
        (tmp_path / name).mkdir()
        start = reporter_of(tmp_path / name, config, after_step=41, totals=given)
        report_losses(start, [1.9], after=41)
        assert [line["step"] for line in spikes(tmp_path / name)] == [42] * bool(given)
    report_losses(first, [1.9], after=41)
    assert spikes(tmp_path)[1:] == spikes(tmp_path / "goes on")


class Clock:
    """Stands in for `time`: a second passes at every look."""

    def __init__(self) -> None:
        self._now = 0.0

    def perf_counter(self) -> float:
        self._now += 1.0
        return self._now


class Bar:
    """Stands in for the bar on a terminal: what it shows."""

    def __init__(self) -> None:
        self.n = 0
        self.shown: list[dict[str, str]] = []

    def update(self, count: int) -> None:
        self.n += count

    def set_postfix(self, fields: dict[str, str]) -> None:
        self.shown.append(fields)


@pytest.mark.parametrize("peak", [None, 1e9])
def test_rates_are_of_all_tokens_shown(
    peak: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever counts in the loss: with the middles alone, few do. Padding is none of them.

    The first step of a start is not in them, nor the time until then: it is compiled.
    """
    bar = Bar()
    monkeypatch.setattr(report_module, "time", Clock())
    monkeypatch.setattr(report_module, "peak_flops", lambda kind: peak)
    monkeypatch.setattr(report_module, "progress_bar", lambda **_: bar)
    config = run_config(tmp_path, steps=7, log_every=3)
    reporter = reporter_of(tmp_path, config)
    segment_ids = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32)
    weights = np.array([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.float32)
    batch = Batch(segment_ids, segment_ids, segment_ids, weights)
    metrics = metrics_of(2.5, tokens=float(weights.sum()))
    for step in range(1, 8):
        reporter.step(Report(step, batch, Contents([[4, 5], [6]], 2), metrics))

    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 7], "every third, and the last"
    assert [line["fim_overflows"] for line in lines] == [6, 12, 14]
    rates = [2 * 5, 3 * 5, 5]  # 4 and 1 tokens predicted a step; a second from look to look
    assert [line["tokens_per_second"] for line in lines] == rates
    assert [line["loss"] for line in lines] == [2.5, 2.5, 2.5]
    assert bar.n == 7
    flops = flops_per_token(MODEL, config.batch.seq_len)
    expected = [{"loss": "2.500", "tokens/s": str(rate)} for rate in rates]
    if peak:
        assert [line["mfu"] for line in lines] == [rate * flops / peak for rate in rates]
        expected = [
            fields | {"MFU": f"{rate * flops / peak:.1%}"}
            for fields, rate in zip(expected, rates, strict=True)
        ]
    else:
        assert all("mfu" not in line for line in lines)
    assert bar.shown == expected


def test_a_first_step_that_is_logged_has_no_rate(tmp_path: Path) -> None:
    """It was that of the compilation, and stood for tokens per second."""
    config = run_config(tmp_path, steps=3, log_every=1, eval_every=3)
    assert fit(config) == (3, True)
    lines = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    has_rate = ["tokens_per_second" in line for line in lines if "loss" in line]
    assert has_rate == [False, True, True]
