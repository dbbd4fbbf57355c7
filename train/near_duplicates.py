"""Documents that nearly repeat another: MinHash signatures, compared where bands of them agree.

The share of positions at which two signatures agree estimates the Jaccard index of the two sets of
shingles, runs of five token ids, to about 0.05. StarCoder's data were filtered so.
Documents are compared when one of 16 bands of four positions agrees: at a Jaccard index of 0.8 that
fails once in 5,000 pairs. Where a band of many agrees, each is compared with the first of them and
with the eight before it.

Source: A. Z. Broder, "On the resemblance and containment of documents", 1997.
"""

import functools

import numpy as np

SIMILAR = 0.8
"""Estimated Jaccard index from which documents count as near duplicates."""

_SHINGLE = 5
_POSITIONS, _BANDS = 64, 16
_NEIGHBOURS = 8
_CHUNK = 4096


def signature(ids: np.ndarray) -> np.ndarray:
    """The MinHash signature, uint32 [64], of a document's ids, int [n] with n > 0."""
    weights, factors, offsets = _coefficients()
    width = min(_SHINGLE, ids.size)
    count = ids.size - width + 1
    numbers = ids.astype(np.uint64) + np.uint64(1)
    sums = np.zeros(count, np.uint64)
    for i in range(width):
        sums += numbers[i : i + count] * weights[i]
    hashes = _mixed(sums)
    smallest = np.full(_POSITIONS, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, hashes.size, _CHUNK):
        permuted = hashes[start : start + _CHUNK] * factors + offsets  # [64, chunk]
        smallest = np.minimum(smallest, permuted.min(axis=1))
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
        group = group.reshape(-1)
        _compare(signatures, first[group], np.arange(len(signatures)), found)
        order = np.argsort(group, kind="stable")
        for distance in range(1, _NEIGHBOURS + 1):
            earlier, later = order[:-distance], order[distance:]
            same = group[earlier] == group[later]
            _compare(signatures, earlier[same], later[same], found)
    return found


def _compare(
    signatures: np.ndarray, earlier: np.ndarray, later: np.ndarray, found: np.ndarray
) -> None:
    """Note in `found` [documents] the pairs, of different documents [n] each, that are alike."""
    open_pairs = (earlier < later) & (found[later] < 0)
    earlier, later = earlier[open_pairs], later[open_pairs]
    alike = (signatures[earlier] == signatures[later]).mean(axis=1) >= SIMILAR
    found[later[alike]] = earlier[alike]


@functools.cache
def _coefficients() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of a shingle's ids, uint64 [5]; factors and offsets, uint32 [64, 1].

    Weights and factors are odd: multiplication by an odd number loses nothing.
    """
    rng = np.random.default_rng(20230509)
    weights = rng.integers(1 << 64, size=_SHINGLE, dtype=np.uint64) | np.uint64(1)
    factors = rng.integers(1 << 32, size=(_POSITIONS, 1), dtype=np.uint32) | np.uint32(1)
    offsets = rng.integers(1 << 32, size=(_POSITIONS, 1), dtype=np.uint32)
    return weights, factors, offsets


def _mixed(sums: np.ndarray) -> np.ndarray:
    """uint32 of uint64 sums, by all their bits: SplitMix64's last steps (Steele et al. 2014)."""
    sums = (sums ^ (sums >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    sums = (sums ^ (sums >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (sums >> np.uint64(32)).astype(np.uint32)
