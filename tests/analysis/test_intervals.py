"""Intervals, exact tests and corrections: known answers by hand."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dnas.analysis.intervals import (
    bootstrap_interval,
    holm,
    percentile_interval,
    sign_flip_p,
    spearman,
    t_half_width,
    t_interval,
    t_quantile,
    welch_interval,
    wilson_interval,
)
from tests.support.warnings import WARNINGS_ARE_ERRORS

pytestmark = WARNINGS_ARE_ERRORS


def test_garbage_of_other_tests_is_no_error() -> None:
    Path("/dev/null").open()  # noqa: SIM115
    with pytest.raises(RuntimeWarning, match="divide by zero"):
        np.log(np.zeros(1))


def test_sign_flip_p_by_hand() -> None:
    assert sign_flip_p([1, 2, 3]) == 2 / 8  # |sums| with the first sign +: 6, 4, 2, 0
    assert sign_flip_p([3, 1, -1]) == 3 / 4  # sums 5, 3, 3, 1; the observed one is 3
    assert sign_flip_p([1, 2, -4]) == 1.0
    assert sign_flip_p([-0.01] * 7) == 2 / 2**7
    assert sign_flip_p([0, 0, 1]) == 1.0  # a zero has both signs with equal probability
    assert sign_flip_p([0, 0, 0]) == sign_flip_p([0.3]) == sign_flip_p([]) == 1.0


def test_sums_that_differ_only_by_rounding_are_ties() -> None:
    whole = np.array([1, 2, 3, -3, 4, -1])  # the observed sum is 6
    sums = [abs(np.dot(signs, whole)) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean([total >= 6 for total in sums])
    assert sign_flip_p(whole / 10) == sign_flip_p(whole / 144) == sign_flip_p(whole * 1e-7) == expected


def test_p_of_many_pairs_is_estimated_from_random_signs_and_never_zero() -> None:
    assert sign_flip_p([0.01] * 30) == pytest.approx(1e-5, abs=1e-12)  # (1 + 0) / (1 + 99,999)
    mixed = [1.0] * 20 + [-1.0] * 5  # at most 5 of 25 coins on one side: 2·(1 + 25 + 300 + 2300 + 12650 + 53130) / 2^25
    assert sign_flip_p(mixed) == pytest.approx(2 * 68406 / 2**25, abs=6e-4)
    assert sign_flip_p(mixed) == sign_flip_p(mixed)


def test_t_interval_by_hand() -> None:
    low, high = t_interval([0.01, 0.02, 0.03])  # 0.02 ± 4.3027·0.01/√3
    assert (low, high) == pytest.approx((0.02 - 0.024841, 0.02 + 0.024841), abs=1e-6)
    low, high = t_interval([0.01, 0.02, 0.03], alpha=0.1)  # 2.9200
    assert high - low == pytest.approx(2 * 2.91999 * 0.01 / math.sqrt(3), abs=1e-6)


def test_bootstrap_interval_follows_the_skew_and_moves_with_the_data() -> None:
    d = np.array([0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 2.0, 3.5])
    low, high = bootstrap_interval(d)
    assert high - d.mean() > 1.5 * (d.mean() - low)
    assert bootstrap_interval(-d) == pytest.approx((-high, -low), rel=0.1)  # the resamples differ
    assert bootstrap_interval(d + 5) == pytest.approx((low + 5, high + 5))
    assert bootstrap_interval(d / 100) == pytest.approx((low / 100, high / 100))


def test_bootstrap_of_values_that_hardly_vary_equals_students_interval() -> None:
    d = [0, 0, 0, 0, 0.01]  # a third of the resamples contain only zeros
    assert bootstrap_interval(d) == t_interval(d)


def test_the_wilson_interval_has_its_golden_values() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize("freedom", [1, 2, 7, 3.7, 120])
@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 3])
def test_t_quantile_equals_scipy(freedom: float, alpha: float) -> None:
    assert t_quantile(freedom, alpha) == float(stats.t.ppf(1 - alpha / 2, freedom))


def test_t_half_width_equals_half_the_interval() -> None:
    low, high = t_interval([0.01, 0.02, 0.03, 0.05])
    assert t_half_width(float(np.std([1, 2, 3, 5], ddof=1)) / 100, 4) == pytest.approx((high - low) / 2)


def test_welch_interval_accepts_a_constant_sample() -> None:
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0])
    low, high = welch_interval(first, second)  # the deviation of the second is 0: 3 degrees of freedom, 3.18245
    assert (low, high) == pytest.approx((0.5 - 2.05427, 0.5 + 2.05427), abs=1e-5)
    second = np.array([2.0, 3.0, 4.0])
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert welch_interval(first, second) == pytest.approx((expected.low, expected.high))


def test_percentile_interval_keeps_the_other_axes() -> None:
    low, high = percentile_interval(np.arange(41)[:, None] * [1.0, 10.0])
    assert (low.tolist(), high.tolist()) == ([1.0, 10.0], [39.0, 390.0])


def test_holm_steps_down_and_skips_none() -> None:
    assert holm([0.04, None, 0.01, 0.5]) == [0.08, None, 0.03, 0.5]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([]) == []


def test_spearman_is_not_a_number_for_a_constant_side() -> None:
    assert spearman(np.array([1, 2, 3]), np.array([10, 30, 20])) == pytest.approx(0.5)
    assert math.isnan(spearman(np.array([1, 1, 1]), np.array([10, 30, 20])))
