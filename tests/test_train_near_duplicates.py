"""MinHash: what counts as a repetition, how well its share is estimated, and how long it takes."""

import time

import numpy as np
import pytest

from train.near_duplicates import SIMILAR, earlier_duplicates, signature


def signatures(*documents: np.ndarray) -> np.ndarray:
    return np.array([signature(ids) for ids in documents])


def test_copies_and_near_copies_point_to_the_first() -> None:
    """A copy, and one with a few ids changed, repeat; half a document and another one do not."""
    rng = np.random.default_rng(0)
    original, other = rng.integers(0, 49152, (2, 2000))
    edited = original.copy()
    edited[[100, 700, 1500]] += 1
    half = np.concatenate([original[:1000], rng.integers(0, 49152, 1000)])
    found = earlier_duplicates(signatures(other, original, half, original, edited))
    assert found.tolist() == [-1, -1, -1, 1, 1]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_agreement_estimates_the_jaccard_index(share: float) -> None:
    """Averaged over 40 pairs of documents that share a start: within four standard errors."""
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(40):
        first, second = rng.integers(0, 49152, (2, 1000))
        second[: int(1000 * share)] = first[: int(1000 * share)]
        shingles = [{tuple(ids[i : i + 5]) for i in range(996)} for ids in (first, second)]
        exact = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
        errors.append((signature(first) == signature(second)).mean() - exact)
    assert abs(np.mean(errors)) <= 4 * 0.0625 / 40**0.5


def test_short_documents() -> None:
    """Fewer ids than a shingle: equal ones repeat, others do not; 0 is an id like any other."""
    documents = [np.array(ids) for ids in ([7], [7], [7, 8], [0], [0, 0], [0, 0, 0, 0, 0])]
    assert earlier_duplicates(signatures(*documents)).tolist() == [-1, 0, -1, -1, -1, -1]


def test_order_of_ids_counts() -> None:
    """The same ids in another order are another document."""
    ids = np.arange(1000)
    found = earlier_duplicates(signatures(ids, ids[::-1], ids))
    assert found.tolist() == [-1, -1, 0]


def test_no_documents() -> None:
    """Nothing repeats nothing."""
    assert earlier_duplicates(np.zeros((0, 64), np.uint32)).shape == (0,)


def test_bands_find_what_a_comparison_of_all_pairs_finds() -> None:
    """On 300 documents in families of near copies: at most one in a hundred is missed."""
    rng = np.random.default_rng(2)
    families = rng.integers(0, 49152, (30, 400))
    documents = []
    for number in range(300):
        ids = families[number % 30].copy()
        ids[rng.integers(0, 400, rng.integers(0, 12))] += 1
        documents.append(ids)
    marks = signatures(*documents)
    agree = (marks[:, None] == marks[None]).mean(-1) >= SIMILAR
    repeats = np.tril(agree, -1).any(1)
    found = earlier_duplicates(marks) >= 0
    assert repeats.sum() > 100
    assert not (found & ~repeats).any()
    assert (repeats & ~found).sum() <= repeats.sum() / 100


def test_twenty_thousand_documents_take_seconds() -> None:
    """Measured in processor time; one tenth of the documents, with ten times the allowance."""
    rng = np.random.default_rng(3)
    documents = rng.integers(0, 49152, (2000, 1000))
    began = time.process_time()
    marks = signatures(*documents)
    found = earlier_duplicates(np.concatenate([marks] * 10))
    assert (found >= 0).sum() == 18_000
    assert time.process_time() - began < 20
