"""The tokenizer a training run makes for itself: StarCoder's pipeline, ids and completeness."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcoder.tokenizer import Tokenizer
from tests.tokenizer_files import byte_tokenizer_json
from train.tokenizer_training import SMALLEST_VOCABULARY, SPECIAL_TOKENS, train_tokenizer

PROJECT = Path(__file__).resolve().parent.parent
TEXTS = (
    "def area(width, height):\n    return width * height\n",
    "class Shape:\n    def __init__(self, width):\n        self.width = width\n" * 3,
    "print('<fim_prefix>', '<|endoftext|>', 1234, 'é 日本')\n" * 4,
)


def load(contents: bytes, folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_bytes(contents)
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def contents() -> bytes:
    return train_tokenizer(iter(TEXTS), 320)


@pytest.fixture
def tokenizer(contents: bytes, tmp_path: Path) -> Tokenizer:
    return load(contents, tmp_path)


def test_special_tokens_have_starcoders_ids(contents: bytes, tokenizer: Tokenizer):
    """A model's FIM and end-of-text ids are fixed by this order, and by nothing else."""
    published = [token["content"] for token in byte_tokenizer_json()["added_tokens"]]
    assert list(SPECIAL_TOKENS) == published
    added = json.loads(contents)["added_tokens"]
    assert [(token["id"], token["content"]) for token in added] == list(enumerate(published))
    assert tokenizer.special_ids == frozenset(range(19))
    assert tokenizer.end_of_text == 0
    assert tuple(tokenizer.fim) == (1, 2, 3, 4)


def test_ids_match_the_published_file(contents: bytes):
    """Same special tokens, settings and byte order as the published file, where it is at hand."""
    path = PROJECT.parent / "shared/data/starcoder-tokenizer/tokenizer.json"
    if not path.exists():
        pytest.skip("the published StarCoder tokenizer is not beside the project")
    ours, published = json.loads(contents), json.loads(path.read_text(encoding="utf-8"))
    for section in ("added_tokens", "pre_tokenizer", "decoder", "normalizer", "post_processor"):
        assert ours[section] == published[section]
    in_order = [
        [token for token, _ in sorted(file["model"]["vocab"].items(), key=lambda item: item[1])]
        for file in (ours, published)
    ]
    bytes_of_both = [token for token in in_order[1][19:261] if token in set(in_order[0][19:275])]
    assert [token for token in in_order[0][19:275] if token in set(bytes_of_both)] == bytes_of_both


@pytest.mark.parametrize("text", [*TEXTS, "\x00\x01\r\n\t\x7f", "\U00040000 \U0010ffff ß"])
def test_every_text_comes_back(tokenizer: Tokenizer, text: str):
    """All 256 bytes have a token: text of characters never seen in training survives too."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_byte_has_a_token(tokenizer: Tokenizer):
    """The published file lacks the bytes that UTF-8 does not use; this one has them all."""
    assert sorted(tokenizer.token_bytes(number) for number in range(19, 275)) == [
        bytes([value]) for value in range(256)
    ]


def test_merges_are_learnt_and_bounded(tokenizer: Tokenizer):
    """The vocabulary is of the size asked for, and its merges shorten the text."""
    assert tokenizer.vocab_size == 320
    assert len(tokenizer.encode(TEXTS[1])) < 0.7 * len(TEXTS[1])


def test_digits_stay_single(tokenizer: Tokenizer):
    """StarCoder's pipeline splits numbers: 1234 occurs four times and is still four tokens."""
    assert [tokenizer.token_bytes(number) for number in tokenizer.encode("1234")] == [
        *(b"1", b"2", b"3", b"4")
    ]


def test_special_token_text_is_text(tokenizer: Tokenizer):
    """A document may contain "<fim_prefix>": no merge may make the special token of it."""
    assert not tokenizer.special_ids & set(tokenizer.encode(TEXTS[2]))
    assert tokenizer.encode("<fim_prefix>", special=True) == [1]


def test_few_texts_give_fewer_tokens(tmp_path: Path):
    """Nothing is made up to fill a vocabulary: pairs seen once are not merged."""
    assert load(train_tokenizer(iter(["ab cd"]), 4096), tmp_path).vocab_size == SMALLEST_VOCABULARY


def test_same_texts_same_bytes(contents: bytes):
    """Another process, with or without threads, another hash seed: the file is the same."""
    program = (
        "import sys; from tests.test_train_tokenizer_training import TEXTS, train_tokenizer\n"
        "sys.stdout.buffer.write(train_tokenizer(iter(TEXTS), 320))"
    )
    for threads in ("true", "false"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=PROJECT,
            env=os.environ | {"TOKENIZERS_PARALLELISM": threads, "PYTHONHASHSEED": "7"},
            capture_output=True,
            check=True,
        )
        assert done.stdout == contents


def test_texts_are_read_as_they_come():
    """A generator over a large folder is read once, and its own error is not swallowed."""

    def failing():
        yield TEXTS[0]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train_tokenizer(failing(), 300)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (TEXTS, 274, "vocab_size: 274, expected 275 or more"),
        (TEXTS, 4096.0, "vocab_size: 4096.0, expected an integer"),
        (TEXTS, True, "vocab_size: True, expected an integer"),
        ((), 300, "texts: no document"),
    ],
)
def test_bad_arguments_are_named(texts: tuple[str, ...], vocab_size: object, message: str):
    """Too small a vocabulary would silently lose bytes: the trainer itself does not complain."""
    with pytest.raises(ValueError, match=message):
        train_tokenizer(itertools.chain(texts), vocab_size)
