"""FIM layouts are the published orders, and trimming keeps what is nearest the hole."""

import itertools

import pytest

from jaxcoder.fim import FimTokens, psm_prompt, spm_prompt, trim_around_hole

FIM = FimTokens(prefix=1, middle=2, suffix=3, pad=4)


def test_psm_and_spm_orders_are_those_of_starcoder() -> None:
    """Ids are written out: a swap of middle and suffix, ids 2 and 3, would show here."""
    assert psm_prompt([10, 11], [20], FIM) == [1, 10, 11, 3, 20, 2]
    assert spm_prompt([10, 11], [20], FIM) == [1, 3, 20, 2, 10, 11]


def test_empty_sides_leave_the_three_sentinels() -> None:
    assert psm_prompt([], [], FIM) == [1, 3, 2]
    assert spm_prompt([], [], FIM) == [1, 3, 2]
    assert psm_prompt([], [20], FIM) == [1, 3, 20, 2]
    assert spm_prompt([10], [], FIM) == [1, 3, 2, 10]


def test_trimming_drops_far_ends_only_and_counts_them() -> None:
    """Every small case: what is kept touches the hole, fills the budget, and nothing is lost."""
    for n_prefix, n_suffix, budget in itertools.product(range(9), range(9), range(20)):
        prefix, suffix = list(range(n_prefix)), list(range(100, 100 + n_suffix))
        kept_prefix, kept_suffix, (lost_prefix, lost_suffix) = trim_around_hole(
            prefix, suffix, budget
        )
        assert prefix[lost_prefix:] == kept_prefix
        assert suffix[: n_suffix - lost_suffix] == kept_suffix
        assert len(kept_prefix) + len(kept_suffix) == min(budget, n_prefix + n_suffix)
        if budget >= 2:  # both sides stay
            assert bool(kept_prefix) == bool(prefix)
            assert bool(kept_suffix) == bool(suffix)


@pytest.mark.parametrize(
    ("n_prefix", "n_suffix", "kept"),
    [
        (1000, 1000, (75, 25)),  # both long: three quarters and one
        (1000, 10, (90, 10)),  # what the suffix leaves goes to the prefix
        (30, 1000, (30, 70)),  # and the reverse
        (60, 40, (60, 40)),  # it fits
    ],
)
def test_shares_of_a_budget_of_100(n_prefix: int, n_suffix: int, kept: tuple[int, int]) -> None:
    prefix, suffix, dropped = trim_around_hole(range(n_prefix), range(n_suffix), 100)
    assert (len(prefix), len(suffix)) == kept
    assert dropped == (n_prefix - kept[0], n_suffix - kept[1])


def test_smallest_budgets_favour_the_prefix_then_both() -> None:
    assert trim_around_hole([1, 2], [3, 4], 0) == ([], [], (2, 2))
    assert trim_around_hole([1, 2], [3, 4], 1) == ([2], [], (1, 2))
    assert trim_around_hole([1, 2], [3, 4], 2) == ([2], [3], (1, 1))


@pytest.mark.parametrize("budget", [-1, 2.0, True, None])
def test_a_budget_that_is_no_count_is_refused(budget: object) -> None:
    with pytest.raises(ValueError, match=r"budget: .* expected an integer >= 0"):
        trim_around_hole([1], [2], budget)
