"""The tokenizer gives the reference's ids, loses no text, and keeps control tokens out of text."""

import copy
import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizer_files import BYTES_WITHOUT_TOKEN, byte_tokenizer_json, write_tokenizer

from jaxcoder import tokenizer as tokenizer_module
from jaxcoder.byte_level import BYTE_LETTERS, OPTIONAL_BYTES, spelled_bytes
from jaxcoder.errors import TokenizerError
from jaxcoder.fim import FimTokens
from jaxcoder.tokenizer import Tokenizer

GAP = range(0x40000, 0x80000)
"""Characters whose first UTF-8 byte is F1, which StarCoder has no token for."""


@pytest.fixture(scope="module")
def starcoder_file(shared_data: Path) -> Path:
    return shared_data / "starcoder-tokenizer" / "tokenizer.json"


@pytest.fixture(scope="module")
def starcoder(starcoder_file: Path) -> Tokenizer:
    return Tokenizer.from_file(starcoder_file, vocab_size=49152)


@pytest.fixture(scope="module")
def library(starcoder_file: Path) -> tokenizers.Tokenizer:
    """The tokenizers library reading the same file by itself."""
    return tokenizers.Tokenizer.from_file(str(starcoder_file))


@pytest.fixture
def tiny(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_file(write_tokenizer(tmp_path))


def humaneval_texts(shared_data: Path) -> list[str]:
    with gzip.open(
        shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        problems = [json.loads(line) for line in file]
    fields = ("prompt", "canonical_solution", "test")
    return [problem[field] for problem in problems for field in fields]


def random_texts(count: int) -> Iterator[str]:
    """Characters of every plane but the gap, mixed with code, blanks, digits and look-alikes."""
    rng = random.Random(0)
    pieces = ["def ", "\n    ", "  ", "\t", "\r\n", "12", "<fim_prefix>", "<|endoftext|>", "é", "½"]
    pieces += ["\x00", "\u200b", "\u202e", "\u0301", "\ufeff", "\ufffd", "🙂", "it's"]
    tops = (0x80, 0x800, 0x10000, 0x110000)
    for _ in range(count):
        text = []
        for _ in range(rng.randrange(16)):
            point = rng.randrange(rng.choice(tops))
            if point in GAP or 0xD800 <= point < 0xE000:
                text.append(rng.choice(pieces))
            else:
                text.append(chr(point))
        yield "".join(text)


def test_known_vectors_of_the_published_tokenizer(starcoder: Tokenizer) -> None:
    assert starcoder.encode("def print_hello_world():") == [589, 1459, 81, 7656, 81, 5860, 2262]
    assert starcoder.encode("\n   ") == [284]
    assert starcoder.fim == FimTokens(prefix=1, middle=2, suffix=3, pad=4)
    assert starcoder.end_of_text == 0
    assert starcoder.vocab_size == 49152
    assert starcoder.special_ids == frozenset(range(19))


def test_every_humaneval_text_round_trips_with_the_librarys_ids(
    starcoder: Tokenizer, library: tokenizers.Tokenizer, shared_data: Path
) -> None:
    texts = humaneval_texts(shared_data)
    assert len(texts) == 492
    for text in texts:
        ids = starcoder.encode(text)
        assert starcoder.decode(ids) == text
        assert ids == library.encode(text, add_special_tokens=False).ids


def test_random_unicode_round_trips_with_the_librarys_ids(
    starcoder: Tokenizer, library: tokenizers.Tokenizer
) -> None:
    """10,000 texts of every plane but U+40000..U+7FFFF, special look-alikes taken both ways."""
    seen_special = 0
    for text in random_texts(10_000):
        ids = starcoder.encode(text)
        assert starcoder.decode(ids) == text
        library.encode_special_tokens = True
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert starcoder.special_ids.isdisjoint(ids)
        library.encode_special_tokens = False
        special = starcoder.encode(text, special=True)
        assert special == library.encode(text, add_special_tokens=False).ids
        assert starcoder.decode(special, skip_special=False) == text
        seen_special += ids != special
    assert seen_special > 100


def test_characters_of_the_gap_lose_a_byte(starcoder: Tokenizer) -> None:
    """The documented exception; the bytes around the missing one stay."""
    for point in (GAP[0], 0x5BEEF, GAP[-1]):
        raw = chr(point).encode()
        ids = starcoder.encode(f"a{chr(point)}b")
        assert b"".join(map(starcoder.token_bytes, ids)) == b"a" + raw[1:] + b"b"
        assert starcoder.decode(ids) == "a\ufffd\ufffd\ufffdb"
    for point in (GAP[0] - 1, GAP[-1] + 1):
        assert starcoder.decode(starcoder.encode(chr(point))) == chr(point)


def test_every_id_decodes_as_in_the_library(
    starcoder: Tokenizer, library: tokenizers.Tokenizer
) -> None:
    for number in range(49152):
        text = starcoder.decode([number], skip_special=False)
        assert text == library.decode([number], skip_special_tokens=False)


def test_decode_agrees_with_the_library_on_invalid_utf8(
    starcoder: Tokenizer, library: tokenizers.Tokenizer
) -> None:
    """Both put one U+FFFD for each maximal part of a character, also across special tokens."""
    rng = random.Random(2)
    for _ in range(2000):
        ids = [rng.randrange(rng.choice((261, 49152))) for _ in range(rng.randrange(12))]
        for skip in (True, False):
            expected = library.decode(ids, skip_special_tokens=skip)
            assert starcoder.decode(ids, skip_special=skip) == expected


def test_byte_alphabet_is_the_librarys() -> None:
    """Each byte's letter, checked through the library's own encoder of valid UTF-8."""
    assert sorted(BYTE_LETTERS) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert frozenset(BYTES_WITHOUT_TOKEN) == OPTIONAL_BYTES
    encoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("\x00\t\n !~\x7f", "\x80\xa0\xad\xff", "日", "\U0010ffff"):
        spelled = "".join(piece for piece, _ in encoder.pre_tokenize_str(text))
        assert spelled_bytes(spelled) == text.encode()


def test_digits_are_split_one_by_one(
    starcoder: Tokenizer, library: tokenizers.Tokenizer, starcoder_file: Path
) -> None:
    text = "x = 2024\n        return  1_000 + ½٣"
    ids = starcoder.encode(text)
    pieces = [starcoder.decode([number]) for number in ids]
    assert [piece for piece in pieces if any(c in "0123456789" for c in piece)] == list("20241000")
    # Negative control: the same tokenizer without the Digits step gives other ids.
    definition = json.loads(starcoder_file.read_text(encoding="utf-8"))
    definition["pre_tokenizer"] = definition["pre_tokenizer"]["pretokenizers"][1]
    undivided = tokenizers.Tokenizer.from_str(json.dumps(definition))
    assert undivided.encode(text).ids != ids


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n\n", "\x00", "\u200b\u200f\u202e", "a" * 1_000_000, "x = 1; " * 20_000],
    ids=["empty", "blank", "newlines", "nul", "direction marks", "a million a", "one long line"],
)
def test_odd_texts_round_trip(starcoder: Tokenizer, text: str) -> None:
    assert starcoder.decode(starcoder.encode(text)) == text


def test_text_that_looks_special_is_text_unless_asked(tiny: Tokenizer) -> None:
    text = "a<fim_middle>b<|endoftext|>"
    plain, special = tiny.encode(text), tiny.encode(text, special=True)
    assert tiny.special_ids.isdisjoint(plain)
    assert tiny.decode(plain) == text
    (a,), (b,) = tiny.encode("a"), tiny.encode("b")
    assert special == [a, 2, b, 0]
    assert tiny.decode(special) == "ab"
    assert tiny.decode(special, skip_special=False) == text
    assert tiny.token_bytes(2) == b""
    assert tiny.token_bytes(2, skip_special=False) == b"<fim_middle>"


def test_sentinels_in_names_what_occurs(tiny: Tokenizer) -> None:
    assert tiny.sentinels_in("a<filename>b<fim_prefix><fim_prefi") == ["<fim_prefix>", "<filename>"]
    assert tiny.sentinels_in("<fim-prefix> and < |endoftext|>") == []


def test_padding_rows_of_the_embedding_decode_to_nothing(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path)
    size = Tokenizer.from_file(path).vocab_size
    padded = Tokenizer.from_file(path, vocab_size=size + 8)
    assert padded.vocab_size == size
    assert padded.decode([*padded.encode("de"), size, size + 7]) == "de"
    assert padded.token_bytes(size) == b""
    with pytest.raises(ValueError, match=rf"ids\[1\]: {size + 8}, expected .* to {size + 7}"):
        padded.decode([0, size + 8])
    with pytest.raises(ValueError, match=rf"token: {size}, expected .* to {size - 1}"):
        Tokenizer.from_file(path).token_bytes(size)


@pytest.mark.parametrize("bad", [-1, 2**32, True, np.True_, 1.0, "1", None, [1]])
def test_ids_that_are_no_ids_are_refused_with_their_position(tiny: Tokenizer, bad: object) -> None:
    with pytest.raises(ValueError, match=r"ids\[2\]: .* expected an integer from 0"):
        tiny.decode([20, 21, bad])


def test_ids_may_be_numpy_integers_but_must_be_a_sequence(tiny: Tokenizer) -> None:
    ids = np.asarray(tiny.encode("return é"))
    assert tiny.decode(ids) == "return é"
    assert tiny.decode(ids.astype(np.uint16)) == "return é"
    with pytest.raises(ValueError, match="ids: 5, expected a sequence of integers"):
        tiny.decode(5)


@pytest.mark.parametrize("text", [b"bytes", None, 3])
def test_only_str_is_encoded(tiny: Tokenizer, text: object) -> None:
    with pytest.raises(ValueError, match=r"text: .* expected a str"):
        tiny.encode(text)


@pytest.mark.parametrize("special", [False, True])
def test_a_lone_surrogate_is_refused_with_its_position(tiny: Tokenizer, special: bool) -> None:
    with pytest.raises(ValueError, match=r"position 2: the lone surrogate '\\ud83d'.*errors="):
        tiny.encode("ab\ud83dc", special=special)


def test_fim_tokens_are_found_in_both_spellings(tmp_path: Path) -> None:
    for separator in "_-":
        path = write_tokenizer(tmp_path, byte_tokenizer_json(fim=separator))
        assert Tokenizer.from_file(path).fim == FimTokens(1, 2, 3, 4)


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """A change that gives a special token another name everywhere."""

    def change(definition: dict[str, Any]) -> None:
        vocab = definition["model"]["vocab"]
        vocab[new] = vocab.pop(old)
        (entry,) = (e for e in definition["added_tokens"] if e["content"] == old)
        entry["content"] = new

    return change


def make_ordinary(definition: dict[str, Any]) -> None:
    definition["added_tokens"][3]["special"] = False


def remove_from_added(definition: dict[str, Any]) -> None:
    del definition["added_tokens"][3]


def rename_all(definition: dict[str, Any]) -> None:
    for part in ("prefix", "middle", "suffix", "pad"):
        rename(f"<fim_{part}>", f"<gap_{part}>")(definition)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("<fim_prefix>", "<x>"), "'<fim_prefix>' is missing"),
        (rename("<fim_middle>", "<x>"), "'<fim_middle>' is missing"),
        (make_ordinary, r"'<fim_suffix>' \(id 3\) is not special"),
        (remove_from_added, r"'<fim_suffix>' \(id 3\) is not special"),
        (rename("<fim_middle>", "<fim-middle>"), "both of the FIM tokens"),
        (rename_all, "neither of the FIM tokens"),
    ],
    ids=["38-no-prefix", "38-no-middle", "38-ordinary", "38-not-added", "38-mixed", "38-none"],
)
def test_missing_fim_tokens_are_named_before_use_not_at_load(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    definition = byte_tokenizer_json()
    change(definition)
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, definition))
    assert tokenizer.decode(tokenizer.encode("def")) == "def"
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: .*{message}"):
        _ = tokenizer.fim


def test_fim_padding_token_is_optional(tmp_path: Path) -> None:
    definition = byte_tokenizer_json()
    rename("<fim_pad>", "<x>")(definition)
    assert Tokenizer.from_file(write_tokenizer(tmp_path, definition)).fim.pad is None


def test_added_tokens_outside_the_vocabulary_keep_their_ids(tmp_path: Path) -> None:
    """SantaCoder's layout with a gap before it: the library alone numbers such tokens anew."""
    definition = byte_tokenizer_json(fim="-")
    vocab = definition["model"]["vocab"]
    for entry in definition["added_tokens"]:
        del vocab[entry["content"]]
        entry["id"] += 1000
    path = write_tokenizer(tmp_path, definition)
    tokenizer = Tokenizer.from_file(path, vocab_size=1100)
    assert tokenizer.encode("<fim-middle>", special=True) == [1002]
    assert tokenizer.end_of_text == 1000
    assert tokenizer.fim == FimTokens(1001, 1002, 1003, 1004)
    assert tokenizer.vocab_size == 1019
    assert tokenizer.decode([1002, 5, 1002], skip_special=False) == "<fim-middle>" * 2
    # Negative control.
    assert tokenizers.Tokenizer.from_file(str(path)).encode("<fim-middle>").ids != [1002]


def test_added_tokens_are_registered_in_as_few_calls_as_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call costs the library time in all tokens so far: one call each is quadratic."""
    definition = byte_tokenizer_json()
    kinds = [True] * 500 + [False] * 500 + [True]
    entry = definition["added_tokens"][0]
    definition["added_tokens"] += [
        dict(entry, id=400 + i, content=f"<|{i}|>", special=special)
        for i, special in enumerate(kinds)
    ]
    sizes: list[int] = []

    library_class = tokenizers.Tokenizer

    class Counting:
        """The library's class, which allows no subclass."""

        def __init__(self, model: object) -> None:
            object.__setattr__(self, "inner", library_class(model))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(self.inner, name, value)

        def add_special_tokens(self, tokens: list[tokenizers.AddedToken]) -> int:
            sizes.append(len(tokens))
            return self.inner.add_special_tokens(tokens)

        def add_tokens(self, tokens: list[tokenizers.AddedToken]) -> int:
            sizes.append(len(tokens))
            return self.inner.add_tokens(tokens)

    monkeypatch.setattr(tokenizers, "Tokenizer", Counting)
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, definition))
    assert sizes == [519, 500, 1] * 2
    for i, special in enumerate(kinds):
        assert tokenizer.encode(f"<|{i}|>", special=True) == [400 + i]
        assert (400 + i in tokenizer.special_ids) == special


def test_unused_ids_between_tokens_load_and_decode_to_nothing(tmp_path: Path) -> None:
    """Model vocabularies are padded and files leave gaps; only an id past the model is an error."""
    definition = byte_tokenizer_json()
    highest = max(definition["model"]["vocab"].values())
    entry = dict(definition["added_tokens"][0], id=highest + 11, content="<far>")
    definition["added_tokens"].append(entry)
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, definition), vocab_size=highest + 20)
    assert tokenizer.vocab_size == highest + 12
    assert tokenizer.encode("a<far>", special=True)[-1] == highest + 11
    assert tokenizer.decode(range(highest + 1, highest + 11), skip_special=False) == ""


def test_an_added_token_that_is_not_special_is_found_in_plain_text(tmp_path: Path) -> None:
    definition = byte_tokenizer_json()
    entry = dict(definition["added_tokens"][0], id=400, content="日本", special=False)
    definition["added_tokens"].append(entry)
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, definition))
    assert 400 in tokenizer.encode("a日本b")
    assert tokenizer.decode([400]) == "日本"
    assert 400 not in tokenizer.special_ids
    assert tokenizer.sentinels_in("日本") == []


def test_both_ways_of_writing_merges_give_the_same_ids(tmp_path: Path, tiny: Tokenizer) -> None:
    definition = byte_tokenizer_json()
    definition["model"]["merges"] = [" ".join(pair) for pair in definition["model"]["merges"]]
    strings = Tokenizer.from_file(write_tokenizer(tmp_path, definition))
    text = "def f():\n    return 12 = é"
    assert strings.encode(text) == tiny.encode(text)
    assert len(strings.encode("return")) == 1
    # 1 and 2 have a merge, which splitting digits keeps from ever applying.
    assert len(strings.encode("12")) == 2


def test_gpt2_files_load_as_gpt2_only(tmp_path: Path) -> None:
    """GPT-2's own file: no Digits, no model type, empty affixes, a ByteLevel post-processor."""
    definition = byte_tokenizer_json()
    definition["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}
    definition["pre_tokenizer"]["trim_offsets"] = True
    definition["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True}
    model = definition["model"]
    del model["type"]
    model["continuing_subword_prefix"] = model["end_of_word_suffix"] = ""
    path = write_tokenizer(tmp_path, definition)
    tokenizer = Tokenizer.from_file(path, model_type="gpt2")
    assert len(tokenizer.encode("12")) == 1
    with pytest.raises(
        TokenizerError, match=r"pre_tokenizer: ByteLevel.*expected Sequence\[Digits"
    ):
        Tokenizer.from_file(path)
    digits = write_tokenizer(tmp_path, byte_tokenizer_json())
    assert len(Tokenizer.from_file(digits, model_type="gpt2").encode("12")) == 2
    with pytest.raises(ValueError, match="model_type: 'llama', expected one of"):
        Tokenizer.from_file(path, model_type="llama")


def test_truncation_and_padding_in_the_file_have_no_effect(tmp_path: Path, tiny: Tokenizer) -> None:
    """A file saved by a training script: the library would cut text at 4 tokens without a word."""
    definition = byte_tokenizer_json()
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    definition["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    path = write_tokenizer(tmp_path, definition)
    text = "a long text, longer than four tokens"
    assert Tokenizer.from_file(path).encode(text) == tiny.encode(text)
    # Negative control.
    assert len(tokenizers.Tokenizer.from_file(str(path)).encode(text).ids) == 64


@pytest.mark.parametrize("with_added", [True, False])
def test_agreeing_old_style_files_beside_are_accepted(tmp_path: Path, with_added: bool) -> None:
    definition = byte_tokenizer_json()
    added = {entry["content"] for entry in definition["added_tokens"]}
    vocab = definition["model"]["vocab"]
    listed = {token: i for token, i in vocab.items() if with_added or token not in added}
    (tmp_path / "vocab.json").write_text(json.dumps(listed), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in definition["model"]["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    assert Tokenizer.from_file(write_tokenizer(tmp_path, definition)).encode("def")


def test_loading_changes_neither_the_file_nor_later_loads(tmp_path: Path) -> None:
    definition = byte_tokenizer_json()
    before = copy.deepcopy(definition)
    path = write_tokenizer(tmp_path, definition)
    raw = path.read_bytes()
    assert Tokenizer.from_file(path).encode("def") == Tokenizer.from_file(path).encode("def")
    assert (path.read_bytes(), definition) == (raw, before)


def test_a_panic_in_the_library_becomes_a_tokenizer_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Rust panic is a BaseException, which `except Exception` would let through."""
    path = write_tokenizer(tmp_path)

    class PanicException(BaseException):
        pass

    def fail_with(error: type[BaseException]) -> None:
        def build(*arguments: object, **options: object) -> None:
            raise error("index out of bounds")

        monkeypatch.setattr(tokenizer_module, "_build", build)

    fail_with(PanicException)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: .*PanicException: index out"):
        Tokenizer.from_file(path)
    fail_with(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.from_file(path)
