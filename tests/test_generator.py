"""`Generator`: what it loads and refuses to load, and what `generate` and `logits` return."""

import dataclasses
import itertools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizer_files import byte_tokenizer_json, write_tokenizer

import jaxcoder
from jaxcoder import CheckpointError, Completion, ConfigError, Generator, TokenizerError, reference
from jaxcoder.checkpoint import save_checkpoint
from jaxcoder.completion import CompletionBuilder, Timings
from jaxcoder.hf_names import params_to_hf

pytest_plugins = ["tiny_checkpoint"]

END_OF_TEXT = 0
VOCAB_SIZE, N_POSITIONS = 288, 256
ATOL = 1e-4
"""Between float32 and the float64 reference, for logits and logprobs of a few units."""


def reference_logits(generator: Generator, tokens: list[int]) -> np.ndarray:
    """Float64 logits [T, V] of the generator's own weights."""
    tensors = {
        name: np.asarray(array)
        for name, array in params_to_hf(generator.params, generator.config).items()
    }
    return reference.forward(tensors, generator.config, np.array(tokens)).logits


def sampled(generator: Generator, wanted: Callable[[Completion], bool]) -> Completion:
    """The first completion over a range of seeds that is as wanted."""
    completions = (
        generator.generate("def f():", temperature=1.0, seed=seed, max_new_tokens=40)
        for seed in range(100)
    )
    return next(filter(wanted, completions))


# Loading


def test_public_names_are_the_promised_ones() -> None:
    assert set(jaxcoder.__all__) == {
        "CheckpointError",
        "Completion",
        "ConfigError",
        "Generator",
        "ModelConfig",
        "Timings",
        "TokenizerError",
    }
    for error in (CheckpointError, ConfigError, TokenizerError):
        assert issubclass(error, ValueError)


def test_attributes_are_usable_by_themselves(generator: Generator) -> None:
    """config, tokenizer, model and params are promised, and fit each other."""
    assert generator.config.n_positions == N_POSITIONS
    ids = generator.tokenizer.encode("return 12")
    assert generator.tokenizer.decode(ids) == "return 12"
    logits, _ = generator.model.apply({"params": generator.params}, np.array([ids]))
    np.testing.assert_allclose(logits, generator.logits([ids]), atol=ATOL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_that_of_weights_and_computation(tiny_checkpoint: Path, dtype: str) -> None:
    """Logits stay float32, and bfloat16 logits are near but not the float32 ones."""
    generator = Generator.from_pretrained(str(tiny_checkpoint), dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(generator.params)} == {dtype}
    assert generator.model.dtype == dtype
    logits = generator.logits([[1, 2, 3]])
    assert logits.dtype == jnp.float32
    error = np.abs(logits[0] - reference_logits(generator, [1, 2, 3])).max()
    assert error < ATOL if dtype == "float32" else ATOL < error < 0.5


@pytest.mark.parametrize(("stored", "asked"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_stored_dtype_does_not_decide(
    generator: Generator, tiny_checkpoint: Path, tmp_path: Path, stored: str, asked: str
) -> None:
    """What is asked for is what runs, also where more is asked for than is stored."""
    params = jax.tree.map(lambda leaf: leaf.astype(stored), generator.params)
    tokenizer_file = tiny_checkpoint / "tokenizer.json"
    save_checkpoint(tmp_path / "saved", generator.config, params, tokenizer_file=tokenizer_file)
    loaded = Generator.from_pretrained(tmp_path / "saved", dtype=asked)
    for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        assert ours.dtype == asked
        np.testing.assert_array_equal(ours, theirs.astype(asked))


def test_auto_dtype_on_cpu_is_float32(generator: Generator) -> None:
    """The fixture passes no dtype; bfloat16 decodes slower than float32 on a CPU."""
    assert generator.model.dtype == jnp.float32


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("config.json", ConfigError),
        ("model.safetensors", CheckpointError),
        ("tokenizer.json", TokenizerError),
    ],
)
def test_missing_file_is_named(
    tiny_checkpoint: Path, tmp_path: Path, file: str, error: type[ValueError]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (folder / file).unlink()
    with pytest.raises(error, match=file):
        Generator.from_pretrained(folder)


def test_tokenizer_is_checked_before_weights_are_read(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One of the two errors comes first, and it is that of the small file."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (folder / "tokenizer.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Generator.from_pretrained(folder)


def test_tokenizer_of_another_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An id at vocab_size would be looked up past the embedding's end."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    merges = [("a", chr(letter)) for letter in range(ord("a"), ord("z") + 1)]
    write_tokenizer(folder, byte_tokenizer_json(merges))
    with pytest.raises(TokenizerError, match=str(VOCAB_SIZE)):
        Generator.from_pretrained(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "dtype is 'float16', expected 'auto', 'float32' or 'bfloat16'"),
        ({"revision": "main"}, "revision is 'main', but .* is a local folder"),
    ],
)
def test_loading_refuses_bad_arguments(
    tiny_checkpoint: Path, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(tiny_checkpoint, **arguments)


# One completion


def test_greedy_tokens_and_logprobs_are_those_of_the_reference(generator: Generator) -> None:
    """Token by token the float64 argmax, and the log-softmax of the raw logits at it."""
    prompt = generator.tokenizer.encode("def f(x):")
    completion = generator.generate("def f(x):", max_new_tokens=12)
    tokens = prompt + completion.tokens
    logits = reference_logits(generator, tokens)[len(prompt) - 1 : -1]
    assert completion.tokens == logits.argmax(-1).tolist()
    logprobs = reference.log_softmax(logits)[np.arange(12), completion.tokens]
    np.testing.assert_allclose(completion.logprobs, logprobs, atol=ATOL)
    assert completion.text == generator.tokenizer.decode(completion.tokens)


def test_logprobs_are_of_raw_logits_whatever_the_filters(generator: Generator) -> None:
    """Not of the law drawn from: temperature, filters and penalty leave them alone."""
    prompt = generator.tokenizer.encode("def f(x):")
    completion = generator.generate(
        prompt, max_new_tokens=12, temperature=2.0, top_k=5, top_p=0.9, repetition_penalty=1.5
    )
    logits = reference_logits(generator, prompt + completion.tokens)[len(prompt) - 1 : -1]
    logprobs = reference.log_softmax(logits)[range(len(completion.tokens)), completion.tokens]
    np.testing.assert_allclose(completion.logprobs, logprobs, atol=ATOL)


def test_end_of_text_is_in_the_tokens_and_not_in_the_text(generator: Generator) -> None:
    completion = sampled(generator, lambda completion: completion.finish_reason == "eos")
    assert completion.tokens[-1] == END_OF_TEXT
    assert END_OF_TEXT not in completion.tokens[:-1]
    assert len(completion.logprobs) == len(completion.tokens) < 40
    assert "<|endoftext|>" not in completion.text
    assert completion.text == generator.tokenizer.decode(completion.tokens)


def test_an_ending_token_that_is_no_special_one_is_not_in_the_text_either() -> None:
    """A config may name any id, such as that of a newline, as the end of a text."""
    builder = CompletionBuilder(lambda token: b"%d" % token, eos_ids=(7,), special_ids={8}, stop=())
    builder.push(np.array([1, 8, 2, 7, -1]), np.zeros(5))
    builder.finish()
    completion = builder.completion(Timings(0.0, 0.0, 0.0))
    assert (completion.text, completion.tokens) == ("12", [1, 8, 2, 7])
    assert completion.finish_reason == "eos"


def test_length_is_the_reason_when_the_budget_is_used_up(generator: Generator) -> None:
    completion = sampled(generator, lambda completion: completion.finish_reason == "length")
    assert len(completion.logprobs) == len(completion.tokens) == 40
    assert END_OF_TEXT not in completion.tokens


def test_stop_cuts_the_text_and_ends_the_tokens(generator: Generator) -> None:
    """The token that completed the stop string is the last one; text ends before the string."""
    free = generator.generate("def f():", temperature=1.0, max_new_tokens=40)
    stop = free.text[10:13]
    completion = generator.generate("def f():", temperature=1.0, max_new_tokens=40, stop=stop)
    assert completion.finish_reason == "stop"
    assert completion.text == free.text[: free.text.index(stop)]
    assert completion.tokens == free.tokens[: len(completion.tokens)]
    decode = generator.tokenizer.decode
    assert stop in decode(completion.tokens)
    assert stop not in decode(completion.tokens[:-1])
    assert len(completion.logprobs) == len(completion.tokens)


def test_no_new_tokens_is_an_empty_completion(generator: Generator) -> None:
    completion = generator.generate("def f():", max_new_tokens=0)
    assert (completion.text, completion.tokens, completion.logprobs) == ("", [], [])
    assert completion.finish_reason == "length"


def test_empty_prompt_starts_from_end_of_text(generator: Generator) -> None:
    expected = generator.generate([END_OF_TEXT], max_new_tokens=8)
    for empty in ("", np.array([], np.int32)):
        assert generator.generate(empty, max_new_tokens=8).tokens == expected.tokens
    assert generator.generate(["", "x"], max_new_tokens=8)[0].tokens == expected.tokens


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint16, int])
def test_ids_of_any_integer_type_are_a_prompt(generator: Generator, kind: type) -> None:
    ids = [kind(token) for token in generator.tokenizer.encode("def f():")]
    expected = generator.generate("def f():", max_new_tokens=8).tokens
    assert generator.generate(ids, max_new_tokens=8).tokens == expected
    assert generator.generate(tuple(ids), max_new_tokens=8).tokens == expected
    assert generator.generate(np.array(ids), max_new_tokens=8).tokens == expected


def test_tokens_and_logprobs_are_plain_python(generator: Generator) -> None:
    """They go into JSON as they are."""
    completion = generator.generate("x", max_new_tokens=2)
    assert {type(token) for token in completion.tokens} == {int}
    assert {type(logprob) for logprob in completion.logprobs} == {float}


def test_timings_tell_compiling_from_running(generator: Generator) -> None:
    """The config differs in a field that counts in training only, so no test has compiled it."""
    config = dataclasses.replace(generator.config, initializer_range=0.03)
    fresh = Generator(config, generator.params, generator.tokenizer, dtype=generator.model.dtype)
    first, second = (fresh.generate("x", max_new_tokens=4).timings for _ in range(2))
    assert first.compile > 0
    assert second.compile == 0
    for timings in (first, second):
        assert timings.prefill > 0
        assert timings.decode > 0
    # Compiling takes a hundred times longer than running here; it must not be in the other two.
    assert first.prefill + first.decode < first.compile


# Special tokens in the prompt

SENTINEL_PROMPT = "<fim_prefix>a<fim_suffix>b<fim_middle>"


def test_special_reads_sentinels_and_plain_does_not(tiny_checkpoint: Path) -> None:
    generator = Generator.from_pretrained(tiny_checkpoint)
    encode = generator.tokenizer.encode
    sentinels = generator.tokenizer.fim
    read = [sentinels.prefix, *encode("a"), sentinels.suffix, *encode("b"), sentinels.middle]
    options = {"max_new_tokens": 8}
    special = generator.generate(SENTINEL_PROMPT, special=True, **options)
    assert special.tokens == generator.generate(read, **options).tokens
    with pytest.warns(UserWarning, match="special=True"):
        plain = generator.generate(SENTINEL_PROMPT, **options)
    assert plain.tokens == generator.generate(encode(SENTINEL_PROMPT), **options).tokens
    assert plain.tokens != special.tokens


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_spelled_sentinel_warns_once_and_says_what_to_do(
    tiny_checkpoint: Path, method: str
) -> None:
    """And the warning points at the caller's line, not at one of the library."""
    generator = Generator.from_pretrained(tiny_checkpoint)
    call = getattr(generator, method)
    with pytest.warns(UserWarning, match=r"'<fim_prefix>'.*special=True.*\.infill\(") as caught:
        call(SENTINEL_PROMPT, max_new_tokens=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(SENTINEL_PROMPT, max_new_tokens=1)


# Lists of prompts, and samples


def test_list_gives_each_prompt_what_it_gets_alone(generator: Generator) -> None:
    """20 prompts, so two groups; lengths 1 to n_positions less the new tokens, in mixed order."""
    lengths = [31, 248, 1, 64, 2, 100, 33, 7, 200, 128, 5, 90, 17, 240, 3, 65, 32, 129, 50, 11]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(19, 270, length).tolist() for length in lengths]
    for options in ({}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}):
        together = generator.generate(prompts, max_new_tokens=8, **options)
        alone = [generator.generate(prompt, max_new_tokens=8, **options) for prompt in prompts]
        assert [each.tokens for each in together] == [each.tokens for each in alone]
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=ATOL)
    assert len({tuple(each.tokens) for each in alone}) == len(prompts)


def test_shape_of_the_result_follows_prompt_and_n(generator: Generator) -> None:
    """One or a list of prompts, one or several samples: four shapes."""
    options = {"temperature": 1.0, "max_new_tokens": 4}
    prompts = ["x", [20, 21]]
    one = generator.generate("x", **options)
    samples = generator.generate("x", n=3, **options)
    many = generator.generate(prompts, **options)
    grouped = generator.generate(prompts, n=3, **options)
    assert isinstance(one, Completion)
    assert [type(each) for each in samples] == [Completion] * 3
    assert [type(each) for each in many] == [Completion] * 2
    assert [[type(each) for each in group] for group in grouped] == [[Completion] * 3] * 2
    assert [each.tokens for each in grouped[0]] == [each.tokens for each in samples]
    assert [group[0].tokens for group in grouped] == [each.tokens for each in many]
    assert samples[0].tokens == one.tokens
    assert generator.generate(["x"], max_new_tokens=1)[0].text  # a list of one is a list
    assert generator.generate([]) == []
    assert generator.generate([], n=2, temperature=1.0) == []
    rows = np.array([[20, 21], [22, 23]])
    assert len(generator.generate(rows, max_new_tokens=1)) == 2


def test_samples_differ_and_repeat_by_seed(generator: Generator) -> None:
    """Pairwise different, the same again for the same seed, and not shared between seeds."""
    options = {"n": 4, "temperature": 1.0, "max_new_tokens": 16}

    def drawn(seed: int) -> list[list[int]]:
        return [each.tokens for each in generator.generate("def f():", seed=seed, **options)]

    first = drawn(1)
    assert all(a != b for a, b in itertools.combinations(first, 2))
    assert drawn(1) == first
    assert all(a != b for a in first for b in drawn(2))
    # The high word of a seed counts too.
    assert drawn(1 + 2**32) != first


def test_samples_of_many_prompts_are_those_of_each(generator: Generator) -> None:
    """18 rows, so that a prompt's samples fall into two groups of rows."""
    prompts = [[20 + number] * (6 - number) for number in range(6)]
    options = {"n": 3, "temperature": 1.0, "max_new_tokens": 8}
    together = generator.generate(prompts, **options)
    for prompt, samples in zip(prompts, together, strict=True):
        alone = generator.generate(prompt, **options)
        assert [each.tokens for each in samples] == [each.tokens for each in alone]


def test_prompt_that_does_not_fit_is_named_by_its_place(generator: Generator) -> None:
    """It was called prompt 0 whatever its place in the list."""
    prompts = ["x", [20] * 250]
    with pytest.raises(ValueError, match=r"prompt 1: 250 prompt tokens \+ 8 new tokens"):
        generator.generate(prompts, max_new_tokens=8, n=2, temperature=1.0)
    with pytest.raises(ValueError, match="prompt 1: token 288 at position 0"):
        generator.generate([[20], [288]], max_new_tokens=8)


# The context


def test_context_is_used_to_its_last_position(generator: Generator) -> None:
    """n_positions tokens with no new one; one less with one new; the last token is the argmax."""
    prompt = np.random.default_rng(1).integers(19, 270, 256).tolist()
    assert generator.generate(prompt, max_new_tokens=0).finish_reason == "length"
    completion = generator.generate(prompt[:255], max_new_tokens=1)
    assert completion.finish_reason == "length"
    assert completion.tokens == [reference_logits(generator, prompt[:255])[-1].argmax()]


def test_context_overrun_is_refused_with_both_numbers_before_a_compile(
    generator: Generator, compiles: Callable[[], int]
) -> None:
    for length, new in ((256, 1), (255, 2), (257, 0), (1, 256)):
        match = rf"{length} prompt tokens \+ {new} new tokens exceed the model's 256 positions"
        for call in (generator.generate, generator.stream):
            with pytest.raises(ValueError, match=match):
                call([20] * length, max_new_tokens=new)
    assert compiles() == 0


def test_compiles_are_counted(generator: Generator, compiles: Callable[[], int]) -> None:
    """Negative control: a batch of 32 rows of logits is asked for here alone."""
    generator.logits(np.ones((32, 3), int))
    assert compiles() > 0


def test_weights_that_give_no_numbers_are_an_error(tiny_checkpoint: Path) -> None:
    """NaN, and all logits minus infinity, have no likeliest token."""
    generator = Generator.from_pretrained(tiny_checkpoint)
    for value in (np.nan, -np.inf):
        generator.params["ln_f"]["bias"] = jnp.full(generator.config.n_embd, value, jnp.float32)
        with pytest.raises(ValueError, match="not numbers; check its weights"):
            generator.generate("x", max_new_tokens=4)


# Logits


def test_logits_are_those_of_the_reference(generator: Generator) -> None:
    """At every position of rows of different lengths, and NaN beyond each."""
    tokens = np.random.default_rng(2).integers(0, VOCAB_SIZE, (3, 40))
    lengths = [40, 1, 33]
    logits = np.asarray(generator.logits(tokens, lengths))
    assert logits.shape == (3, 40, VOCAB_SIZE)
    assert logits.dtype == np.float32
    for row, length in enumerate(lengths):
        expected = reference_logits(generator, tokens[row, :length].tolist())
        np.testing.assert_allclose(logits[row, :length], expected, atol=ATOL)
        assert np.isnan(logits[row, length:]).all()
    full = np.asarray(generator.logits(tokens))
    assert np.isfinite(full).all()
    np.testing.assert_array_equal(full[0], logits[0])


def test_logits_at_the_last_position(generator: Generator) -> None:
    tokens = np.random.default_rng(3).integers(0, VOCAB_SIZE, (1, 256))
    expected = reference_logits(generator, tokens[0].tolist())
    np.testing.assert_allclose(generator.logits(tokens)[0], expected, atol=ATOL)


def test_logits_do_not_look_at_padding(generator: Generator) -> None:
    """Not even where it is no id of the vocabulary."""
    real = generator.logits([[20, 21, 22]])
    for padding in (0, -1, 10**6):
        padded = generator.logits([[20, 21, 22, padding]], [3])
        np.testing.assert_array_equal(padded[:, :3], real)


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([1, 2], None, r"tokens is int64 of shape \[2\], expected integers \[B, T\]"),
        ([[1.0, 2.0]], None, "tokens is float64"),
        ([[True]], None, "tokens is bool"),
        ([[]], None, r"shape \[1, 0\]"),
        ([["a"]], None, "tokens is <U1"),
        ([[1], [1, 2]], None, r"tokens .* rows of different lengths"),
        ([[1, 288]], None, "prompt 0: token 288 at position 1, expected ids from 0 to 287"),
        ([[1], [-1]], None, "prompt 1: token -1 at position 0"),
        ([[1, 2]], [3], r"lengths is \[3\], expected values from 1 to T = 2"),
        ([[1, 2]], [0], r"lengths is \[0\]"),
        ([[1, 2]], [1, 1], r"lengths is \[1, 1\], expected 1 integers"),
        ([[1, 2]], [1.0], r"lengths is \[1.0\], expected 1 integers"),
        ([[1, 2]], 1, "lengths is 1, expected 1 integers"),
        (np.ones((1, 257), int), None, "257.* 256 positions"),
        (np.ones((1, 257), int), [5], "257.* 256 positions"),
    ],
)
def test_logits_refuse(
    generator: Generator, compiles: Callable[[], int], tokens, lengths, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generator.logits(tokens, lengths)
    assert compiles() == 0


def test_progress_goes_to_standard_error(
    generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    generator.generate(["x", "y"], max_new_tokens=4, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    generator.generate(["x", "y"], max_new_tokens=4)
    assert capsys.readouterr() == ("", "")
