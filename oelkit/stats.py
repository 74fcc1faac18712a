"""Intervals and sample sizes of pass rates, on plain numbers.

Wilson's interval (1927) for one rate, a paired bootstrap over map seeds and sampling seeds for a
difference, and the episodes that a comparison needs. Nothing here knows of models or worlds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a rate (default: 95%).

    Raises:
        ValueError: successes is not between 0 and n, or n is 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is not a rate")
    rate, scale = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    # at the ends the bound is exactly 0 or 1; avoid rounding errors
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def outcomes(passes: str, maps: int) -> np.ndarray:
    """Return the episodes of a passes string ("0110…") as [sampling seeds, maps] of 0 and 1."""
    return np.array([int(c) for c in passes], float).reshape(-1, maps)


def paired_bootstrap(a: Any, b: Any) -> tuple[float, float, float]:
    """Return the mean of b - a over paired episodes with its 95% percentile interval.

    Map seeds and sampling seeds are both resampled, independently of each other (the pigeonhole
    bootstrap: Owen, Annals of Applied Statistics 1, 2007), 10,000 times, always from the same seed.

    Args:
        a: an evaluation report, or outcomes [maps] or [sampling seeds, maps].
        b: the same, on the same maps.

    Returns:
        (difference, low, high).

    Raises:
        ValueError: the episodes do not match, or an outcome is not a finite number.
        TypeError: there are strings, such as a report's passes_string (see `outcomes`).
    """
    maps = [getattr(x, "map_seeds", None) for x in (a, b)]
    if None not in maps and maps[0] != maps[1]:
        raise ValueError("reports on different maps cannot be paired")
    given = [np.asarray(value) for value in (a, b)]
    if any(value.dtype.kind == "U" for value in given):  # NumPy would read "0110" as 110
        raise TypeError("got a string, not outcomes: convert it with stats.outcomes(passes, maps)")
    x, y = (np.atleast_2d(value.astype(float)) for value in given)
    if x.shape != y.shape or not x.size:
        shapes = f"{x.shape} and {y.shape} episodes (sampling seeds, maps)"
        raise ValueError(f"{shapes} cannot be paired")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("an outcome is not finite: leave its map out of both")
    difference = y - x
    rows, columns = (n.astype(float) / n.shape[1] for n in _drawn(*difference.shape))
    low, high = np.quantile(((rows @ difference) * columns).sum(1), (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


@lru_cache(maxsize=4)  # a report compares many arms on as many maps
def _drawn(*shape: int) -> list[np.ndarray]:
    """Return how often each sampling seed and each map is drawn, in small integers."""
    rng = np.random.default_rng(0)
    counts = (rng.multinomial(n, np.full(n, 1 / n), 10_000) for n in shape)
    return [drawn.astype(np.min_scalar_type(n)) for drawn, n in zip(counts, shape, strict=True)]


def draw_spread(rates: Sequence[float], games: float) -> float:
    """Return how much the pass rates of the K draws differ beyond noise, as a standard deviation.

    sqrt(max(0, s^2 - mean_d p_d (1 - p_d) / (m - 1))): s^2 is the sample variance of the K rates
    p_d, and the second term is an unbiased estimate of the binomial noise of m games (variance
    components by moments). Each draw plays other maps, so the noise is that of maps and sampling.

    Args:
        rates: pass rate of each draw, 0 to 1.
        games: games per draw.

    Raises:
        ValueError: fewer than two draws or two games per draw, or a rate outside 0 to 1.
    """
    if len(rates) < 2 or games < 2:
        what = f"{len(rates)} draws of {games} games have no spread"
        raise ValueError(f"{what}: two of each are needed")
    p = np.asarray(rates, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"rates={list(rates)}: need numbers from 0 to 1")
    return math.sqrt(max(0.0, float(p.var(ddof=1) - (p * (1 - p)).mean() / (games - 1))))


def episodes_needed(
    rate: float, difference: float = 0.1, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return the episodes per arm that show a difference in pass rate (two-sided, two proportions).

    n = (z_(1-alpha/2) sqrt(2 m (1 - m)) + z_power sqrt(p (1 - p) + q (1 - q)))^2 / (p - q)^2, m =
    (p + q) / 2, for the harder of q = p + difference and q = p - difference (Fleiss, Levin and Paik
    2003, without continuity correction). This is for arms on different maps. Arms on the same maps,
    compared map by map, usually need fewer.

    Args:
        rate: p, 0 to 1.
        difference: between the two pass rates.
        power: probability of showing the difference if it exists.
        alpha: probability of showing a difference if there is none.

    Raises:
        ValueError: no rate differs by this much, or power or alpha is not between 0 and 1.
    """
    others = [q for q in (rate - difference, rate + difference) if 0 <= round(q, 9) <= 1]
    if not 0 <= rate <= 1 or difference <= 0 or not others:
        raise ValueError(f"no pass rate differs from {rate} by {difference}")
    if not (0 < power < 1 and 0 < alpha < 1):
        raise ValueError(f"power={power}, alpha={alpha}: need numbers between 0 and 1")
    z, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    q = min(others, key=lambda q: abs(q - 0.5))  # the noisier of the two
    m, noise = (rate + q) / 2, rate * (1 - rate) + max(0.0, q * (1 - q))
    n = (z * math.sqrt(2 * m * (1 - m)) + z_power * math.sqrt(noise)) ** 2 / difference**2
    return math.ceil(n)
