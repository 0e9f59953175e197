"""Statistics against scipy, closed forms and their own promises (coverage, monotonicity)."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from shoal.core import stats
from shoal.core.rng import generator


@pytest.fixture
def skewed():
    return generator("stats-test").lognormal(size=40)


def both(seed: int, n: int = 30):
    rng = generator("stats-pair", seed)
    x = rng.gamma(4.0, size=n)
    return x, 0.6 * x + rng.gamma(2.0, size=n)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_mean_interval_agrees_with_scipy(skewed, method):
    ours = stats.mean_interval(skewed, method=method)
    theirs = scipy.stats.bootstrap(
        (skewed,), np.mean, method=method, n_resamples=9_999, rng=0
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx(skewed.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_paired_ratio_agrees_with_scipy():
    x, y = both(1)
    ours = stats.ratio_interval(x, y)
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        method="BCa",
        rng=0,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_difference_of_independent_samples_agrees_with_scipy():
    x, _ = both(2, 25)
    y, _ = both(3, 60)
    ours = stats.difference_interval(x, y)
    theirs = scipy.stats.bootstrap(
        (x, y), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), method="BCa", rng=0
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_pairing_narrows_the_difference_of_correlated_samples():
    x, y = both(4)
    paired = stats.difference_interval(x, y, paired=True)
    loose = stats.difference_interval(x, y)
    assert paired.estimate == pytest.approx(loose.estimate)
    assert paired.high - paired.low < loose.high - loose.low


def test_bca_covers_the_mean_of_a_skewed_law_about_as_often_as_it_says():
    rng = generator("coverage")
    truth = 1.0
    samples = rng.exponential(truth, size=(400, 40))
    hits = 0
    for number, sample in enumerate(samples):
        interval = stats.mean_interval(sample, resamples=999, seed=number)
        hits += interval.low <= truth <= interval.high
    # Nominal .95; three standard errors of 400 trials are .033, and a small skewed sample
    # costs a bootstrap interval of the mean a point or two.
    assert 0.90 <= hits / len(samples) <= 0.98


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(skewed):
    assert stats.mean_interval(skewed, seed=5) == stats.mean_interval(skewed, seed=5)
    assert stats.mean_interval(skewed, seed=5) != stats.mean_interval(skewed, seed=6)


def test_a_sample_that_never_varies_has_an_interval_of_no_width():
    assert stats.mean_interval([3.0] * 9) == stats.Interval(3.0, 3.0, 3.0)


def test_chunking_does_not_change_the_draws(skewed, monkeypatch):
    whole = stats.mean_interval(skewed, resamples=500)
    monkeypatch.setattr(stats, "_CELLS", 7 * len(skewed))
    assert stats.mean_interval(skewed, resamples=500) == whole


@pytest.mark.parametrize("n", [8, 40])
def test_permutation_p_value_agrees_with_scipy(n):
    x, y = both(7, n)
    y = y + 0.2
    ours = stats.paired_permutation_test(x, y)
    theirs = scipy.stats.permutation_test(
        (x, y), lambda a, b: np.mean(a - b), permutation_type="samples", rng=0
    ).pvalue
    assert ours == pytest.approx(theirs, abs=1e-12 if n == 8 else 0.02)


def test_exact_permutation_of_one_sided_differences_is_two_over_two_to_the_n():
    assert stats.paired_permutation_test([2, 3, 4, 5, 6], [1, 1, 1, 1, 1]) == 2 / 2**5


def test_equal_samples_have_p_value_one():
    assert stats.paired_permutation_test([1, 2, 3], [1, 2, 3]) == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (648, 1000)])
def test_wilson_agrees_with_scipy(successes, trials):
    ours = stats.wilson_interval(successes, trials)
    theirs = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_cohens_d_is_the_t_statistic_without_the_sample_sizes():
    x, y = both(8, 21)[0], both(9, 34)[1]
    t = scipy.stats.ttest_ind(x, y).statistic
    assert stats.cohens_d(x, y) == pytest.approx(t * np.sqrt(1 / len(x) + 1 / len(y)))


@given(
    st.lists(st.integers(-5, 5), min_size=2, max_size=12),
    st.lists(st.integers(-5, 5), min_size=2, max_size=12),
)
def test_cliffs_delta_is_the_mean_sign_of_all_pairs(x, y):
    plain = np.sign(np.subtract.outer(np.array(x), np.array(y))).mean()
    assert stats.cliffs_delta(x, y) == pytest.approx(plain)


def test_holm_matches_the_textbook_example():
    # Sorted .005 .01 .03 .04 times 4 3 2 1, then made monotone.
    adjusted = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_and_never_reorders(p_values):
    p, adjusted = np.array(p_values), stats.holm(p_values)
    assert ((adjusted >= p) & (adjusted <= 1)).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@pytest.mark.parametrize(
    ("voters", "accuracy", "expected"),
    [
        (1, 0.6, 0.6),
        (3, 0.6, 0.648),
        (5, 0.6, 0.683),
        (7, 0.6, 0.710),
        (9, 0.6, 0.733),
        (5, 0.4, 0.317),
        (2, 0.6, 0.6),
        (4, 0.6, 0.648),
    ],
)
def test_majority_accuracy_is_condorcets(voters, accuracy, expected):
    assert stats.majority_accuracy(voters, accuracy) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: stats.mean_interval([1.0]),
        lambda: stats.mean_interval([1.0, float("nan")]),
        lambda: stats.mean_interval([1.0, 2.0], level=95),
        lambda: stats.ratio_interval([1.0, 2.0], [0.0, 1.0]),
        lambda: stats.difference_interval([1.0, 2.0], [1.0, 2.0, 3.0], paired=True),
        lambda: stats.wilson_interval(3, 2),
        lambda: stats.cohens_d([1.0, 1.0], [1.0, 1.0]),
        lambda: stats.majority_accuracy(0, 0.5),
    ],
)
def test_what_cannot_be_measured_is_refused(broken):
    with pytest.raises(ValueError, match=r"\w"):
        broken()


@pytest.mark.parametrize(("only_x", "only_y", "both"), [(0, 0, 5), (9, 2, 3), (1, 7, 0), (4, 4, 1)])
def test_mcnemars_test_is_the_binomial_one_on_pairs_that_differ(
    only_x: int, only_y: int, both: int
) -> None:
    x = [1] * only_x + [0] * only_y + [1] * both
    y = [0] * only_x + [1] * only_y + [1] * both
    n = only_x + only_y
    expected = scipy.stats.binomtest(only_x, n).pvalue if n else 1.0
    assert stats.mcnemar_test(x, y) == pytest.approx(float(expected))


def test_mcnemars_test_refuses_what_is_no_success() -> None:
    with pytest.raises(ValueError, match="zeros and ones"):
        stats.mcnemar_test([0.5, 1], [0, 1])
