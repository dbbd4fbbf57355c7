"""``python -m conversion export``: a checkpoint -> a folder with all that transformers reads.

Beside config and weights, as `save_checkpoint` writes them, the folder has a generation config and
the tokenizer's files: tokenizer.json, what transformers wants to know of it, and the same
vocabulary and merges in the two files from before tokenizer.json.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxcoder.checkpoint import TOKENIZER_FILE, load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.hub import resolve
from jaxcoder.json_file import json_bytes
from jaxcoder.tokenizer_file import END_OF_TEXT, AddedToken, TokenizerFile, read_tokenizer_file

from .folders import GENERATION_FILE, read_generation_config, write_folder


@dataclass(frozen=True)
class Export:
    """Write a checkpoint as a complete Hugging Face folder; every weight keeps its bits."""

    src: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """A local folder or a Hub id."""
    dst: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to write: new or empty."""

    def run(self) -> int:
        """Export; returns the exit status."""
        export(resolve(self.src), self.dst)
        print(f"{self.dst}: written", file=sys.stderr)
        return 0


def export(source: Path, destination: Path) -> None:
    """Write the checkpoint in the folder `source` with every file that transformers reads.

    Args:
      source: a checkpoint that `load_checkpoint` reads.
      destination: a folder that is new or empty; it appears complete or not at all.

    Raises:
      ConfigError, CheckpointError, TokenizerError: the source cannot be read, or `destination` is
        taken.
    """
    generation = read_generation_config(source)
    tokenizer = source / TOKENIZER_FILE

    def make_files(config: ModelConfig) -> dict[str, bytes]:
        files = {GENERATION_FILE: generation or generation_file(config)}
        return files | (tokenizer_files(tokenizer, config) if tokenizer.exists() else {})

    write_folder(destination, source, lambda: load_checkpoint(source), make_files)
    if not tokenizer.exists():
        print(
            f"note: {source} has no {TOKENIZER_FILE}; {destination} has no tokenizer files",
            file=sys.stderr,
        )


def tokenizer_files(path: Path, config: ModelConfig) -> dict[str, bytes]:
    """Name and content of the files that transformers reads beside the tokenizer.json at `path`.

    Raises:
      TokenizerError: a tokenizer that is damaged or not the model's.
    """
    definition = read_tokenizer_file(
        path, vocab_size=config.vocab_size, model_type=config.model_type
    )
    named = _named_tokens(definition, config)
    special = [token.content for token in _special_tokens(definition)]
    listed = named | {"additional_special_tokens": special}
    # With the class of the published files, GPT2Tokenizer, transformers 5 rebuilds the
    # pre-tokenizer without its digits; this one takes tokenizer.json as it is.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.n_positions,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    in_order = dict(sorted(definition.vocab.items(), key=lambda item: item[1]))
    vocab = json.dumps(in_order, ensure_ascii=False, separators=(",", ":"))
    merges = ["#version: 0.2", *(" ".join(merge) for merge in definition.merges), ""]
    return {
        "tokenizer_config.json": json_bytes(settings | listed),
        "special_tokens_map.json": json_bytes(listed),
        "vocab.json": vocab.encode(),
        "merges.txt": "\n".join(merges).encode(),
    }


def generation_file(config: ModelConfig) -> bytes:
    """The content of a generation_config.json that says where texts begin and end."""
    fields = config.to_hf_config()
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return json_bytes({name: fields[name] for name in names if fields[name] is not None})


def _named_tokens(definition: TokenizerFile, config: ModelConfig) -> dict[str, str]:
    """The tokens with a role; transformers makes each of them special, so only such are named."""
    texts: dict[int | None, str] = {
        token.id: token.content for token in _special_tokens(definition)
    }
    eos = config.eos_token_ids[0] if config.eos_token_ids else None
    roles = {
        "bos_token": texts.get(config.bos_token_id, END_OF_TEXT),
        "eos_token": texts.get(eos, END_OF_TEXT),
        "unk_token": END_OF_TEXT,
    }
    padding = texts.get(config.pad_token_id)
    return roles if padding is None else roles | {"pad_token": padding}


def _special_tokens(definition: TokenizerFile) -> list[AddedToken]:
    special = (token for token in definition.added if token.special)
    return sorted(special, key=lambda token: token.id)
