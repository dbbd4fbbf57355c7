"""Validation: figures that are known beforehand, and which lines it asks for."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from token_stores import store_of, store_of_ids
from tokenizer_files import byte_tokenizer_json, write_tokenizer
from train_cases import TOY, as_numpy, assert_bitwise_equal

from jaxcoder.generator import InfillPrompt
from jaxcoder.model import GPTBigCode, init_params
from jaxcoder.tokenizer import Tokenizer
from train import evaluation
from train.config import BatchConfig, FimConfig, LoopConfig, OptimizerConfig, TrainConfig
from train.data import Batch
from train.evaluation import Validation
from train.step import StepConfig, eval_step

MODEL = dataclasses.replace(TOY, n_positions=128)
TEXTS = [
    "import os\n\ndef first(name):\n    return os.path.join(name, 'é')\n",
    "training = True\nmore_training = False\n",
    "# 日本語\r\nvalue = '🙂🙂'\r\nother = 12\r\nlast_line = None",
    "def second(x, y):\n    total = x + y\n    return total\n",
    "short\n",
    "x\ny\nz\n",
]
HELD_OUT = (0, 2, 3, 4, 5)
WITH_LINES = (0, 2, 3)  # of the others no line but the first has six characters
# Rows of one document or a few, each counted once; the settings of training do not matter.
CONFIG = TrainConfig(
    fim=FimConfig(rate=1.0),
    batch=BatchConfig(size=1, seq_len=127, loss="middle", piece_tokens=(8, 16)),
    loop=LoopConfig(eval_batches=100, eval_infills=10, eval_samples=2),
)


class Written(NamedTuple):
    """What `Validation` reads of a completion."""

    text: str


class Rigged:
    """Stands in for a Generator: fills the holes of the texts in `known`, and no others."""

    known: tuple[int, ...] = ()
    asked: list[tuple[str, str]]
    rambles = False
    forgets_break = False
    most_new_tokens: int

    def __init__(self, model: Any, params: dict, tokenizer: Tokenizer, *, dtype: Any) -> None:
        self._tokenizer = tokenizer
        type(self).asked = []

    def infill_prompt(self, prefix: str, suffix: str, *, max_new_tokens: int) -> InfillPrompt:
        self.asked.append((prefix, suffix))
        return InfillPrompt([len(self.asked) - 1], (0, 0))

    def generate(self, prompts: list[list[int]], *, max_new_tokens: int) -> list[Written]:
        type(self).most_new_tokens = max_new_tokens
        if self.asked:  # for holes, by their numbers
            return [Written(self._middle(*self.asked[number])) for (number,) in prompts]
        return [Written(f"after {self._tokenizer.decode(prompt)!r}") for prompt in prompts]

    def _middle(self, prefix: str, suffix: str) -> str:
        for number in self.known:
            text = TEXTS[number]
            if text.startswith(prefix) and text.endswith(suffix):
                if self.forgets_break:
                    return text[len(prefix) : len(text) - len(suffix)].strip()
                written = f" {text[len(prefix) : len(text) - len(suffix)]}\t"
                return written + "\nand so on\n" * self.rambles
        return "something else"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> type[Rigged]:
    class Fresh(Rigged):
        pass

    monkeypatch.setattr(evaluation, "Generator", Fresh)
    return Fresh


def validation_of(
    tokenizer: Tokenizer,
    *,
    held_out: tuple[int, ...] = HELD_OUT,
    config: TrainConfig = CONFIG,
    **loop: int,
) -> Validation:
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, **loop))
    store = store_of(TEXTS, tokenizer, validation=held_out)
    return Validation(store, MODEL, tokenizer, config=config)


def counts_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """Tokens predicted of the held-out texts, and their bytes.

    A text's first token is not predicted, and the end of text has no bytes.
    """
    tokens = size = 0
    for number in HELD_OUT:
        ids = tokenizer.encode(TEXTS[number])
        tokens += len(ids) - 1 + 1
        size += len(TEXTS[number].encode()) - len(tokenizer.token_bytes(ids[0]))
    return tokens, size


def test_a_uniform_model_has_the_bits_of_its_vocabulary(tokenizer: Tokenizer) -> None:
    """log2 V bits a token, whatever the text: so bits per byte are known to the last digit."""
    tokens, size = counts_of(tokenizer)
    assert tokens > 100

    def uniform(batch: Batch) -> tuple[float, float]:
        count = float(batch.loss_mask.sum())
        return count * math.log(MODEL.vocab_size), count

    figures = validation_of(tokenizer).loss(uniform)
    assert figures["validation_loss"] == pytest.approx(math.log(MODEL.vocab_size), rel=1e-12)
    expected = math.log2(MODEL.vocab_size) * tokens / size
    assert figures["bits_per_byte"] == pytest.approx(expected, rel=1e-12)


def test_the_step_for_evaluation_agrees_on_a_uniform_model(tokenizer: Tokenizer) -> None:
    """With an embedding of zeros, which is the head too, every logit is zero."""
    step = StepConfig(GPTBigCode(MODEL), OptimizerConfig(), steps=1)
    fresh = init_params(GPTBigCode(MODEL), jax.random.key(0))
    zeros = jnp.zeros_like(fresh["wte"]["weight"])
    validation, before = validation_of(tokenizer), as_numpy(fresh)

    def bits_per_byte(params: dict) -> float:
        return validation.loss(lambda batch: eval_step(params, batch, config=step))["bits_per_byte"]

    tokens, size = counts_of(tokenizer)
    expected = math.log2(MODEL.vocab_size) * tokens / size
    assert bits_per_byte(fresh | {"wte": {"weight": zeros}}) == pytest.approx(expected, rel=1e-6)
    assert bits_per_byte(fresh) != pytest.approx(expected, rel=1e-4)
    assert_bitwise_equal(fresh, before)


def test_only_so_many_batches_are_measured(tokenizer: Tokenizer) -> None:
    seen: list[Batch] = []

    def note(batch: Batch) -> tuple[float, float]:
        seen.append(batch)
        return 1.0, float(batch.loss_mask.sum())

    validation_of(tokenizer, eval_batches=2).loss(note)
    assert len(seen) == 2
    seen.clear()
    validation_of(tokenizer).loss(note)
    rows = np.concatenate([batch.tokens for batch in seen])
    assert len(np.unique(rows, axis=0)) == len(rows) > 2, "no row twice"


def test_no_more_rows_at_once_than_in_a_part_of_a_step(tokenizer: Tokenizer) -> None:
    """The whole batch at once needed the memory that accumulation is there to save."""

    def shown(accumulation: int, eval_batches: int) -> tuple[set[int], np.ndarray]:
        seen: list[np.ndarray] = []

        def note(batch: Batch) -> tuple[float, float]:
            seen.append(batch.tokens)
            return 1.0, float(batch.loss_mask.sum())

        batch = BatchConfig(size=4, seq_len=63, accumulation=accumulation)
        config = dataclasses.replace(CONFIG, batch=batch)
        validation_of(tokenizer, config=config, eval_batches=eval_batches).loss(note)
        return {len(tokens) for tokens in seen}, np.concatenate(seen)

    (whole, rows), (part, same_rows) = shown(1, 1), shown(2, 1)
    assert (whole, part) == ({4}, {2})
    np.testing.assert_array_equal(rows, same_rows)
    assert len(shown(4, 100)[1]) == len(np.unique(shown(1, 100)[1], axis=0)), "each row once"


@pytest.mark.parametrize("known", [(), (3,), (0, 3), WITH_LINES])
def test_exact_match_is_the_share_of_lines_returned(
    tokenizer: Tokenizer, rigged: type[Rigged], known: tuple[int, ...]
) -> None:
    """Blanks around a line are no mistake: the rigged model writes some."""
    rigged.known = known
    figures = validation_of(tokenizer).infill({})
    assert figures == {"infill_exact_match": len(known) / 3, "infill_lines": 3.0}
    rigged.rambles = True
    assert validation_of(tokenizer).infill({}) == figures
    rigged.forgets_break = True
    assert validation_of(tokenizer).infill({})["infill_exact_match"] == 0


def text_around(prefix: str, suffix: str = "") -> int:
    """The number of the text that begins and ends so, of those with lines."""
    (number,) = [n for n in WITH_LINES if TEXTS[n].startswith(prefix) and TEXTS[n].endswith(suffix)]
    return number


def test_what_infill_is_asked(tokenizer: Tokenizer, rigged: type[Rigged]) -> None:
    """One line of each held-out text with the break before it, and all that is around it."""
    validation_of(tokenizer).infill({})
    assert {text_around(*hole) for hole in rigged.asked} == set(WITH_LINES)
    assert len(rigged.asked) == len(WITH_LINES)
    for prefix, suffix in rigged.asked:
        text = TEXTS[text_around(prefix, suffix)]
        middle = text[len(prefix) : len(text) - len(suffix)]
        assert prefix + middle + suffix == text
        assert len(middle.strip()) >= 6
        assert middle.startswith(("\n", "\r\n"))
        assert suffix.startswith(("\n", "\r\n")) or not suffix
        assert len(middle.splitlines()) == 2


@pytest.mark.parametrize("separator", ["\f", "\v", "\x1c", "\x85", "\u2028", "\r"])
def test_only_a_line_break_ends_a_line(
    separator: str, tokenizer: Tokenizer, rigged: type[Rigged]
) -> None:
    """Not the other characters that `str.splitlines` takes for one: a form feed is code's own."""
    text = f"first_line = 1\nsecond{separator}line = 2\n"
    store = store_of([text, "print()\n"], tokenizer, validation=(0,))
    Validation(store, MODEL, tokenizer, config=CONFIG).infill({})
    assert rigged.asked == [("first_line = 1", "\n")]


def test_a_header_is_not_asked_for(tokenizer: Tokenizer, rigged: type[Rigged]) -> None:
    """It stood before the text as if it were code, without its special tokens."""
    header = tokenizer.encode("some/path.py\n")
    ids = [header + tokenizer.encode(text) for text in TEXTS]
    store = store_of_ids(ids, validation=HELD_OUT, header=len(header))
    Validation(store, MODEL, tokenizer, config=CONFIG).infill({})
    assert {text_around(*hole) for hole in rigged.asked} == set(WITH_LINES)


def test_the_lines_are_not_those_of_the_first_documents(
    tokenizer: Tokenizer, rigged: type[Rigged]
) -> None:
    """Documents lie in the order of their names: one package was the whole validation."""
    chosen = set()
    for seed in range(20):
        config = dataclasses.replace(CONFIG, seed=seed)
        validation_of(tokenizer, config=config, eval_infills=1).infill({})
        chosen |= {text_around(*hole) for hole in rigged.asked}
    assert chosen == set(WITH_LINES)


def test_lines_follow_from_the_seed(tokenizer: Tokenizer, rigged: type[Rigged]) -> None:
    asked = []
    for seed in (0, 0, *range(1, 9)):
        config = dataclasses.replace(CONFIG, seed=seed)
        validation_of(tokenizer, config=config).infill({})
        asked.append(rigged.asked)
    assert asked[0] == asked[1]
    assert any(other != asked[0] for other in asked[2:])


def test_a_long_text_is_shown_around_the_hole(tokenizer: Tokenizer, rigged: type[Rigged]) -> None:
    """Cut at its far ends, so that tokenising a file of megabytes does not hold a run up."""
    text = "".join(f"value_{number} = {number}\n" for number in range(2000))
    store = store_of([text, "print()\n"], tokenizer, validation=(0,))
    Validation(store, MODEL, tokenizer, config=CONFIG).infill({})
    ((prefix, suffix),) = rigged.asked
    assert max(len(prefix), len(suffix)) == 4096
    line = text[text.index(prefix) + len(prefix) + 1 :].partition("\n")[0]
    assert f"{prefix}\n{line}{suffix}" in text


def test_samples_do_not_depend_on_infills(tokenizer: Tokenizer, rigged: type[Rigged]) -> None:
    """Without lines to infill there were no samples either."""
    both = validation_of(tokenizer).samples({})
    assert len(both) == 2
    assert validation_of(tokenizer, eval_infills=0).samples({}) == both
    assert validation_of(tokenizer, eval_infills=1).samples({}) == both
    for sample in both:
        assert sample.prompt == sample.prompt.rstrip("\r\n")
        assert text_around(sample.prompt) in WITH_LINES
        assert sample.completion == f"after {sample.prompt!r}"


def test_nothing_is_measured_where_none_is_asked_for(
    tokenizer: Tokenizer, rigged: type[Rigged]
) -> None:
    validation = validation_of(tokenizer, eval_infills=0, eval_samples=0)
    assert validation.infill({}) == {}
    assert validation.samples({}) == []


def test_nothing_is_measured_where_nothing_is_held_out(tokenizer: Tokenizer) -> None:
    validation = validation_of(tokenizer, held_out=())
    assert validation.loss(lambda batch: pytest.fail("asked")) == {}
    assert validation.infill({}) == {}
    assert validation.samples({}) == []


def test_without_sentinels_no_line_is_infilled(tmp_path: Path, rigged: type[Rigged]) -> None:
    """A model such as GPT-2 is trained with fim.rate 0; its validation ended in an error."""
    plain = Tokenizer.from_file(write_tokenizer(tmp_path, byte_tokenizer_json(fim="~")))
    config = dataclasses.replace(CONFIG, fim=FimConfig(rate=0.0))
    validation = validation_of(plain, config=config)
    assert validation.infill({}) == {}
    assert len(validation.samples({})) == 2


@pytest.mark.parametrize("n_positions", [24, 33, 48, 49, 64, 8192])
def test_a_small_context_is_shared_by_prompt_and_completion(
    tokenizer: Tokenizer, rigged: type[Rigged], n_positions: int
) -> None:
    """One of 48 positions or fewer left no room for a prompt."""
    model = dataclasses.replace(TOY, n_positions=n_positions)
    store = store_of([*TEXTS, TEXTS[0] * 9], tokenizer, validation=(6,))
    validation = Validation(store, model, tokenizer, config=CONFIG)
    (sample,) = validation.samples({})
    room = n_positions - rigged.most_new_tokens
    assert 0 < rigged.most_new_tokens <= n_positions // 2
    prompt = sample.completion.removeprefix("after ")
    assert 0 < len(tokenizer.encode(prompt)) <= room + 9  # quotes and their escapes
    validation.infill({})
    assert 0 < rigged.most_new_tokens <= n_positions // 2
