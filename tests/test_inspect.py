"""Looking inside: what is captured is the reference's, and what is patched acts, nothing else."""

import dataclasses
import functools
import inspect as python_inspect
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import CASES, GPT2, MHA, MQA, VOCAB_SIZE, random_params, random_tensors, to_jax

from jaxcoder import Generator, activations, inspect, reference
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf, params_to_hf

pytest_plugins = ["tiny_checkpoint"]

# Of the largest number of an activation, or of 1 where that is less: float32 has 7 digits.
TOLERANCE = 1e-5
# The same for bfloat16, which has 3; a sharp softmax enlarges it. Measured: 0.02 to 0.09.
BFLOAT16_TOLERANCE = 0.15
# The same float32 sums in another order.
REORDERED_TOLERANCE = 2e-5
LENGTH = 21
# The model's own attention takes 256 queries at once.
LONG = dataclasses.replace(MQA, n_positions=300)
CODE = '''def fibonacci(count):
    """The first numbers, each the sum of the two before it."""
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:count]
'''


def model_of(config: ModelConfig, *, dtype: jnp.dtype = jnp.float32) -> Generator:
    """A generator with random weights and no tokenizer, which nothing here but losses asks for."""
    return Generator(config, random_params(config), None, dtype=dtype)


def rows(seed: int, batch: int = 2, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, (batch, length))


def errors(
    generator: Generator, tensors: dict[str, np.ndarray], tokens: np.ndarray
) -> Iterator[tuple[str, float, float]]:
    """Name, distance from the reference and largest number of each activation of each row."""
    config = generator.config
    run = inspect.run(generator, tokens, capture=inspect.names(config))
    expected_shapes = activations.shapes(config, *tokens.shape)
    assert list(run.activations) == list(expected_shapes)
    assert (run.logits == run.activations["logits"]).all()
    for row, ids in enumerate(tokens):
        truth = reference.forward(tensors, config, ids, with_activations=True).activations
        assert truth.keys() == run.activations.keys()
        for name, expected in truth.items():
            got = run.activations[name]
            assert (got.shape, got.dtype) == (expected_shapes[name], jnp.float32), name
            yield name, np.abs(np.asarray(got[row]) - expected).max(), np.abs(expected).max()


@pytest.fixture(scope="module")
def mqa() -> Generator:
    return model_of(MQA)


@pytest.fixture(scope="module")
def long() -> Generator:
    return model_of(LONG)


# Captured


@pytest.mark.parametrize("case", CASES)
def test_every_activation_is_the_references(case: str) -> None:
    config = CASES[case]
    for name, error, largest in errors(model_of(config), random_tensors(config), rows(1)):
        assert error <= TOLERANCE * max(1, largest), name


@pytest.mark.parametrize("case", CASES)
def test_where_numbers_are_small_the_tolerance_is_absolute(case: str) -> None:
    """Weights half as large give numbers below 6 and errors near 1e-6.

    Those above reach 19, where float32 numbers lie 2e-6 apart: 1e-5 is 5 roundings there.
    """
    config = CASES[case]
    tensors = {k: v / 2 if v.ndim == 2 else v for k, v in random_tensors(config).items()}
    params = to_jax(params_from_hf(tensors, config))
    generator = Generator(config, params, None, dtype=jnp.float32)
    for name, error, largest in errors(generator, tensors, rows(1)):
        assert largest < 6 and error <= TOLERANCE, name


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", TOLERANCE), ("bfloat16", BFLOAT16_TOLERANCE)]
)
def test_every_activation_of_a_trained_model_is_the_references(
    dtype: str, tolerance: float
) -> None:
    """Four layers of 256, whose stream grows to 50."""
    generator = Generator.from_pretrained(dtype=dtype)
    tensors = params_to_hf(jax.tree.map(np.asarray, generator.params), generator.config)
    tokens = np.array([generator.tokenizer.encode(CODE)])
    for name, error, largest in errors(generator, tensors, tokens):
        assert error <= tolerance * max(1, largest), name


def test_every_activation_of_more_than_a_block_of_queries_is_the_references(
    long: Generator,
) -> None:
    tokens = rows(1, batch=1, length=270)
    for name, error, largest in errors(long, random_tensors(LONG), tokens):
        assert error <= TOLERANCE * max(1, largest), name


@pytest.mark.parametrize("case", ["mqa", "mqa-unscaled", "mha", "gpt2"])
def test_every_bfloat16_activation_is_near_the_references(case: str) -> None:
    config = CASES[case]
    generator = model_of(config, dtype=jnp.bfloat16)
    for name, error, largest in errors(generator, random_tensors(config), rows(1)):
        assert error <= BFLOAT16_TOLERANCE * max(1, largest), name


def test_the_references_activations_tell_models_apart() -> None:
    """Control: those of other weights are nowhere near the tolerances above."""
    tokens = rows(1)[0]
    one, other = (
        reference.forward(random_tensors(MQA, seed=seed), MQA, tokens, with_activations=True)
        for seed in (0, 1)
    )
    for name, value in one.activations.items():
        distance = np.abs(value - other.activations[name]).max()
        assert distance > 4 * BFLOAT16_TOLERANCE * max(1, np.abs(value).max()), name


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


def assert_patching_with_itself_changes_no_bit(
    generator: Generator, tokens: np.ndarray, patched: Sequence[str]
) -> None:
    """Neither of the logits nor of any activation."""
    names = inspect.names(generator.config)
    run = inspect.run(generator, tokens, capture=names)
    patch = {name: run.activations[name] for name in patched}
    again = inspect.run(generator, tokens, capture=names, patch=patch)
    assert (again.logits == run.logits).all()
    for name, expected in run.activations.items():
        assert (again.activations[name] == expected).all(), name


@pytest.mark.parametrize("name", inspect.names(MQA))
def test_patching_an_activation_with_itself_changes_no_bit(mqa: Generator, name: str) -> None:
    """Each by itself; the test once left out all whose name begins with that of block 0."""
    assert_patching_with_itself_changes_no_bit(mqa, rows(1), [name])


def test_patching_all_but_the_logits_with_themselves_changes_no_bit(mqa: Generator) -> None:
    """The logits were once patched too, and so compared with themselves."""
    assert_patching_with_itself_changes_no_bit(mqa, rows(1), inspect.names(MQA)[:-1])


@pytest.mark.parametrize("star", ["h.*.attn.k", "h.*.attn.pattern", "h.*"])
def test_nor_with_more_tokens_than_a_block_of_queries(long: Generator, star: str) -> None:
    """Some only, and both layers' at once: each is another program to compile."""
    names = activations.matching(star, LONG)
    assert_patching_with_itself_changes_no_bit(long, rows(1, batch=1, length=270), names)


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
    here, there, names = rows(1), rows(2), inspect.names(MQA)  # as above: compiled already
    value = inspect.run(mqa, there, capture=names).activations[name]
    patched = inspect.run(mqa, here, capture=names, patch={name: value})
    assert (patched.activations[name] == value).all()
    plain = inspect.run(mqa, here, capture=names)
    assert jnp.abs(patched.logits - plain.logits).max() > 1e-3


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


def test_a_run_is_compiled_once(generator: Generator, compiles) -> None:
    """Other tokens of the same shape, another value of the patch: the same program."""
    value = inspect.run(generator, rows(1), capture="h.0").activations["h.0"]
    inspect.run(generator, rows(1), patch={"h.0": value})
    before = compiles()
    inspect.run(generator, rows(2), capture="h.0")
    inspect.run(generator, rows(3), patch={"h.0": value + 0})
    assert compiles() - before <= 1  # the sum in the line above


# In a function of one's own


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


@functools.partial(jax.jit, static_argnames=("generator", "capture"))
def surprise(
    generator: Generator, tokens: jax.Array, *, capture: Sequence[str]
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Somebody's function: what `forward` gives, and what is made of it in the same program."""
    logits, captured = activations.forward(
        generator.model, generator.params, tokens, capture=capture
    )
    norms = [jnp.square(value).sum() for value in captured.values()]
    return logits, captured, jax.nn.logsumexp(logits, axis=-1).sum() + sum(norms)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("capture", [("embed", "h.*"), ("h.*.attn.pattern",), inspect.names(MQA)])
def test_in_a_jit_of_ones_own_no_bit_differs(dtype: jnp.dtype, capture: tuple[str, ...]) -> None:
    generator, tokens = model_of(MQA, dtype=dtype), jnp.asarray(rows(1), jnp.int32)
    run = inspect.run(generator, tokens, capture=inspect.names(MQA))
    logits, captured, _ = surprise(generator, tokens, capture=capture)
    assert (logits == run.logits).all()
    assert captured.keys() == {n for star in capture for n in activations.matching(star, MQA)}
    for name, value in captured.items():
        assert (value == run.activations[name]).all(), name


def test_with_tokens_that_are_constant_it_is_the_same_up_to_rounding(mqa: Generator) -> None:
    """XLA then knows which way the fences go; bits differ with jax 0.7.2."""
    tokens, names = jnp.asarray(rows(1), jnp.int32), inspect.names(MQA)
    run = inspect.run(mqa, tokens, capture=names)
    logits, captured, _ = jax.jit(lambda: surprise(mqa, tokens, capture=names))()
    assert jnp.abs(logits - run.logits).max() <= REORDERED_TOLERANCE
    for name, value in captured.items():
        assert jnp.abs(value - run.activations[name]).max() <= REORDERED_TOLERANCE, name


def test_vmap_over_patches_is_one_after_another(mqa: Generator) -> None:
    """The effect of each head: all but it, in one call."""
    tokens, name = jnp.asarray(rows(1), jnp.int32), "h.0.attn.mixed"
    mixed = inspect.run(mqa, tokens, capture=name).activations[name]

    def without(head: jax.Array) -> jax.Array:
        is_kept = jnp.repeat(jnp.arange(MQA.n_head) != head, MQA.head_dim)
        patch = {name: mixed * is_kept[None, None, :]}
        return activations.forward(mqa.model, mqa.params, tokens, patch=patch)[0]

    for head, logits in enumerate(jax.vmap(without)(jnp.arange(MQA.n_head))):
        assert jnp.abs(logits - without(head)).max() <= REORDERED_TOLERANCE
        assert jnp.abs(logits - inspect.run(mqa, tokens).logits).max() > 0.01


def test_vmap_over_tokens_is_a_batch(mqa: Generator) -> None:
    tokens, names = jnp.asarray(rows(1), jnp.int32), inspect.names(MQA)
    run = inspect.run(mqa, tokens, capture=names)

    def one(row: jax.Array) -> dict[str, jax.Array]:
        return activations.forward(mqa.model, mqa.params, row[None], capture=names)[1]

    for name, value in jax.jit(jax.vmap(one))(tokens).items():
        assert jnp.abs(value[:, 0] - run.activations[name]).max() <= REORDERED_TOLERANCE, name


def test_a_model_that_computes_its_blocks_again_can_be_looked_into(mqa: Generator) -> None:
    """With remat=True capturing raised UnexpectedTracerError. The numbers are the same."""
    tokens, names = jnp.asarray(rows(1), jnp.int32), inspect.names(MQA)
    run = inspect.run(mqa, tokens, capture=names)
    model = mqa.model.clone(remat=True)
    logits, captured = activations.forward(model, mqa.params, tokens, capture=names)
    assert (logits == run.logits).all()
    for name, value in captured.items():
        assert (value == run.activations[name]).all(), name


# The logit lens


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("config", [MQA, CASES["mqa-untied"]], ids=["tied", "untied"])
def test_lens_at_the_last_layer_is_the_logits(config: ModelConfig, dtype: jnp.dtype) -> None:
    generator, tokens = model_of(config, dtype=dtype), rows(1)
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


def test_lens_at_one_position_holds_no_other_logits() -> None:
    """It once computed all of them through `run`: 1.6 GB with 8,192 tokens and StarCoder's ids."""
    config = dataclasses.replace(MQA, vocab_size=5000)
    model, params = model_of(config).model, random_params(config)
    tokens = jnp.asarray(rows(1, length=60), jnp.int32)
    everywhere = tokens.size * config.vocab_size * 4  # bytes

    def size(places: list[int]) -> int:
        compiled = inspect._lens.lower(model, params, tokens, np.array(places)).compile()
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    assert size([59]) < 0.2 * everywhere
    assert size(list(range(60))) > everywhere  # control


# Refused

NAMES_AND_SHAPES = [
    ({"capture": ["h.2"]}, "'h.2'; expected a name.*layers from 0 to 1"),
    ({"capture": "residual"}, "no activation is called 'residual'"),
    ({"capture": "h.*.attn.w"}, "called 'h..*.attn.w'"),
    ({"patch": {"h.*": np.zeros(1)}}, "patch: no activation is called 'h..*'.*without a star"),
    ({"patch": {"h.0": np.zeros((2, 3, 24))}}, r"'h.0' has shape \[2, 3, 24\], expected \[2, 21"),
]


@pytest.mark.parametrize(("arguments", "message"), NAMES_AND_SHAPES)
def test_a_mistake_is_told_while_a_function_is_traced(
    mqa: Generator, arguments: dict, message: str
) -> None:
    """`forward` took no notice of a wrong name, and let a patch of another shape spread."""

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        return activations.forward(mqa.model, mqa.params, tokens, **arguments)[0]

    with pytest.raises(ValueError, match=message):
        logits(rows(1))


@pytest.mark.parametrize("shape", [(LENGTH,), (1, 0), (0, 1), (1, 65)])
def test_tokens_of_a_wrong_shape_are_told_too(mqa: Generator, shape: tuple[int, ...]) -> None:
    """Positions beyond the model's were read as its last."""
    with pytest.raises(ValueError, match=r"tokens has shape .*, expected \[B, T\] .*64 positions"):
        activations.forward(mqa.model, mqa.params, jnp.zeros(shape, jnp.int32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *NAMES_AND_SHAPES,
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
