"""The whole path from text to text: what a model was trained on, it infills to the letter.

Eight documents with their cuts fixed, that is, one epoch's examples again and again: a mistake in
the layout of an example, its positions, its targets, the loss, the optimizer, or in how `infill`
builds its prompt would each leave a hole that does not come back.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from token_stores import store_of
from tokenizer_files import write_tokenizer

from jaxcoder import Generator, ModelConfig
from jaxcoder.completion import Completion
from jaxcoder.model import GPTBigCode, init_params
from jaxcoder.tokenizer import Tokenizer
from train.config import BatchConfig, FimConfig, OptimizerConfig, TrainConfig
from train.data import Batch, BatchSource
from train.fim import make_example
from train.step import StepConfig, eval_step, init_state, train_step

MODEL = ModelConfig(
    vocab_size=288,
    n_positions=128,
    n_embd=48,
    n_layer=2,
    n_head=4,
    n_inner=192,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
    eos_token_ids=(0,),
)
STEPS = 300
MOST_NATS = 0.05
SEED, LENGTH = 191, 96
FIM = FimConfig(rate=1.0)
SHORTEST_HOLE = 10

DOCUMENTS = [
    "def area(width, height):\n    return width * height\n",
    "class Stack:\n    def pop(self):\n        return self.items.pop()\n",
    "import os\n\nprint(os.getcwd())  # où suis-je ?\n",
    "for line in open(path):\n    total += int(line)\n",
    "try:\n    value = table[key]\nexcept KeyError:\n    value = None\n",
    "squares = [n ** 2 for n in range(10) if n % 2]\n",
    "with lock:\n    counter['🙂'] += 1\n",
    'assert name == "main", f"not {name!r}"\n',
]
UNSEEN = "while queue:\n    node = queue.popleft()\n    visit(node)\n"


class Hole(NamedTuple):
    """A cut document: what `infill` is given, and what it should return."""

    prefix: str
    middle: str
    suffix: str
    mode: Literal["psm", "spm"]


class Trained(NamedTuple):
    """The model after the run, and its loss on the middles before and after."""

    generator: Generator
    nats_before: float
    nats_after: float


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def epoch(tokenizer: Tokenizer, *, loss: Literal["all", "middle"]) -> Batch:
    """All examples of epoch 0, each document permuted, as one batch."""
    config = TrainConfig(seed=SEED, fim=FIM, batch=BatchConfig(size=1, seq_len=LENGTH, loss=loss))
    store = store_of(DOCUMENTS, tokenizer)
    rows = BatchSource(store, tokenizer, config).rows_per_epoch
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, size=rows))
    batch, contents = BatchSource(store, tokenizer, config).batch(0)
    pieces = [piece for row in contents.pieces for piece in row]
    assert sorted(pieces) == list(range(len(DOCUMENTS)))
    return batch


def hole_of(document: int, text: str, tokenizer: Tokenizer) -> Hole:
    """What epoch 0 takes out of a document, and what it leaves."""
    ids = np.array(tokenizer.encode(text))
    example = make_example(
        ids, (SEED, 0, document), config=FIM, tokenizer=tokenizer, ends_document=True
    )
    start, stop = example.middle
    shown, fim = example.ids.tolist(), tokenizer.fim
    between = shown[shown.index(fim.suffix) + 1 : shown.index(fim.middle)]
    if example.kind == "psm":
        before, after = shown[1 : shown.index(fim.suffix)], between
    else:
        before, after = shown[shown.index(fim.middle) + 1 : start], between
    prefix, middle, suffix = map(tokenizer.decode, (before, shown[start : stop - 1], after))
    assert prefix + middle + suffix == text
    return Hole(prefix, middle, suffix, example.kind)


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> Trained:
    """Steps on one batch, its loss on all tokens, as a run has it by default."""
    config = StepConfig(
        GPTBigCode(MODEL), OptimizerConfig(peak_lr=5e-3, warmup_steps=20), steps=STEPS
    )
    batch, middles = epoch(tokenizer, loss="all"), epoch(tokenizer, loss="middle")
    assert 0 < middles.loss_mask.sum() < batch.loss_mask.sum()

    def nats(params: dict) -> float:
        nll, tokens = eval_step(params, middles, config=config)
        assert tokens == middles.loss_mask.sum()
        return float(nll / tokens)

    state = init_state(init_params(GPTBigCode(MODEL), jax.random.key(0)), config=config)
    before = nats(state.params)
    for _ in range(STEPS):
        state, metrics = train_step(state, batch, config=config)
        assert metrics.is_finite
    generator = Generator(MODEL, state.params, tokenizer, dtype=jnp.dtype(jnp.float32))
    return Trained(generator, before, nats(state.params))


def infilled(generator: Generator, hole: Hole) -> Completion:
    return generator.infill(hole.prefix, hole.suffix, mode=hole.mode, max_new_tokens=48)


def test_the_middles_are_learned(trained: Trained) -> None:
    """Control: before the first step the loss is that of guessing."""
    assert trained.nats_after < MOST_NATS
    assert trained.nats_before > 0.5 * np.log(MODEL.vocab_size)


def test_every_hole_comes_back_exactly(trained: Trained, tokenizer: Tokenizer) -> None:
    """In the order that was drawn for it, and the model says itself where it ends."""
    holes = [hole_of(number, text, tokenizer) for number, text in enumerate(DOCUMENTS)]
    assert {hole.mode for hole in holes} == {"psm", "spm"}
    assert min(len(hole.middle) for hole in holes) >= SHORTEST_HOLE
    for hole in holes:
        completion = infilled(trained.generator, hole)
        assert completion.text == hole.middle
        assert completion.finish_reason == "eos"


def test_an_unseen_document_is_not_reproduced(trained: Trained, tokenizer: Tokenizer) -> None:
    """Nothing of a hole reaches the model but through training."""
    hole = hole_of(len(DOCUMENTS), UNSEEN, tokenizer)
    assert len(hole.middle) >= SHORTEST_HOLE
    for mode in ("psm", "spm"):
        assert infilled(trained.generator, hole._replace(mode=mode)).text != hole.middle
