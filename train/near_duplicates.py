"""Documents that nearly repeat another: MinHash signatures, compared where bands of them agree.

The share of positions at which two signatures agree estimates the Jaccard index of the two sets of
shingles, runs of five token ids, to about 0.05 (Broder 1997; StarCoder's data were filtered so).
Two documents are compared when one of 16 bands of four positions agrees: at a Jaccard index of 0.8
that is missed once in 5,000 pairs.
"""

import numpy as np

SIMILAR = 0.8
"""Estimated Jaccard index from which documents count as near duplicates."""

_SHINGLE = 5
_POSITIONS, _BANDS = 64, 16
_CHUNK = 4096
_rng = np.random.default_rng(20230509)
_WEIGHTS = _rng.integers(1 << 63, size=_SHINGLE, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_FACTORS = _rng.integers(1 << 63, size=_POSITIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _rng.integers(1 << 63, size=_POSITIONS, dtype=np.uint64)


def signature(ids: np.ndarray) -> np.ndarray:
    """The MinHash signature, uint32 [64], of a document's ids, int [n] with n > 0."""
    width = min(_SHINGLE, ids.size)
    windows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64) + np.uint64(1), width)
    hashes = np.unique(_mixed(windows @ _WEIGHTS[:width]))
    smallest = np.full(_POSITIONS, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, hashes.size, _CHUNK):
        products = hashes[start : start + _CHUNK, None] * _FACTORS + _OFFSETS
        smallest = np.minimum(smallest, (products >> np.uint64(32)).astype(np.uint32).min(axis=0))
    return smallest


def earlier_duplicates(signatures: np.ndarray) -> np.ndarray:
    """For each document one earlier document that it nearly repeats, or -1.

    Args:
      signatures: uint32 [documents, 64], by `signature`.

    Returns:
      int64 [documents].
    """
    found = np.full(len(signatures), -1, np.int64)
    if not len(signatures):
        return found
    for band in np.split(np.ascontiguousarray(signatures), _BANDS, axis=1):
        _, first, group = np.unique(band, axis=0, return_index=True, return_inverse=True)
        candidate = first[group.reshape(-1)]
        alike = (signatures == signatures[candidate]).mean(axis=1) >= SIMILAR
        new = alike & (candidate < np.arange(len(signatures))) & (found < 0)
        found[new] = candidate[new]
    return found


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Spread sums over all 64 bits: the finishing steps of SplitMix64 (Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
