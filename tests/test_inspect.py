"""Looking inside: what is captured is the reference's, and what is patched acts, nothing else."""

import dataclasses
import inspect as python_inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import CASES, GPT2, MHA, MQA, VOCAB_SIZE, random_params, random_tensors

from jaxcoder import Generator, activations, inspect, reference
from jaxcoder.config import ModelConfig

pytest_plugins = ["tiny_checkpoint"]

# Of the largest number of an activation, or of 1 where that is less: float32 has 7 digits.
TOLERANCE = 1e-5
# The same float32 sums in another order.
REORDERED_TOLERANCE = 2e-5
LENGTH = 21


def model_of(config: ModelConfig, *, dtype: jnp.dtype = jnp.float32) -> Generator:
    """A generator with random weights and no tokenizer, which nothing here but losses asks for."""
    return Generator(config, random_params(config), None, dtype=dtype)


def rows(seed: int, batch: int = 2, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, (batch, length))


@pytest.fixture(scope="module")
def mqa() -> Generator:
    return model_of(MQA)


# Captured


@pytest.mark.parametrize("case", CASES)
def test_every_activation_is_the_references(case: str) -> None:
    config, tokens = CASES[case], rows(1)
    run = inspect.run(model_of(config), tokens, capture=inspect.names(config))
    expected_shapes = activations.shapes(config, *tokens.shape)
    assert list(run.activations) == list(expected_shapes)
    for row, ids in enumerate(tokens):
        truth = reference.forward(random_tensors(config), config, ids, with_activations=True)
        assert truth.activations.keys() == run.activations.keys()
        for name, expected in truth.activations.items():
            got = run.activations[name]
            assert (got.shape, got.dtype) == (expected_shapes[name], jnp.float32), name
            bound = TOLERANCE * max(1, np.abs(expected).max())
            assert np.abs(np.asarray(got[row]) - expected).max() <= bound, name
        bound = TOLERANCE * max(1, np.abs(truth.logits).max())
        assert np.abs(np.asarray(run.logits[row]) - truth.logits).max() <= bound


@pytest.mark.parametrize("name", ["embed", "h.0.attn.k", "h.0.attn.pattern", "h.1.mlp.inner"])
def test_the_references_activations_tell_models_apart(name: str) -> None:
    """Control: those of other weights are nowhere near the tolerance above."""
    tokens = rows(1)[0]
    one, other = (
        reference.forward(random_tensors(MQA, seed=seed), MQA, tokens, with_activations=True)
        for seed in (0, 1)
    )
    assert np.abs(one.activations[name] - other.activations[name]).max() > 0.1


def test_activations_are_kept_by_the_reference_where_asked_for_alone() -> None:
    assert reference.forward(random_tensors(MQA), MQA, rows(1)[0]).activations == {}


def test_a_pattern_is_a_causal_distribution(mqa: Generator) -> None:
    pattern = inspect.run(mqa, rows(1), capture="h.1.attn.pattern").activations["h.1.attn.pattern"]
    assert pattern.shape == (2, MQA.n_head, LENGTH, LENGTH)
    assert np.allclose(pattern.sum(-1), 1, atol=1e-6)
    assert not np.triu(np.asarray(pattern), 1).any()


def test_logits_are_the_models_own(mqa: Generator) -> None:
    """The pattern is computed otherwise than in the model: equal up to the order of sums."""
    tokens = rows(1)
    difference = jnp.abs(inspect.run(mqa, tokens).logits - mqa.logits(tokens)).max()
    assert difference <= REORDERED_TOLERANCE * 10


def test_a_star_stands_for_every_layer(mqa: Generator) -> None:
    """And for nothing but a layer's number: "h.*" are the streams, not all that is in a block."""
    captured = inspect.run(mqa, rows(1), capture=["h.*.mlp", "h.*", "h.0.mlp"]).activations
    assert list(captured) == ["h.0.mlp", "h.1.mlp", "h.0", "h.1"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_capturing_changes_no_bit(dtype: jnp.dtype) -> None:
    generator, tokens = model_of(MQA, dtype=dtype), rows(1)
    plain = inspect.run(generator, tokens).logits
    for capture in (inspect.names(MQA), ["h.1.attn.pattern"], ["h.0", "logits"]):
        assert (inspect.run(generator, tokens, capture=capture).logits == plain).all()


# Patched


def test_patching_an_activation_with_itself_changes_no_bit(mqa: Generator) -> None:
    """Neither of the logits nor of any other activation; each by itself, and all at once."""
    tokens, names = rows(1), inspect.names(MQA)
    run = inspect.run(mqa, tokens, capture=names)
    patches = [{name: value} for name, value in run.activations.items() if "h.0" not in name]
    for patch in (run.activations, *patches):
        again = inspect.run(mqa, tokens, capture=names, patch=patch)
        assert (again.logits == run.logits).all(), list(patch)
        for name, expected in run.activations.items():
            assert (again.activations[name] == expected).all(), (list(patch), name)


@pytest.mark.parametrize("config", [MHA, GPT2], ids=["mha", "gpt2"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_nor_in_other_models_and_dtypes(config: ModelConfig, dtype: jnp.dtype) -> None:
    """With few tokens here, whose products are written the other way round."""
    generator, tokens = model_of(config, dtype=dtype), rows(1, length=5)
    run = inspect.run(generator, tokens, capture=["h.1.attn.v", "h.0.attn.pattern", "h.1"])
    for name, value in run.activations.items():
        assert (inspect.run(generator, tokens, patch={name: value}).logits == run.logits).all()


@pytest.mark.parametrize("name", inspect.names(MQA))
def test_every_patch_acts(mqa: Generator, name: str) -> None:
    """Control of the tests above: another prompt's activation, and the logits are others."""
    here, there = rows(1), rows(2)
    value = inspect.run(mqa, there, capture=name).activations[name]
    patched = inspect.run(mqa, here, capture=name, patch={name: value})
    assert (patched.activations[name] == value).all()
    assert jnp.abs(patched.logits - inspect.run(mqa, here).logits).max() > 1e-3


@pytest.mark.parametrize("name", ["h.1", "ln_f", "embed", "logits"])
def test_patching_the_stream_from_another_prompt_gives_its_logits(
    mqa: Generator, name: str
) -> None:
    here, there = rows(1), rows(2)
    other = inspect.run(mqa, there, capture=name)
    patched = inspect.run(mqa, here, patch=other.activations)
    assert (patched.logits == other.logits).all()


def test_a_patch_at_one_position_acts_from_there_on(mqa: Generator) -> None:
    """The model is causal: positions before the patched one keep their bits."""
    tokens = rows(1)
    run = inspect.run(mqa, tokens, capture="h.0")
    patch = {"h.0": run.activations["h.0"].at[:, 9].set(1.0)}
    logits = inspect.run(mqa, tokens, patch=patch).logits
    assert (logits[:, :9] == run.logits[:, :9]).all()
    for position in range(9, LENGTH):
        assert (logits[:, position] != run.logits[:, position]).any()


def test_all_heads_but_one_can_be_silenced(mqa: Generator) -> None:
    """What is patched is what the rest computes with: one head's part of `mixed` stays."""
    tokens, head_dim = rows(1), MQA.head_dim
    pattern = inspect.run(mqa, tokens, capture="h.0.attn.pattern").activations["h.0.attn.pattern"]
    silenced = {"h.0.attn.pattern": pattern.at[:, 1:].set(0.0)}
    mixed = inspect.run(mqa, tokens, capture="h.0.attn.mixed", patch=silenced).activations
    assert (mixed["h.0.attn.mixed"][..., head_dim:] == 0).all()
    assert (mixed["h.0.attn.mixed"][..., :head_dim] != 0).any()


def test_the_forward_pass_can_be_differentiated_in_a_patch(mqa: Generator) -> None:
    """Attribution asks for it; held against a difference quotient of the same function."""
    tokens = rows(1, batch=1).astype(np.int32)
    name = "h.0.attn.mixed"
    start = inspect.run(mqa, tokens, capture=name).activations[name]

    def score(value: jax.Array) -> jax.Array:
        logits, _ = activations.forward(mqa.model, mqa.params, tokens, patch={name: value})
        return logits[0, -1, 5]

    direction = jax.random.normal(jax.random.key(0), start.shape)
    slope = jnp.vdot(jax.grad(score)(start), direction)
    step = 1e-2
    quotient = (score(start + step * direction) - score(start - step * direction)) / (2 * step)
    assert abs(slope - quotient) <= 1e-2 * max(1, abs(quotient))


def test_a_run_is_compiled_once(generator: Generator, compiles) -> None:
    """Other tokens of the same shape, another value of the patch: the same program."""
    value = inspect.run(generator, rows(1), capture="h.0").activations["h.0"]
    inspect.run(generator, rows(1), patch={"h.0": value})
    before = compiles()
    inspect.run(generator, rows(2), capture="h.0")
    inspect.run(generator, rows(3), patch={"h.0": value + 0})
    assert compiles() - before <= 1  # the sum in the line above


# The logit lens


@pytest.mark.parametrize("config", [MQA, CASES["mqa-untied"]], ids=["tied", "untied"])
def test_lens_at_the_last_layer_is_the_logits(config: ModelConfig) -> None:
    generator, tokens = model_of(config), rows(1)
    lens = inspect.logit_lens(generator, tokens)
    assert lens.shape == (config.n_layer + 1, 2, LENGTH, VOCAB_SIZE)
    logits = inspect.run(generator, tokens).logits
    assert jnp.abs(lens[-1] - logits).max() <= TOLERANCE
    for earlier in lens[:-1]:
        assert jnp.abs(earlier - logits).max() > 1


def test_lens_at_a_layer_is_the_model_that_ends_there() -> None:
    """The reference without its second block predicts what the lens shows after the first."""
    tensors = {k: v for k, v in random_tensors(MQA).items() if ".h.1." not in k}
    tokens = rows(1, batch=1)
    shallow = reference.forward(tensors, dataclasses.replace(MQA, n_layer=1), tokens[0])
    lens = inspect.logit_lens(model_of(MQA), tokens)
    bound = TOLERANCE * np.abs(shallow.logits).max()
    assert np.abs(np.asarray(lens[1, 0]) - shallow.logits).max() <= bound


def test_lens_at_chosen_positions(mqa: Generator) -> None:
    everywhere = inspect.logit_lens(mqa, rows(1))
    chosen = inspect.logit_lens(mqa, rows(1), positions=[3, -1])
    assert jnp.abs(chosen - everywhere[:, :, jnp.array([3, LENGTH - 1])]).max() <= TOLERANCE


# Refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capture": ["h.2"]}, "'h.2'; expected a name.*layers from 0 to 1"),
        ({"capture": "residual"}, "no activation is called 'residual'"),
        ({"capture": "h.*.attn.w"}, "called 'h..*.attn.w'"),
        ({"patch": {"h.*": np.zeros(1)}}, "patch: no activation is called 'h..*'.*without a star"),
        (
            {"patch": {"h.0": np.zeros((2, 3, 24))}},
            r"'h.0' has shape \[2, 3, 24\], expected \[2, 21",
        ),
        ({"tokens": "x = 1"}, "tokens is str"),
        ({"tokens": [[1, 2], [3]]}, "rows of different lengths"),
        ({"tokens": [[VOCAB_SIZE]]}, "expected ids from 0 to 60"),
        ({"tokens": [[0] * 65]}, "exceeds the model's 64 positions"),
    ],
)
def test_a_mistake_is_one_error(mqa: Generator, arguments: dict, message: str) -> None:
    arguments = {"tokens": rows(1)} | arguments
    with pytest.raises(ValueError, match=message):
        inspect.run(mqa, arguments.pop("tokens"), **arguments)


@pytest.mark.parametrize(("position", "message"), [(LENGTH, "there are 21"), (1.5, "an integer")])
def test_a_position_that_is_none_is_refused(mqa: Generator, position: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.logit_lens(mqa, rows(1), positions=[position])


def test_the_standard_librarys_inspect_is_still_found() -> None:
    """The module has its name inside the package only."""
    assert python_inspect.__name__ == "inspect" and hasattr(python_inspect, "signature")
