"""Intervals and sample sizes, against tables, definitions and simulation."""

import numpy as np
import pytest

from oelkit.stats import draw_spread, episodes_needed, paired_bootstrap, wilson_interval


@pytest.mark.parametrize(
    "k, n, low, high",
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval(k, n, low, high):
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=6e-5)
    assert wilson_interval(0, n)[0] == 0 and wilson_interval(n, n)[1] == 1


def test_wilson_covers_and_refuses_what_is_no_rate():
    # by definition, k is exactly z standard errors away from both ends
    for k, n in ((3, 17), (64, 128)):
        for end in wilson_interval(k, n):
            assert abs(k / n - end) == pytest.approx(1.96 * (end * (1 - end) / n) ** 0.5)
    for k, n in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match=f"{k} of {n} is not a rate"):
            wilson_interval(k, n)


def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    a = rng.random(128) < 0.3
    assert paired_bootstrap(a, a) == (0, 0, 0)
    difference, low, high = paired_bootstrap(a, rng.random(128) < 0.9)
    assert 0.3 < low < difference < high < 0.9
    assert paired_bootstrap(~a, a)[2] < 0
    assert paired_bootstrap(a, ~a) == paired_bootstrap(a, ~a)
    # paired: a constant gain on every episode is certain, even if episodes differ widely
    x = rng.random(50)
    assert paired_bootstrap(x, x + 0.1) == pytest.approx((0.1, 0.1, 0.1))
    # the width is that of the mean of the differences
    d = rng.normal(0, 1, 400)
    _, low, high = paired_bootstrap(np.zeros(400), d)
    assert high - low == pytest.approx(2 * 1.96 * d.std() / 20, rel=0.05)
    for pair in (([1], [1, 0]), ([], [])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_bootstrap(*pair)


@pytest.mark.parametrize("shape", [(5,), (3, 40), (2, 300)])
def test_many_comparisons_share_their_draws(shape):
    rng = np.random.default_rng(7)
    for a, b in [(rng.random(shape), rng.random(shape)) for _ in range(3)]:
        difference, drawn = np.atleast_2d(b - a), np.random.default_rng(0)
        rows, maps = (drawn.multinomial(n, np.full(n, 1 / n), 10_000) / n for n in difference.shape)
        means = ((rows @ difference) * maps).sum(1)
        low, high = np.quantile(means, (0.025, 0.975))
        assert paired_bootstrap(a, b) == (difference.mean(), low, high)


def test_paired_bootstrap_draws_maps_and_sampling_seeds_again():
    rng = np.random.default_rng(3)
    seeds, maps = rng.normal(0, 1, (16, 1)), rng.normal(0, 0.5, (1, 64))
    nothing = np.zeros((16, 64))
    # if results differ only by sampling seed (or map), only the number of seeds (or maps) counts
    for d, n in ((seeds + 0 * maps, 16), (maps + 0 * seeds, 64)):
        _, low, high = paired_bootstrap(nothing, d)
        assert high - low == pytest.approx(2 * 1.96 * d.std() / n**0.5, rel=0.08)
    d = seeds + maps
    both, one = paired_bootstrap(nothing, d), paired_bootstrap(nothing.ravel(), d.ravel())
    assert both[0] == pytest.approx(one[0]) and both[2] - both[1] > 3 * (one[2] - one[1])
    with pytest.raises(ValueError, match=r"\(16, 64\) and \(1, 64\) episodes"):
        paired_bootstrap(nothing, nothing[:1])


def test_spread_of_the_draws_beyond_sampling_noise():
    rng = np.random.default_rng(1)
    truth = rng.normal(
        0.5, 0.1, (400, 10)
    )  # 400 evaluations of 10 draws that differ by 0.1, and of 10 that do not
    for rates, spread in ((truth, 0.1), (np.full((400, 10), 0.5), 0.0)):
        found = [draw_spread(rng.binomial(40, r) / 40, 40) for r in rates]
        if spread:
            assert np.mean(np.square(found)) == pytest.approx(spread**2, rel=0.1)
        else:
            assert np.mean(np.asarray(found) == 0) > 0.4 and np.median(found) < 0.04
    assert draw_spread([0.0, 1.0], 10) == pytest.approx(0.5**0.5)  # no noise at 0 and 1
    assert draw_spread([0.5, 0.5, 0.5], 10) == 0
    for rates, games in (([0.5], 10), ([0.1, 0.2], 1)):
        with pytest.raises(ValueError, match="two of each"):
            draw_spread(rates, games)


def test_episodes_needed():
    # R's power.prop.test: 387.3385, 76.65294 (p1 = 0.5, p2 = 0.75, power = 0.9), which has the same
    # formula
    assert episodes_needed(0.5) == 388 and episodes_needed(0.5, 0.25, power=0.9) == 77
    assert episodes_needed(0.25, 0.25, power=0.9) == 77  # the harder side: 0.5, not 0
    assert (
        episodes_needed(1.0)
        == episodes_needed(0.0)
        < episodes_needed(0.3)
        > episodes_needed(0.3, 0.2)
    )
    for rate, difference in ((0.5, 0.6), (0.5, 0), (1.2, 0.1)):
        with pytest.raises(ValueError, match="no pass rate differs"):
            episodes_needed(rate, difference)
    rng = np.random.default_rng(0)  # and the power is what it says
    a, b = rng.binomial(388, 0.5, 20_000) / 388, rng.binomial(388, 0.6, 20_000) / 388
    pooled = (a + b) / 2
    shown = np.abs(a - b) > 1.96 * np.sqrt(2 * pooled * (1 - pooled) / 388)
    assert shown.mean() == pytest.approx(0.8, abs=0.015)
