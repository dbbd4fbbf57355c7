"""Text that a training file shares with held-out files: shingles of ten tokens, all of them."""

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_TOKEN = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 10
# Below this many shingles (about four lines) a file says too little to be a copy of another.
_FEWEST_SHINGLES = 20


class Overlap(NamedTuple):
    """The held-out file a training file shares most with."""

    held_out: str
    """Name of that file; empty: nothing in common."""
    contained: float
    """Share of the training file's shingles that are in held-out files, any of them."""
    covered: float
    """Share of that held-out file's shingles that are in the training file."""


def shingles(text: str) -> np.ndarray:
    """Sorted unique hashes of all runs of ten tokens of `text`, uint64 [n]; layout is ignored."""
    tokens = _TOKEN.findall(text)
    if len(tokens) < _SHINGLE:
        return np.zeros(0, np.uint64)
    words = np.array([zlib.crc32(token.encode()) for token in tokens], np.uint64)
    count = len(words) - _SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for offset in range(_SHINGLE):  # a polynomial modulo 2**64; the overflow is meant
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + count]
    return np.unique(hashes)


class HeldOutIndex:
    """Shingles of the held-out files, to compare training files with."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """Index `files`, name to text."""
        self._names = list(files)
        of_file = [shingles(text) for text in files.values()]
        self._sizes = np.array([len(hashes) for hashes in of_file], np.int64)
        hashes = np.concatenate([np.zeros(0, np.uint64), *of_file])
        owners = np.repeat(np.arange(len(of_file)), self._sizes)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]
        self._seen = np.zeros(len(hashes), bool)

    def overlap(self, text: str) -> Overlap:
        """What `text` shares with the held-out files."""
        found = shingles(text)
        starts = np.searchsorted(self._hashes, found, "left")
        stops = np.searchsorted(self._hashes, found, "right")
        shared = int((stops > starts).sum())
        if shared == 0:
            return Overlap("", 0.0, 0.0)
        places = self._places(starts, stops)
        counts = np.bincount(self._owners[places], minlength=len(self._names))
        long_enough = self._sizes >= _FEWEST_SHINGLES
        covered = np.where(long_enough, counts / np.maximum(self._sizes, 1), 0.0)
        best = int(np.argmax(covered)) if covered.any() else int(np.argmax(counts))
        contained = shared / len(found) if len(found) >= _FEWEST_SHINGLES else 0.0
        return Overlap(self._names[best], contained, float(covered[best]))

    def mark_trained(self, text: str) -> None:
        """Count the shingles of `text` as present in training; see `share_trained`."""
        found = shingles(text)
        starts = np.searchsorted(self._hashes, found, "left")
        stops = np.searchsorted(self._hashes, found, "right")
        self._seen[self._places(starts, stops)] = True

    def share_trained(self) -> float:
        """Share of the held-out shingles that are in some training file: phrases, idioms."""
        return float(self._seen.mean()) if len(self._seen) else 0.0

    @staticmethod
    def _places(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """All indices of the runs ``starts[i]:stops[i]``."""
        hits = stops > starts
        runs = [np.arange(*run) for run in zip(starts[hits], stops[hits], strict=True)]
        return np.concatenate([np.zeros(0, np.int64), *runs])
