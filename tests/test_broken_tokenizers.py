"""Broken tokenizer files: one clear TokenizerError, in bounded time, and no panic printed.

Each case starts with its number in the list of bad inputs this project answers for (34 to 42).
"""

import copy
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import byte_tokenizer_json, write_tokenizer

from jaxcoder.errors import TokenizerError
from jaxcoder.tokenizer import Tokenizer

VOCAB_SIZE = 300
DEADLINE_SECONDS = 5.0

Change = Callable[[dict[str, Any]], None]


def put(value: object, *keys: str | int) -> Change:
    """A change that sets one value deep in the file."""

    def change(definition: dict[str, Any]) -> None:
        node: Any = definition
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def drop(*keys: str | int) -> Change:
    """A change that deletes one value deep in the file."""

    def change(definition: dict[str, Any]) -> None:
        node: Any = definition
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]

    return change


def add(value: object, *keys: str | int) -> Change:
    """A change that appends to a list deep in the file."""

    def change(definition: dict[str, Any]) -> None:
        node: Any = definition
        for key in keys:
            node = node[key]
        node.append(value)

    return change


def ordinary_end_of_text(definition: dict[str, Any]) -> None:
    del definition["added_tokens"][0]


def two_tokens_one_id(definition: dict[str, Any]) -> None:
    vocab = definition["model"]["vocab"]
    vocab["<fim_suffix>"] = definition["added_tokens"][3]["id"] = vocab["<fim_middle>"]


def replaced_vocab(vocab: dict[str, int], merges: list[list[str]]) -> Change:
    def change(definition: dict[str, Any]) -> None:
        definition["model"] |= {"vocab": vocab, "merges": merges}

    return change


def without_bytes(letters: str) -> Change:
    def change(definition: dict[str, Any]) -> None:
        model = definition["model"]
        for letter in letters:
            del model["vocab"][letter]
        model["merges"] = []

    return change


def starcoder_layout(definition: dict[str, Any]) -> None:
    """Special tokens and size of StarCoder's tokenizer over another vocabulary."""
    vocab = definition["model"]["vocab"]
    vocab |= {f"filler{number}": number for number in range(len(vocab), 49152)}


def special_result_of_a_merge(definition: dict[str, Any]) -> None:
    """Plain "def" would become a control token."""
    entry = {"id": definition["model"]["vocab"]["def"], "content": "def", "special": True}
    definition["added_tokens"].append(entry)


CHANGES: dict[str, tuple[Change, str]] = {
    "34-merge-result-longer-than-any-token": (
        replaced_vocab({"aa": 0, "bb": 1}, [["aa", "bb"]]),
        r"model\.merges\[0\]: \['aa', 'bb'\] needs the token 'aabb'",
    ),
    "34-merge-result-missing": (
        add(["d", "q"], "model", "merges"),
        r"model\.merges\[15\]: \['d', 'q'\] needs the token 'dq'",
    ),
    "34-no-vocabulary-but-merges": (
        replaced_vocab({}, [["aa", "bb"]]),
        r"model\.vocab: \{\}, expected a non-empty object",
    ),
    "35-over-long-continuing-subword-prefix": (
        put("#" * 1000, "model", "continuing_subword_prefix"),
        r"model\.continuing_subword_prefix: '####",
    ),
    "35-end-of-word-suffix": (
        put("</w>", "model", "end_of_word_suffix"),
        r"model\.end_of_word_suffix: '</w>', expected ''",
    ),
    "36-merge-of-unknown-tokens": (
        add(["日", "d"], "model", "merges"),
        r"model\.merges\[15\]: \['日', 'd'\] needs the token '日'",
    ),
    "36-merge-of-one-word": (
        add("def", "model", "merges"),
        r"model\.merges\[15\]: 'def', expected two",
    ),
    "36-merge-of-three-words": (
        add("a b c", "model", "merges"),
        r"model\.merges\[15\]: 'a b c', expected two tokens",
    ),
    "36-merge-of-three-tokens": (
        add(["a", "b", "c"], "model", "merges"),
        r"model\.merges\[15\]: \['a', 'b', 'c'\], expected two tokens",
    ),
    "36-merge-of-numbers": (
        put([1, 2], "model", "merges", 0),
        r"model\.merges\[0\]: \[1, 2\], expected two",
    ),
    "36-merges-not-a-list": (
        put({"a": "b"}, "model", "merges"),
        r"model\.merges: \{'a': 'b'\}, expected an array",
    ),
    "36-merges-missing": (drop("model", "merges"), r"model\.merges: None, expected an array"),
    "37-duplicate-id": (
        put(20, "model", "vocab", "a"),
        r"'\"' and 'a' both have id 20, expected one token for each",
    ),
    "37-id-at-vocab-size": (
        put(VOCAB_SIZE, "model", "vocab", "a"),
        r"'a' has id 300, expected an integer from 0 to below the model's vocab_size, 300",
    ),
    "37-added-id-at-vocab-size": (
        add({"id": 300, "content": "<x>", "special": True}, "added_tokens"),
        "'<x>' has id 300, expected an integer from 0 to below",
    ),
    "37-id-2-to-the-32-less-1": (put(2**32 - 1, "model", "vocab", "a"), "'a' has id 4294967295"),
    "37-id-negative": (put(-1, "model", "vocab", "a"), "'a' has id -1, expected an integer"),
    "37-id-float": (put(84.0, "model", "vocab", "a"), r"'a' has id 84\.0, expected an integer"),
    "37-id-bool": (put(True, "model", "vocab", "a"), "'a' has id True, expected an integer"),
    "37-id-string": (put("84", "model", "vocab", "a"), "'a' has id '84', expected an integer"),
    "37-added-id-missing": (drop("added_tokens", 4, "id"), r"added_tokens\[4\]: .*expected an obj"),
    "37-added-id-not-the-vocabularys": (
        put(299, "added_tokens", 4, "id"),
        r"added_tokens\[4\] '<fim_pad>': id 299, expected 4 as in model\.vocab",
    ),
    "37-added-token-twice": (
        add({"id": 299, "content": "<fim_pad>", "special": True}, "added_tokens"),
        r"added_tokens\[19\]: '<fim_pad>', expected a text not listed before",
    ),
    "38-two-fim-tokens-one-id": (two_tokens_one_id, "'<fim_middle>' and '<fim_suffix>' both have"),
    "38-no-end-of-text": (
        ordinary_end_of_text,
        r"added_tokens: '<\|endoftext\|>' is missing or not special",
    ),
    "38-end-of-text-not-special": (
        put(False, "added_tokens", 0, "special"),
        r"added_tokens: '<\|endoftext\|>' is missing or not special",
    ),
    "38-special-neither-true-nor-false": (
        put("yes", "added_tokens", 0, "special"),
        r"added_tokens\[0\]: .*a boolean `special`",
    ),
    "38-special-token-made-by-a-merge": (
        special_result_of_a_merge,
        r"added_tokens\[19\] 'def': special, but also a byte or the result of a merge",
    ),
    "38-special-token-that-swallows-blanks": (
        put(True, "added_tokens", 2, "lstrip"),
        r"added_tokens\[2\] '<fim_middle>': lstrip is True, expected false",
    ),
    "38-added-token-spelling-other-bytes": (
        add({"id": 299, "content": "éa", "special": False}, "added_tokens"),
        r"added_tokens\[19\] 'éa': .* other bytes, e9 61",
    ),
    "39-no-pre-tokenizer": (
        put(None, "pre_tokenizer"),
        r"pre_tokenizer: None, expected Sequence\[Digits\(individual_digits=True\), ByteLevel",
    ),
    "39-digits-together": (
        put(False, "pre_tokenizer", "pretokenizers", 0, "individual_digits"),
        r"pre_tokenizer: Sequence\[Digits\(individual_digits=False\), .*, expected Sequence",
    ),
    "39-no-digit-splitting": (
        drop("pre_tokenizer", "pretokenizers", 0),
        r"pre_tokenizer: Sequence\[ByteLevel\(.*, expected Sequence\[Digits",
    ),
    "39-add-prefix-space": (
        put(True, "pre_tokenizer", "pretokenizers", 1, "add_prefix_space"),
        r"pre_tokenizer: .*add_prefix_space=True.*, expected .*add_prefix_space=False",
    ),
    "39-no-regex": (
        put(False, "pre_tokenizer", "pretokenizers", 1, "use_regex"),
        r"pre_tokenizer: .*use_regex=False.*, expected .*use_regex=True",
    ),
    "39-another-pre-tokenizer": (
        put({"type": "Metaspace", "replacement": "_"}, "pre_tokenizer"),
        r"pre_tokenizer: Metaspace\(replacement='_'\), expected Sequence",
    ),
    "39-normalizer-nfc": (
        put({"type": "NFC"}, "normalizer"),
        r"normalizer: NFC\(\), expected None",
    ),
    "39-decoder-missing": (put(None, "decoder"), "decoder: None, expected ByteLevel"),
    "39-decoder-metaspace": (
        put({"type": "Metaspace"}, "decoder"),
        r"decoder: Metaspace\(\), expected ByteLevel",
    ),
    "39-post-processor-adds-tokens": (
        put({"type": "TemplateProcessing", "single": []}, "post_processor"),
        r"post_processor: TemplateProcessing\(single=\[\]\), expected None or ByteLevel",
    ),
    "39-byte-fallback": (put(True, "model", "byte_fallback"), r"model\.byte_fallback: True"),
    "39-ignore-merges": (put(True, "model", "ignore_merges"), r"model\.ignore_merges: True"),
    "39-unknown-token": (
        put("<|endoftext|>", "model", "unk_token"),
        r"model\.unk_token: '<\|endoftext\|>', expected None",
    ),
    "39-word-piece": (
        put("WordPiece", "model", "type"),
        r"model\.type: 'WordPiece', expected 'BPE",
    ),
    "39-model-missing": (drop("model"), "model: None, expected an object"),
    "39-added-tokens-missing": (drop("added_tokens"), "added_tokens: None, expected an array"),
    "39-bytes-without-token": (
        without_bytes("Ġz~"),
        r"model\.vocab: 3 of the 242 byte tokens .* missing, the first 0x20 \(spelled 'Ġ'\)",
    ),
    "40-starcoder-layout-other-vocabulary": (
        starcoder_layout,
        r"model: 'def print_hello_world\(\):' encodes to \[.*\], expected \[589, 1459, 81",
    ),
    "41-catastrophic-pre-tokenizer-regex": (
        put(
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"},
            "pre_tokenizer",
        ),
        r"pre_tokenizer: Split\(behavior='Isolated', pattern=.*, expected Sequence",
    ),
    "41-lone-surrogate-in-vocabulary": (
        put(299, "model", "vocab", "\ud800"),
        r"model\.vocab: a token holds the lone surrogate '\\ud800'",
    ),
    "41-lone-surrogate-in-added-token": (
        put("<\udfff>", "added_tokens", 7, "content"),
        r"added_tokens: a token holds the lone surrogate '\\udfff'",
    ),
    "42-dropout": (put(0.1, "model", "dropout"), r"model\.dropout: 0\.1, expected 0"),
}


def refuse(path: Path, message: str, *, vocab_size: int | None = VOCAB_SIZE) -> None:
    """Loading raises a TokenizerError that names the file, matches `message`, and comes in time."""
    begin = time.process_time()
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_file(path, vocab_size=vocab_size)
    assert time.process_time() - begin < DEADLINE_SECONDS
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()  # can be printed anywhere


def test_the_unchanged_file_loads(tmp_path: Path) -> None:
    """Negative control of the table: it is the change alone that is refused."""
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path), vocab_size=VOCAB_SIZE)
    assert tokenizer.decode(tokenizer.encode("def f(): return 12")) == "def f(): return 12"


@pytest.mark.parametrize("case", CHANGES)
def test_broken_definition_is_refused(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = CHANGES[case]
    definition = byte_tokenizer_json()
    change(definition)
    vocab_size = 49152 if case.startswith("40") else VOCAB_SIZE
    refuse(write_tokenizer(tmp_path, definition), message, vocab_size=vocab_size)
    assert capfd.readouterr() == ("", "")


RAW = {
    "41-empty": (b"", "not valid JSON"),
    "41-truncated": (json.dumps(byte_tokenizer_json()).encode()[:-200], "line 1 column"),
    "41-not-utf-8": (b'{"version": "\xff"}', "byte 13: not UTF-8"),
    "41-array": (b"[]", "expected an object"),
    "41-byte-order-mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "41-duplicate-key": (b'{"model": {}, "model": {}}', "duplicate key 'model'"),
    "41-git-lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\n", "line 1 column 1"),
    "37-id-of-5000-digits": (
        b'{"model": {"vocab": {"a": ' + b"9" * 5000 + b"}}}",
        "an integer of thousands of digits",
    ),
    "41-nested-too-deeply": (b'{"model":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", RAW)
def test_broken_file_is_refused(tmp_path: Path, case: str) -> None:
    raw, message = RAW[case]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    refuse(path, message)


def test_41_one_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    refuse(path, "1073741824 bytes, expected at most 67108864")


def test_41_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "missing.json", "no such file")
    refuse(tmp_path, "expected a regular file, got a directory")
    os.mkfifo(tmp_path / "fifo")
    refuse(tmp_path / "fifo", "expected a regular file, got a FIFO")


def test_37_without_a_vocab_size_ids_still_have_a_limit(tmp_path: Path) -> None:
    definition = byte_tokenizer_json()
    definition["model"]["vocab"]["a"] = 1 << 24
    path = write_tokenizer(tmp_path, definition)
    refuse(path, "'a' has id 16777216, expected .* the limit, 16777216", vocab_size=None)


BESIDE = {
    "36-vocab.json-other-id": ("vocab.json", put(5, "a"), "'a' has id 5, expected 83 as in"),
    "36-vocab.json-token-missing": ("vocab.json", drop("a"), "'a' has id None, expected 83"),
    "36-vocab.json-more-tokens": ("vocab.json", put(299, "zzz"), "'zzz' has id 299, expected None"),
    "36-vocab.json-other-id-of-an-added-token": (
        "vocab.json",
        put(299, "<fim_pad>"),
        "'<fim_pad>' has id 299, expected 4 as in",
    ),
    "36-merges.txt-other-merge": ("merges.txt", put("a b", 3), "merge 3 is 'a b', expected 'd e'"),
    "36-merges.txt-merge-missing": ("merges.txt", drop(-1), "merge 14 is none, expected 'Ã ©'"),
    "36-merges.txt-more-merges": ("merges.txt", add("x y"), "merge 15 is 'x y', expected none"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_old_style_files_that_disagree_are_refused(tmp_path: Path, case: str) -> None:
    name, change, message = BESIDE[case]
    definition = byte_tokenizer_json()
    path = write_tokenizer(tmp_path, definition)
    model = definition["model"]
    content: Any = copy.deepcopy(model["vocab"])
    if name == "merges.txt":
        content = [" ".join(pair) for pair in model["merges"]]
    change(content)
    written = "\n".join(content) if name == "merges.txt" else json.dumps(content)
    path.with_name(name).write_text(written, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_file(path)
    assert str(path.with_name(name)) in str(caught.value)


def test_random_damage_is_refused_or_harmless(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Any value replaced by any other: a TokenizerError, or a tokenizer that loses no text."""
    rng = random.Random(0)
    junk = [
        None,
        True,
        0,
        -1,
        1.5,
        2**40,
        10**30,
        "",
        "a",
        "Ġ",
        "\ud800",
        [],
        [[]],
        {},
        {"type": 1},
    ]
    junk += ["Sequence", ["a", "b"], {"type": "Sequence"}, {"a": {}}, "a b", [None], "é"]
    refused = 0
    for _ in range(600):
        definition = byte_tokenizer_json()
        node: Any = definition
        for _ in range(rng.randrange(1, 6)):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = rng.choice(keys)
            if not isinstance(node[key], dict | list) or not node[key]:
                break
            parent, node = node, node[key]
        else:
            node = parent
        node[key] = rng.choice(junk)
        path = write_tokenizer(tmp_path, definition)
        try:
            tokenizer = Tokenizer.from_file(path, vocab_size=VOCAB_SIZE)
        except TokenizerError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            text = "def f(x): return '<fim_prefix>' 12 é日\n"
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text))
    assert 100 < refused < 600
    assert capfd.readouterr() == ("", "")
