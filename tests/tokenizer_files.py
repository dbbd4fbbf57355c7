"""A whole tokenizer in a few lines, with StarCoder's pipeline, for tests and tiny checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

BYTES_WITHOUT_TOKEN = (0xC0, 0xC1, 0xF1, *range(0xF5, 0x100))

_MERGES = [
    ("Ġ", "Ġ"),
    ("ĠĠ", "ĠĠ"),
    ("Ċ", "ĠĠĠĠ"),
    ("d", "e"),
    ("de", "f"),
    ("i", "n"),
    ("r", "e"),
    ("re", "t"),
    ("u", "r"),
    ("ret", "ur"),
    ("retur", "n"),
    ("Ġ", "="),
    ("(", ")"),
    ("1", "2"),
    ("Ã", "©"),
]


def byte_tokenizer_json(
    extra_merges: Sequence[tuple[str, str]] = (), fim: str = "_"
) -> dict[str, Any]:
    """A ``tokenizer.json``: 19 special tokens at ids 0..18, 242 byte tokens, then the merges.

    Args:
      extra_merges: pairs to merge after the built-in ones, spelled byte-level ("Ġ" is a blank).
      fim: what joins the words of the FIM tokens, "_" as in StarCoder or "-" as in SantaCoder.
    """
    special = [
        "<|endoftext|>",
        *(f"<fim{fim}{part}>" for part in ("prefix", "middle", "suffix", "pad")),
        "<filename>",
        "<gh_stars>",
        *(f"<issue_{part}>" for part in ("start", "comment", "closed")),
        *(f"<jupyter_{part}>" for part in ("start", "text", "code", "output")),
        "<empty_output>",
        *(f"<commit_{part}>" for part in ("before", "msg", "after")),
        "<reponame>",
    ]
    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {*map(chr, BYTES_WITHOUT_TOKEN)})
    merges = [*_MERGES, *extra_merges]
    tokens = [*special, *letters, *(first + second for first, second in merges)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, content in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [list(merge) for merge in merges],
        },
    }


def write_tokenizer(folder: Path, definition: dict[str, Any] | None = None) -> Path:
    """Write `definition`, by default `byte_tokenizer_json()`, as ``tokenizer.json`` in `folder`."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(definition or byte_tokenizer_json()), encoding="utf-8")
    return path
