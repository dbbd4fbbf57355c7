"""`open_store`: the documents of a run, tokenised once and kept in a folder.

Each start reads and hashes all documents. Only when one of them, the tokenizer or a setting is not
what it was are they tokenised again, into another folder.
"""

import contextlib
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxcoder.diagnostics import say
from jaxcoder.durable import new_folder
from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.tokenizer import Tokenizer

from .benchmark_overlap import Benchmark, overlaps, read_human_eval
from .config import SourceConfig, TrainConfig
from .fingerprint import chain, check_same, fingerprint, folder_name
from .headers import header_ids
from .near_duplicates import earlier_duplicates, signature
from .sources import DELIBERATE, BadDocument, no_document_problem, read_documents
from .token_store import StoreWriter, TokenStore, open_folder, token_type

_MOST_NAMED = 20


class Survey(NamedTuple):
    """What reading all documents once has shown."""

    digest: bytes
    """`fingerprint.chain` of them all."""
    good: int
    bytes: int
    bad: tuple[BadDocument, ...]
    overlap: int | None
    """Good documents with text of HumanEval; None: not looked for."""


def open_store(
    config: TrainConfig,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    human_eval: Path | None = None,
    expected: Mapping[str, str] | None = None,
) -> TokenStore:
    """The tokenised documents of ``config.data``, from `cache` where they are, else made there.

    The store's `report` has: ``documents``, ``validation_documents``, ``tokens``, ``bytes`` (of
    text in UTF-8), ``bad`` (reason -> ``count`` and ``first``, the first of them with place),
    ``near_duplicates`` (documents that nearly repeat an earlier one),
    ``near_duplicates_across_split`` (those whose earlier one is on the other side of the validation
    split), ``humaneval_overlap`` (documents with the docstring or solution of a HumanEval task;
    None: not checked) and ``fingerprint``.

    Args:
      config: `data` and `source` are used.
      tokenizer: of the model; the text of special tokens in documents is plain text to it.
      cache: folder of stores; this one's name follows from its fingerprint.
      human_eval: ``HumanEval.jsonl.gz``, to count documents that hold its texts.
      expected: ``report["fingerprint"]`` of the run that is resumed.

    Raises:
      ConfigError: data that cannot be read, too many bad documents or no good one, a fingerprint
        other than `expected`, or a stored file that was changed.
      CheckpointError: the store cannot be written; nothing is left behind.
    """
    survey = _survey(config, None if human_eval is None else read_human_eval(human_eval))
    _check_usable(config, survey.good, survey.bad)
    parts = fingerprint(survey.digest, config.source, tokenizer)
    if expected is not None:
        check_same(parts, expected)
    folder = cache / folder_name(parts)
    if not folder.exists():
        try:
            _build(config, tokenizer, folder, parts, survey)
        except CheckpointError:
            # Another run may have made the same folder meanwhile; its content is checked below.
            if not folder.exists():
                raise
    store = open_folder(folder, parts, tokenizer.vocab_size)
    return store._replace(report=_report(store, survey, parts))


def _survey(config: TrainConfig, benchmark: Benchmark | None) -> Survey:
    """Read everything once, keeping nothing."""
    digest = b""
    good = size = overlap = 0
    bad = []
    documents = read_documents(config.data, config.source)
    with _bar("reading", "documents", None) as bar:
        for document in documents:
            bar.update(1)
            digest = chain(digest, document, headers=config.source.headers)
            if isinstance(document, BadDocument):
                bad.append(document)
                continue
            good += 1
            size += len(document.text.encode())
            overlap += benchmark is not None and overlaps(document.text, benchmark)
    return Survey(digest, good, size, tuple(bad), None if benchmark is None else overlap)


def _build(
    config: TrainConfig, tokenizer: Tokenizer, folder: Path, parts: dict[str, str], survey: Survey
) -> None:
    say(f"data: {survey.good} documents, {survey.bytes} bytes; tokenising them once, into {folder}")
    needed = survey.bytes * token_type(tokenizer.vocab_size).itemsize // 2
    with new_folder(folder, needed_bytes=needed) as partial:
        writer = StoreWriter(partial, tokenizer.vocab_size)
        with contextlib.closing(writer):
            bad, signatures = _tokenise(config, tokenizer, writer, survey)
        _check_usable(config, len(signatures), bad)
        repeats = earlier_duplicates(signatures)
        writer.finish(parts, repeats=repeats, report={"bad": _bad_counts(bad)})


def _tokenise(
    config: TrainConfig, tokenizer: Tokenizer, writer: StoreWriter, survey: Survey
) -> tuple[list[BadDocument], np.ndarray]:
    """Write every good document; returns the bad ones and signatures, uint32 [documents, 64]."""
    widths = _token_widths(tokenizer)
    bad = list(survey.bad)
    signatures = []
    digest = b""
    with _bar("tokenising", "B", survey.bytes) as bar:
        for document in read_documents(config.data, config.source):
            digest = chain(digest, document, headers=config.source.headers)
            if isinstance(document, BadDocument):
                continue
            ids = np.array(tokenizer.encode(document.text), np.int64)
            text_bytes = len(document.text.encode())
            bar.update(text_bytes)
            if widths[ids].sum() != text_bytes:
                bad.append(BadDocument(document.name, "no token", "for some of its characters"))
                continue
            header = header_ids(document, tokenizer) if config.source.headers else []
            signatures.append(signature(ids))
            writer.add(
                document.name,
                np.array([*header, *ids], np.int64),
                text_bytes=text_bytes,
                header=len(header),
                is_validation=_is_validation(document.text, config.source),
            )
    if digest != survey.digest:
        raise ConfigError(
            f"data: {config.data!r}: changed while it was read; nothing was stored. "
            "Start again when nothing writes there"
        )
    return bad, np.array(signatures, np.uint32)


def _token_widths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of each token, int64 [vocabulary]."""
    ids = range(tokenizer.vocab_size)
    return np.array([len(tokenizer.token_bytes(i, skip_special=False)) for i in ids], np.int64)


def _is_validation(text: str, source: SourceConfig) -> bool:
    """Decided by the content alone: a document's copy is on the same side as the document."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return number < source.validation_share * 2.0**64


def _check_usable(config: TrainConfig, good: int, bad: Sequence[BadDocument]) -> None:
    total = good + len(bad)
    faults = sum(document.reason not in DELIBERATE for document in bad)
    listed = "".join(
        f"\n  - {reason}: {entry['count']}, the first is {entry['first'][0]}"
        for reason, entry in _bad_counts(bad).items()
    )
    if faults > config.source.error_budget * total:
        raise ConfigError(
            f"data: {config.data!r}: {faults} of {total} documents cannot be used, more than the "
            f"share {config.source.error_budget} of source.error_budget; mend or exclude them, or "
            f"raise it{listed}"
        )
    if not good:
        raise ConfigError(no_document_problem(config.data, config.source) + listed)


def _bad_counts(bad: Sequence[BadDocument]) -> dict[str, dict[str, Any]]:
    counts: dict[str, dict[str, Any]] = {}
    for document in bad:
        entry = counts.setdefault(document.reason, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < _MOST_NAMED:
            place = f" ({document.detail})" if document.detail else ""
            entry["first"].append(document.name + place)
    return counts


def _report(store: TokenStore, survey: Survey, parts: dict[str, str]) -> dict[str, Any]:
    repeated = store.repeats >= 0
    across = store.is_validation != store.is_validation[store.repeats]
    return {
        "documents": len(store.names),
        "validation_documents": int(store.is_validation.sum()),
        "tokens": int(store.starts[-1]),
        "bytes": int(store.text_bytes.sum()),
        **store.report,
        "near_duplicates": int(repeated.sum()),
        "near_duplicates_across_split": int((repeated & across).sum()),
        "humaneval_overlap": survey.overlap,
        "fingerprint": parts,
    }


def _bar(what: str, unit: str, total: int | None) -> tqdm:
    """A progress bar; silent where standard error is no terminal."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=not terminal)
