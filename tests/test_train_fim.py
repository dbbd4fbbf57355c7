"""Fill-in-the-middle examples: BigCode's cuts and orders, without the public scripts' defects."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from token_stores import generated_documents
from tokenizer_files import byte_tokenizer_json, write_tokenizer

from jaxcoder.fim import psm_prompt, spm_prompt
from jaxcoder.tokenizer import Tokenizer
from train.config import FimConfig
from train.fim import Example, make_example, unpermute
from train.pieces import RESERVE

ALWAYS = FimConfig(rate=1.0)
ALWAYS_LINES = FimConfig(rate=1.0, line_rate=1.0)
ALWAYS_TOKENS = FimConfig(rate=1.0, cut="token")
CODE = "def f(x):\n    return 12 + x  # é 🙂\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def example_of(
    text: str,
    key: tuple[int, ...],
    tokenizer: Tokenizer,
    *,
    config: FimConfig = ALWAYS,
    ends_document: bool = True,
) -> Example:
    return make_example(
        np.array(tokenizer.encode(text), np.int32),
        key,
        config=config,
        tokenizer=tokenizer,
        ends_document=ends_document,
    )


def parts_of(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Prefix, middle and suffix ids, read by the sentinels and the kind alone."""
    ids, fim = example.ids.tolist(), tokenizer.fim
    prefix, suffix, middle = (ids.index(token) for token in (fim.prefix, fim.suffix, fim.middle))
    start = example.middle[0]
    before = ids[prefix + 1 : suffix] if example.kind == "psm" else ids[middle + 1 : start]
    return before, ids[start:-1], ids[suffix + 1 : middle]


def test_a_permuted_piece_is_the_published_order_with_eos_after_the_middle(
    tokenizer: Tokenizer,
) -> None:
    """Not the order suffix, prefix, middle sentinel that some libraries call SPM."""
    layouts = {"psm": psm_prompt, "spm": spm_prompt}
    seen = Counter()
    for piece in range(100):
        example = example_of(CODE, (0, 0, piece), tokenizer)
        prefix, middle, suffix = parts_of(example, tokenizer)
        prompt = layouts[example.kind](prefix, suffix, tokenizer.fim)
        assert example.ids.tolist() == [*prompt, *middle, tokenizer.end_of_text]
        assert example.middle == (len(prompt), len(example.ids))
        assert example.ids.dtype == np.int32
        seen[example.kind] += 1
    assert set(seen) == {"psm", "spm"}


def test_parts_are_cut_at_characters_and_tokenised_separately(tokenizer: Tokenizer) -> None:
    """As Megatron does: the model sees at a cut what it will see at a cursor."""
    inside_a_token = 0
    for piece in range(100):
        example = example_of(CODE, (0, 0, piece), tokenizer)
        parts = parts_of(example, tokenizer)
        texts = [tokenizer.decode(part) for part in parts]
        assert "".join(texts) == CODE
        assert [tokenizer.encode(text) for text in texts] == list(parts)
        inside_a_token += [*itertools.chain(*parts)] != tokenizer.encode(CODE)
    assert inside_a_token > 20, "cuts fall inside tokens too"


def test_a_line_rate_takes_out_whole_lines_each_as_often(tokenizer: Tokenizer) -> None:
    """From the end of a line to the end of the next: never the first, nor one that goes on."""
    text = "a = 1\n\n    bé = 2\nc\nd = unfinished"
    count = 1500
    seen = Counter()
    for piece in range(count):
        example = example_of(text, (0, 0, piece), tokenizer, config=ALWAYS_LINES)
        prefix, middle, suffix = map(tokenizer.decode, parts_of(example, tokenizer))
        assert prefix + middle + suffix == text
        assert suffix.startswith("\n")
        seen[middle] += 1
    assert set(seen) == {"\n", "\n    bé = 2", "\nc"}
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_a_line_rate_leaves_the_other_draws_and_text_without_lines_alone(
    tokenizer: Tokenizer,
) -> None:
    """Half of the permuted pieces, within the interval; the rest are what they were without it."""
    half = dataclasses.replace(ALWAYS, line_rate=0.5)
    changed = 0
    for piece in range(400):
        before, now = (
            example_of(CODE * 3, (0, 0, piece), tokenizer, config=config)
            for config in (ALWAYS, half)
        )
        assert before.kind == now.kind
        middle = tokenizer.decode(parts_of(now, tokenizer)[1])
        if before.ids.tolist() != now.ids.tolist():
            changed += 1
            assert middle.startswith("\n") and middle.count("\n") == 1
        one_line = example_of("a = 1\n", (0, 0, piece), tokenizer, config=ALWAYS_LINES)
        uniform = example_of("a = 1\n", (0, 0, piece), tokenizer)
        assert one_line.ids.tolist() == uniform.ids.tolist()
    assert within_interval(changed, 400, 0.5)


def test_token_cuts_keep_the_ids_and_split_no_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(CODE)
    cuts = set()
    for piece in range(300):
        example = example_of(CODE, (0, 0, piece), tokenizer, config=ALWAYS_TOKENS)
        parts = parts_of(example, tokenizer)
        assert [*itertools.chain(*parts)] == ids
        assert "".join(tokenizer.decode(part) for part in parts) == CODE
        cuts |= {len(parts[0]), len(parts[0]) + len(parts[1])}
    assert {0, len(ids)} <= cuts
    assert len(cuts) > len(ids) / 2


def test_both_cuts_are_uniform_over_characters_ends_included(tokenizer: Tokenizer) -> None:
    """Two draws from 0..n and sorted: a pair of unequal cuts is twice as likely as an equal one."""
    count = 6000
    seen = Counter()
    for piece in range(count):
        parts = parts_of(example_of("abc", (0, 0, piece), tokenizer), tokenizer)
        seen[tuple(map(tokenizer.decode, parts))] += 1
    expected = {
        ("abc"[:first], "abc"[first:second], "abc"[second:]): count / 16 * (1 + (first < second))
        for first in range(4)
        for second in range(first, 4)
    }
    assert set(seen) == set(expected)
    observed = [seen[parts] for parts in expected]
    assert stats.chisquare(observed, list(expected.values())).pvalue > 1e-3


@pytest.mark.parametrize(("rate", "spm_rate"), [(0.5, 0.5), (0.9, 0.25), (0.0, 0.5), (1.0, 1.0)])
def test_rates_are_within_the_binomial_interval(
    tokenizer: Tokenizer, rate: float, spm_rate: float
) -> None:
    """99.9 %: of the pieces as many are permuted, and of those as many suffix first, as asked."""
    count = 4000
    config = FimConfig(rate=rate, spm_rate=spm_rate)
    seen = Counter(
        example_of("ab", (7, 1, piece), tokenizer, config=config).kind for piece in range(count)
    )
    permuted = seen["psm"] + seen["spm"]
    assert within_interval(permuted, count, rate)
    assert within_interval(seen["spm"], permuted, spm_rate)


def within_interval(successes: int, count: int, rate: float) -> bool:
    low, high = stats.binom.interval(0.999, count, rate)
    return low <= successes <= high


def test_a_wrong_rate_is_outside_the_interval() -> None:
    """Negative control: a tenth more, or the suffix always first, is seen."""
    assert not within_interval(2200, 4000, 0.5)
    assert not within_interval(2000, 2000, 0.5)


def test_draws_follow_from_seed_epoch_and_piece_alone(tokenizer: Tokenizer) -> None:
    """Megatron's one generator makes content depend on the order of access; this may not."""
    keys = [(seed, epoch, piece) for seed in (0, 1) for epoch in (0, 1) for piece in range(20)]
    first = {key: example_of(CODE, key, tokenizer).ids.tolist() for key in keys}
    again = {key: example_of(CODE, key, tokenizer).ids.tolist() for key in reversed(keys)}
    assert first == again
    assert len(set(map(tuple, first.values()))) > 60, "each seed, epoch and piece cuts anew"


def test_each_epoch_cuts_a_piece_anew(tokenizer: Tokenizer) -> None:
    """A generator made again with the same seed for every buffer repeats its cuts."""
    cuts = {example_of(CODE, (0, epoch, 0), tokenizer).middle for epoch in range(30)}
    assert len(cuts) > 20


def test_draws_are_those_of_the_first_release(tokenizer: Tokenizer) -> None:
    """A resumed run must see the data it would have seen, whatever the versions below it."""
    examples = [
        example_of("abcdef", (3, 2, piece), tokenizer, config=FimConfig()) for piece in range(8)
    ]
    texts = [tokenizer.decode(example.ids[:-1], skip_special=False) for example in examples]
    assert texts == [
        "<fim_prefix><fim_suffix>f<fim_middle>abcde",
        "<fim_prefix>abcd<fim_suffix>ef<fim_middle>",
        "abcdef",
        "abcdef",
        "<fim_prefix>abcde<fim_suffix><fim_middle>f",
        "abcdef",
        "abcdef",
        "<fim_prefix><fim_suffix><fim_middle>abcdef",
    ]


@pytest.mark.parametrize("config", [ALWAYS, ALWAYS_TOKENS], ids=["character", "token"])
def test_un_permuting_returns_the_text(tokenizer: Tokenizer, config: FimConfig) -> None:
    """Text that looks like sentinels stays text: each sentinel's id stands once, and in order."""
    fim = tokenizer.fim
    for piece, text in enumerate(generated_documents(400, mean=15)):
        example = example_of(text, (0, 0, piece), tokenizer, config=config)
        assert unpermute(example.ids, tokenizer) == text
        sentinels = [token for token in example.ids.tolist() if token in tokenizer.special_ids]
        if text:
            assert sentinels == [fim.prefix, fim.suffix, fim.middle, tokenizer.end_of_text]
        assert not example.overflow
        assert len(example.ids) <= len(tokenizer.encode(text)) + RESERVE


def test_un_permuting_something_else_is_refused(tokenizer: Tokenizer) -> None:
    fim = tokenizer.fim
    wrong = (
        [fim.suffix, 40, fim.prefix, fim.middle, 41],
        [fim.prefix, 40, fim.suffix, 41],
        [*psm_prompt([40], [41], fim), 42, 0, *psm_prompt([40], [41], fim), 42],
    )
    for ids in wrong:
        with pytest.raises(ValueError, match=r"ids: sentinels \[.*expected \[1, 3, 2\]"):
            unpermute(np.array(ids), tokenizer)


def test_eos_ends_documents_and_middles_only(tokenizer: Tokenizer) -> None:
    """Its id is 0: a script that asks `if eos` never adds it."""
    assert tokenizer.end_of_text == 0
    plain = FimConfig(rate=0.0)
    ids = tokenizer.encode(CODE)
    ending = example_of(CODE, (0, 0, 0), tokenizer, config=plain)
    assert ending.ids.tolist() == [*ids, 0]
    going_on = example_of(CODE, (0, 0, 0), tokenizer, config=plain, ends_document=False)
    assert going_on.ids.tolist() == ids
    assert going_on.middle == ending.middle == (0, 0)
    for piece in range(10):
        permuted = example_of(CODE, (0, 0, piece), tokenizer, ends_document=False)
        assert permuted.ids[-1] == 0 and permuted.ids.tolist().count(0) == 1
        assert permuted.middle[1] == len(permuted.ids)


def test_short_pieces_may_have_empty_parts_and_an_empty_one_is_never_permuted(
    tokenizer: Tokenizer,
) -> None:
    """Megatron permutes what follows the last eod even if empty: three bare sentinels."""
    for piece in range(30):
        for text in ("a", "ab", "é", "🙂"):
            example = example_of(text, (0, 0, piece), tokenizer)
            assert example.kind != "plain"
            assert unpermute(example.ids, tokenizer) == text
        empty = example_of("", (0, 0, piece), tokenizer)
        assert (empty.kind, empty.ids.tolist()) == ("plain", [0])
        unfinished = example_of("", (0, 0, piece), tokenizer, ends_document=False)
        assert unfinished.ids.tolist() == []


def test_a_permutation_beyond_the_reserve_is_the_plain_piece_and_is_counted(
    tmp_path: Path,
) -> None:
    """1,024 letters that are one token become many where it is cut."""
    doubling = [("a" * 2**power, "a" * 2**power) for power in range(10)]
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, byte_tokenizer_json(doubling)))
    text = "a" * 1024
    ids = tokenizer.encode(text)
    assert len(ids) == 1
    overflows = 0
    for piece in range(50):
        example = example_of(text, (0, 0, piece), tokenizer)
        assert len(example.ids) <= len(ids) + RESERVE
        assert unpermute(example.ids, tokenizer) == text
        assert example.overflow == (example.kind == "plain")
        if example.overflow:
            assert example.ids.tolist() == [*ids, 0]
        overflows += example.overflow
    assert 0 < overflows < 50


def test_bytes_that_are_no_text_stay_plain(tokenizer: Tokenizer) -> None:
    """Decoded and encoded again they would become replacement characters."""
    ids = np.array(tokenizer.encode("ab\U00040000cd"), np.int32)
    for piece in range(10):
        example = make_example(
            ids, (0, 0, piece), config=ALWAYS, tokenizer=tokenizer, ends_document=False
        )
        assert example.kind == "plain" and not example.overflow
        assert example.ids.tolist() == ids.tolist()


@pytest.mark.parametrize("config", [ALWAYS, ALWAYS_TOKENS], ids=["character", "token"])
def test_a_header_stays_in_front_whole(tokenizer: Tokenizer, config: FimConfig) -> None:
    header = tokenizer.encode("<reponame>a/b<filename>c.py\n", special=True)
    body = tokenizer.encode(CODE)
    for piece in range(20):
        example = make_example(
            np.array(header + body, np.int32),
            (0, 0, piece),
            config=config,
            tokenizer=tokenizer,
            ends_document=True,
            header=len(header),
        )
        assert example.kind != "plain"
        assert example.ids[: len(header) + 1].tolist() == [*header, tokenizer.fim.prefix]
        assert unpermute(example.ids, tokenizer) == "a/bc.py\n" + CODE


def test_a_header_alone_stays_plain(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<filename>c.py\n", special=True)
    example = make_example(
        np.array(ids),
        (0, 0, 0),
        config=ALWAYS,
        tokenizer=tokenizer,
        ends_document=False,
        header=len(ids),
    )
    assert (example.kind, example.ids.tolist()) == ("plain", ids)


def test_sentinels_spelled_with_hyphens_are_found(tmp_path: Path) -> None:
    """SantaCoder's; a list of exactly five special tokens, or one spelling, misses some."""
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, byte_tokenizer_json(fim="-")))
    example = example_of(CODE, (0, 0, 0), tokenizer)
    assert example.kind != "plain"
    assert unpermute(example.ids, tokenizer) == CODE


def test_starcoder_tokens_survive_every_cut(shared_data: Path) -> None:
    """The real vocabulary: whole indents are tokens, and digits stand alone."""
    tokenizer = Tokenizer.from_file(shared_data / "starcoder-tokenizer" / "tokenizer.json")
    text = CODE * 3
    for piece in range(100):
        example = example_of(text, (0, 0, piece), tokenizer)
        assert example.kind != "plain"
        assert unpermute(example.ids, tokenizer) == text
