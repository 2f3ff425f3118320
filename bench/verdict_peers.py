"""Stopping rules of peers for `verdict.py`, on arrays, by their public descriptions.

Each takes z (standard errors from no difference) at the looks, and returns where it would stop.
Run it to print how far from zero each needs the difference to be.
"""

import math

import numpy as np

from reactune.canary.sequential import kappa, multiplier

Floats = np.ndarray
ALPHA = 0.05
# O'Brien-Fleming-like spending (Lan and DeMets, 1983) of 5 %, two-sided, at five equal looks:
# Jennison and Turnbull, Group Sequential Methods, 2000, table 7.3 and `ldbounds`.
LAN_DEMETS = np.array([4.8769, 3.3569, 2.6803, 2.2898, 2.0310])


def growthbook(z: Floats, units: Floats, *, tuned_at: float) -> Floats:
    """GrowthBook's sequential test, two-sided, with information counted in units.

    The asymptotic confidence sequence of Waudby-Smith et al., arXiv:2103.06476, version 7; its
    tuning parameter is the number of units at which the bounds are tightest, by default 5,000.
    """
    return np.abs(z) > multiplier(kappa(ALPHA) * units / tuned_at, ALPHA)


def msprt(z: Floats, error: Floats, *, spread: float) -> Floats:
    """Mixture sequential probability ratio test, two-sided.

    A normal prior of standard deviation `spread` on the difference (Johari, Koomen, Pekelis and
    Walsh, 2017).
    """
    return np.abs(z) > multiplier((spread / error) ** 2, ALPHA)


def naive(z: Floats) -> Floats:
    """A t test that is read at every look as if it were the only one."""
    return np.abs(z) > 1.959964


def track_and_stop(z: Floats, tips: Floats) -> Floats:
    """TensorZero's stopping rule: the generalised likelihood ratio against its threshold.

    z^2 / 2 against ln((1 + ln t) / delta) with t answers so far and delta = 0.05 (Garivier and
    Kaufmann, 2016, with TensorZero's threshold). Its allocation of traffic is left out: every rule
    here reads the same.
    """
    return z**2 / 2 > np.log((1 + np.log(tips)) / ALPHA)


def group_sequential(z: Floats, part: Floats) -> Floats:
    """Five looks planned at equal parts of the information; `part` is that which is in."""
    stops = np.zeros(z.shape, bool)
    for number, bound in enumerate(LAN_DEMETS, 1):
        reached = part >= number / len(LAN_DEMETS) - 1e-9
        at = np.argmax(reached, axis=-1)
        rows = np.arange(len(z))
        stops[rows, at] |= reached[rows, at] & (np.abs(z[rows, at]) > bound)
    return stops


def ratio_with_cuped(worlds: object, looks: Floats) -> tuple[Floats, Floats]:
    """GrowthBook's estimate of a ratio at each look, and its standard error.

    Regression adjustment by the pre-period, delta method, one coefficient for both arms (Deng, Xu,
    Kohavi and Walker, 2013; the formulas of its documentation). Arms are pooled over the ramp.
    """
    columns = (worlds.positives, worlds.tips, worlds.past_positives, worlds.past_tips)
    arms = [_moments(columns, arm, looks) for arm in (~worlds.challenger, worlds.challenger)]
    covariance = [_linear(*each) for each in arms]
    pooled = sum(cov for _, _, cov in covariance)
    theta = pooled[0, 1] / np.maximum(pooled[1, 1], 1e-12)
    (y0, x0, c0), (y1, x1, c1) = covariance
    estimate = (y1 - y0) - theta * (x1 - x0)
    variance = sum(c[0, 0] - 2 * theta * c[0, 1] + theta**2 * c[1, 1] for c in (c0, c1))
    return estimate, np.sqrt(np.maximum(variance, 1e-12))


def _moments(columns: tuple[Floats, ...], arm: Floats, looks: Floats) -> tuple[Floats, ...]:
    units = np.cumsum(arm, axis=1)[:, looks].astype(float)
    sums = [np.cumsum(each * arm, axis=1)[:, looks].astype(float) for each in columns]
    products = [
        [np.cumsum(a * b * arm, axis=1)[:, looks].astype(float) for b in columns] for a in columns
    ]
    return units, np.array(sums), np.array(products)


def _linear(units: Floats, sums: Floats, products: Floats) -> tuple[Floats, Floats, Floats]:
    """Both ratios of an arm, and the covariance of their estimates (delta method)."""
    n = np.maximum(units, 2)
    means = np.maximum(sums / n, 1e-9)
    spread = (products / n - means[:, None] * means[None, :]) * n / (n - 1)
    y, x = means[0] / means[1], means[2] / means[3]
    slopes = np.zeros((2, 4, *y.shape))
    slopes[0, 0], slopes[0, 1] = 1 / means[1], -y / means[1]
    slopes[1, 2], slopes[1, 3] = 1 / means[3], -x / means[3]
    return y, x, np.einsum("iawl,abwl,jbwl->ijwl", slopes, spread, slopes) / n


if __name__ == "__main__":
    for tips in (1_000, 10_000, 100_000):
        wanted = math.sqrt(2 * math.log((1 + math.log(tips)) / ALPHA))
        print(f"after {tips:>7,} tips: track and stop wants {wanted:.2f} standard errors")
    print(f"mixtures at their best: {float(multiplier(kappa(ALPHA), ALPHA)):.2f}")
