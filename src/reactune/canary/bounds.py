"""Formulas that stay valid however often one looks: bounds and e-values, arrays in, arrays out.

What they are applied to, and what follows from them, is for `compare.py`.
"""

from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betaln, gammaln

from reactune.canary.passage import closing_constant

Floats = NDArray[np.float64]
SRM_PRIOR = 1_000.0
HARM_PRIOR = 20.0


def kappa(alpha: float) -> float:
    """Mixing constant: with `x = kappa * information / planned`, bounds are tightest at planned.

    Howard et al., arXiv:1810.08240, section 3.5 (their rho is planned / kappa).
    """
    return -2 * log(alpha) + log(1 - 2 * log(alpha))


def multiplier(x: ArrayLike, alpha: float) -> Floats:
    """How many standard errors each side of a two-sided confidence sequence is away.

    Robbins' normal mixture: Waudby-Smith et al., arXiv:2103.06476; Howard et al.,
    arXiv:1810.08240. `x` is `kappa(alpha)` times the share of the planned information that
    is in. All bounds ever read hold together with chance 1 - alpha, asymptotically.
    """
    information = np.asarray(x, np.float64)
    return np.sqrt((1 + 1 / information) * (np.log1p(information) - 2 * log(alpha)))


def planned_multiplier(progress: ArrayLike, alpha: float, *, chance: float) -> Floats:
    """How many standard errors away a bound is that is read as often as one likes until an end.

    `progress` is the share of the planned information that is in; all bounds read up to 1 hold
    together with this chance of a failure on their side, asymptotically. The shape is that of
    `multiplier`, tightest at the end; but as nothing is read after it, the constant is the one
    with which exactly `chance` is spent there, not the one that lasts for ever.
    """
    x = kappa(alpha) * np.asarray(progress, np.float64)
    constant = closing_constant(kappa(alpha), chance)
    return np.sqrt((1 + 1 / x) * (np.log1p(x) + constant))


def mixture_evidence(z: ArrayLike, x: ArrayLike) -> Floats:
    """Log e-value against a mean of at most zero, from `z` standard errors above it; 0 below.

    Robbins' normal mixture, of which `multiplier` is the boundary; asymptotic as that is.
    """
    above, information = np.maximum(z, 0), np.asarray(x, np.float64)
    evidence: Floats = (information * above**2 / (1 + information) - np.log1p(information)) / 2
    return evidence


def allocation_evidence(on_challenger: ArrayLike, events: ArrayLike, *, ceiling: float) -> Floats:
    """Log e-value that events fall on the challenger more often than with chance `ceiling`.

    Exact for any number of events, and at any time, as long as each event is given to the
    challenger with chance at most `ceiling` whatever came before: a likelihood ratio mixed
    over a Beta prior that is cut off below `ceiling`, where each ratio is a supermartingale.
    Same idea as the inhomogeneous Bernoulli process of Lindon and Malek, arXiv:2011.03567.
    """
    hits, total = np.asarray(on_challenger, np.float64), np.asarray(events, np.float64)
    a, b = np.maximum([HARM_PRIOR * ceiling, HARM_PRIOR * (1 - ceiling)], 0.5)
    posterior = _log_upper_beta(a + hits, b + total - hits, ceiling)
    likelihood = hits * log(ceiling) + (total - hits) * log(1 - ceiling)
    evidence: Floats = posterior - _log_upper_beta(a, b, ceiling) - likelihood
    return evidence


def ratio_evidence(counts: ArrayLike, shares: ArrayLike, prior: ArrayLike) -> Floats:
    """Log e-value that units fall on the arms in other shares than planned.

    Dirichlet-multinomial against multinomial: Lindon and Malek, arXiv:2011.03567.
    `counts` has the arms on its last axis; `shares` sum to 1; `prior` is the Dirichlet's.
    """
    seen, theta, a = (np.asarray(value, np.float64) for value in (counts, shares, prior))
    total = seen.sum(axis=-1)
    evidence: Floats = (
        gammaln(a.sum())
        - gammaln(a.sum() + total)
        + (gammaln(a + seen) - gammaln(a) - seen * np.log(theta)).sum(axis=-1)
    )
    return evidence


def _log_upper_beta(a: Floats, b: Floats, low: float) -> Floats:
    """Log of the Beta integral from `low` to 1.

    Where its part of the whole is too thin for a float, `low` lies far above the mode, and the
    integral's series (DLMF 8.17.8) is bounded by a geometric one.
    """
    tail = betaincc(a, b, low)
    is_thin = tail < 1e-290
    whole = betaln(a, b) + np.log(np.where(is_thin, 1.0, tail))
    ratio = np.where(is_thin, (1 - low) * np.maximum((a + b) / (b + 1), 1), 0.0)
    series = a * log(low) + b * log(1 - low) - np.log(b) - np.log1p(-ratio)
    return np.where(is_thin, series, whole)
