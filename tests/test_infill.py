"""`Generator.infill`: the middle alone, both orders, and what a small context keeps."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizer_files import byte_tokenizer_json, write_tokenizer

from jaxcoder import Completion, Generator, TokenizerError

pytest_plugins = ["tiny_checkpoint"]

PREFIX, SUFFIX = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))"
N_POSITIONS = 256


@pytest.mark.parametrize("mode", ["psm", "spm"])
def test_infill_continues_the_layout_that_the_model_was_trained_with(
    generator: Generator, mode: str
) -> None:
    """The ids are written out here; text and reason are those of `generate` on them."""
    encode, fim = generator.tokenizer.encode, generator.tokenizer.fim
    before, after = encode(PREFIX), encode(SUFFIX)
    prompt = {
        "psm": [fim.prefix, *before, fim.suffix, *after, fim.middle],
        "spm": [fim.prefix, fim.suffix, *after, fim.middle, *before],
    }[mode]
    options = {"max_new_tokens": 30, "temperature": 0.8, "seed": 2, "stop": "\n"}
    infilled = generator.infill(PREFIX, SUFFIX, mode=mode, **options)
    expected = generator.generate(prompt, **options)
    assert infilled.tokens == expected.tokens
    assert infilled.text == expected.text
    assert infilled.logprobs == expected.logprobs
    assert infilled.finish_reason == expected.finish_reason
    assert infilled.trimmed == (0, 0)


def test_the_two_orders_differ(generator: Generator) -> None:
    psm, spm = (
        generator.infill(PREFIX, SUFFIX, mode=mode, max_new_tokens=30) for mode in ("psm", "spm")
    )
    assert psm.tokens != spm.tokens


@pytest.mark.parametrize("mode", ["psm", "spm"])
@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), (PREFIX, ""), ("", SUFFIX)])
def test_either_side_may_be_empty(
    generator: Generator, prefix: str, suffix: str, mode: str
) -> None:
    completion = generator.infill(prefix, suffix, mode=mode, max_new_tokens=4)
    assert len(completion.tokens) == 4
    assert completion.trimmed == (0, 0)


def test_middle_may_be_empty(generator: Generator) -> None:
    """End of text at once: an empty text, and one token."""
    middles = (
        generator.infill(f"x{seed} = ", SUFFIX, temperature=1.0, seed=seed, max_new_tokens=1)
        for seed in range(1000)
    )
    empty = next(middle for middle in middles if middle.finish_reason == "eos")
    assert (empty.text, empty.tokens) == ("", [0])


def test_samples_are_a_list_and_differ(generator: Generator) -> None:
    samples = generator.infill(PREFIX, SUFFIX, n=3, temperature=1.0, max_new_tokens=16)
    assert [type(sample) for sample in samples] == [Completion] * 3
    assert len({tuple(sample.tokens) for sample in samples}) == 3
    alone = generator.infill(PREFIX, SUFFIX, temperature=1.0, max_new_tokens=16)
    assert samples[0].tokens == alone.tokens


def test_sentinels_in_the_text_are_text(generator: Generator) -> None:
    """No warning, and none of them becomes a token: code about such models is code."""
    prompt = generator.infill_prompt("a = '<fim_middle>'", "<|endoftext|>").tokens
    fim = generator.tokenizer.fim
    special = [token for token in prompt if token in generator.tokenizer.special_ids]
    assert special == [fim.prefix, fim.suffix, fim.middle]
    assert generator.infill("a = '<fim_middle>'", "<|endoftext|>", max_new_tokens=1).tokens


@pytest.mark.parametrize("mode", ["psm", "spm"])
def test_long_sides_are_trimmed_at_their_far_ends_and_counted(
    generator: Generator, mode: str
) -> None:
    """The context is filled to the last position; what stands next to the hole is kept."""
    prefix, suffix = "\n".join(map(str, range(200))), "\t".join(map(str, range(200)))
    encode = generator.tokenizer.encode
    before, after = encode(prefix), encode(suffix)
    completion = generator.infill(prefix, suffix, mode=mode, max_new_tokens=56)
    dropped_before, dropped_after = completion.trimmed
    assert dropped_before > 0
    assert dropped_after > 0
    kept_before, kept_after = before[dropped_before:], after[: len(after) - dropped_after]
    assert len(kept_before) + len(kept_after) + 3 + 56 == N_POSITIONS
    assert min(len(kept_before), len(kept_after)) >= 40
    prompt = generator.infill_prompt(prefix, suffix, mode=mode, max_new_tokens=56)
    fim = generator.tokenizer.fim
    assert prompt.trimmed == completion.trimmed
    assert (
        prompt.tokens
        == {
            "psm": [fim.prefix, *kept_before, fim.suffix, *kept_after, fim.middle],
            "spm": [fim.prefix, fim.suffix, *kept_after, fim.middle, *kept_before],
        }[mode]
    )


def test_only_what_does_not_fit_is_trimmed(generator: Generator) -> None:
    """A short side is kept whole, however long the other is."""
    long = "x = 1\n" * 100
    assert generator.infill(long, "end", max_new_tokens=8).trimmed[1] == 0
    assert generator.infill("begin", long, max_new_tokens=8).trimmed[0] == 0
    exact = generator.tokenizer.decode([20] * (N_POSITIONS - 3 - 8))
    assert generator.infill(exact, "", max_new_tokens=8).trimmed == (0, 0)
    assert generator.infill(exact + "!", "", max_new_tokens=8).trimmed == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PREFIX, SUFFIX, "smp"), "mode is 'smp', expected 'psm' or 'spm'"),
        ((None, SUFFIX, "psm"), "prefix is NoneType, expected str"),
        ((PREFIX, [1, 2], "psm"), "suffix is list, expected str"),
        ((PREFIX, "\ud800", "psm"), "position 0: the lone surrogate"),
    ],
)
def test_infill_refuses(generator: Generator, arguments: tuple, message: str) -> None:
    prefix, suffix, mode = arguments
    with pytest.raises(ValueError, match=message):
        generator.infill(prefix, suffix, mode=mode)


def test_new_tokens_must_leave_room_for_the_sentinels(generator: Generator) -> None:
    assert generator.infill("a", "b", max_new_tokens=253).trimmed == (1, 1)
    with pytest.raises(ValueError, match=r"max_new_tokens is 254; with 3 sentinels .* 256"):
        generator.infill("a", "b", max_new_tokens=254)
    with pytest.raises(ValueError, match="max_new_tokens is -1, expected an integer"):
        generator.infill("a", "b", max_new_tokens=-1)


def test_model_without_sentinels_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """GPT-2 has none; completing still works. The manifest knows the tokenizer: it goes too."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    definition = json.dumps(byte_tokenizer_json()).replace("<fim_", "<mif_")
    write_tokenizer(folder, json.loads(definition))
    (folder / "jaxcoder_manifest.json").unlink()
    generator = Generator.from_pretrained(folder)
    assert generator.generate("x", max_new_tokens=1).tokens
    with pytest.raises(TokenizerError, match="infilling needs a model"):
        generator.infill(PREFIX, SUFFIX)
