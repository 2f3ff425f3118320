"""Fits a linear reward to reactions, and chooses its strength on people it has not seen.

L2-regularised logistic regression of comparisons on standardised features, with unregularised
circumstances beside them (kind, hour, the user's past). Everything is validated in folds of users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit

from reactune.reward.comparisons import (
    Comparisons,
    Floats,
    Places,
    Reactions,
    compare,
    folds_by_user,
    with_new_texts,
)

FOLDS = 5
GROUPS = 20  # of users, left out in turn: of five, the standard error is mostly noise
# Prior variances of a tip's reward: the smaller, the stronger the regularisation.
VARIANCES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
CIRCUMSTANCE_VARIANCE = 10.0  # of a circumstance's weight, in log-odds
LEAST_SCALE = 1e-6
# Newton's method, each step by conjugate gradients: SciPy's L-BFGS takes milliseconds a step where
# other processes are at work, in threads that wait for each other.
MOST_STEPS, LEAST_STEP = 30, 1e-3
TOLERANCE = 1e-5  # of the slope for each comparison
SHARES = (0.125, 0.25, 0.5)  # of the users of a fold, for the learning curve
Matrix = Any
"""Dense or sparse, a row for each reaction."""


@dataclass(frozen=True)
class Candidate:
    """Features of every reaction, and how strongly their weights are held back."""

    values: Matrix
    variance: float

    @property
    def penalty(self) -> float:
        """Of the squared weights, so that a tip's reward has the prior variance."""
        squares = self.values.multiply(self.values) if _is_sparse(self.values) else self.values**2
        length = float(squares.sum()) / int(self.values.shape[0])
        return max(length, LEAST_SCALE) / self.variance


@dataclass(frozen=True)
class Fitted:
    """Weights of the features and of the circumstances."""

    weights: Floats
    circumstances: Floats


@dataclass(frozen=True)
class Validated:
    """What validation on other users chose, and what it says about them.

    `scores` are rewards of reactions by models that saw neither their user nor their text; each
    fold's candidate was chosen on the other folds. NaN where there is no such model.
    """

    chosen: Candidate
    reactions: Reactions
    whole: Fitted
    """The chosen candidate fitted on all reactions."""
    folds: Places
    scores: Floats
    scale: float
    """What a reward is multiplied by to be a log-odds."""


def standardised(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], Floats, Floats]:
    """The columns with mean 0 and variance 1, and the mean and deviation that they had."""
    mean, deviation = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    deviation = np.maximum(deviation, LEAST_SCALE)
    return ((values - mean) / deviation).astype(np.float32), mean, deviation


@dataclass(frozen=True)
class _Problem:
    """The penalised log-loss of comparisons, by the weights of features and circumstances."""

    design: Matrix
    beside: Floats
    outcome: Floats
    weight: Floats
    penalties: Floats

    def logits(self, both: Floats) -> Floats:
        width = self.design.shape[1]
        weights = both[:width].astype(self.design.dtype)
        found: Floats = self.design @ weights + self.beside @ both[width:]
        return found

    def back(self, residuals: Floats) -> Floats:
        """The transpose of `logits`."""
        narrow = residuals.astype(self.design.dtype)
        return np.concatenate([self.design.T @ narrow, self.beside.T @ residuals])

    def loss(self, both: Floats) -> float:
        at = self.logits(both)
        value = self.weight @ (np.logaddexp(0, at) - self.outcome * at)
        return float(value + self.penalties @ both**2 / 2)

    def hessian(self, spread: Floats) -> LinearOperator:
        def times(vector: Floats) -> Floats:
            return self.back(spread * self.logits(vector)) + self.penalties * vector

        size = len(self.penalties)
        return LinearOperator((size, size), matvec=times, dtype=np.float64)


def fit(
    reactions: Reactions,
    candidate: Candidate,
    comparisons: Comparisons,
    *,
    start: Fitted | None = None,
) -> Fitted:
    """The weights that make the comparisons most probable; `start` only saves time."""
    design = _differences(candidate.values, comparisons)
    beside = comparisons.differences(reactions.circumstances)
    width = design.shape[1]
    penalties = np.full(width + beside.shape[1], candidate.penalty)
    penalties[width:] = 1 / CIRCUMSTANCE_VARIANCE
    problem = _Problem(design, beside, comparisons.outcome, comparisons.weight, penalties)
    both = np.zeros(len(penalties))
    if start is not None:
        both = np.concatenate([start.weights, start.circumstances])
    tolerance = TOLERANCE * max(1.0, float(problem.weight.sum()))
    for _ in range(MOST_STEPS):
        chance = expit(problem.logits(both))
        slope = problem.back(problem.weight * (chance - problem.outcome)) + penalties * both
        if np.linalg.norm(slope) < tolerance:
            break
        hessian = problem.hessian(problem.weight * chance * (1 - chance))
        step, _ = cg(hessian, -slope, rtol=0.05, maxiter=100)
        before, size = problem.loss(both), 1.0
        while size > LEAST_STEP and problem.loss(both + size * step) > before:
            size /= 2
        both = both + size * step
    return Fitted(both[:width], both[width:])


def fit_with_error(reactions: Reactions, candidate: Candidate, *, start: Fitted) -> list[Fitted]:
    """A fit on all reactions, and one without each of at most `GROUPS` groups of users.

    By the differences between the latter the jackknife says how uncertain the first is.
    """
    count = min(GROUPS, len(set(reactions.users)))
    groups = folds_by_user(reactions, count)
    everything = compare(reactions, np.arange(len(reactions)))
    whole = fit(reactions, candidate, everything, start=start)
    kept = (np.flatnonzero(groups != group) for group in range(count))
    return [
        whole,
        *(fit(reactions, candidate, compare(reactions, some), start=whole) for some in kept),
    ]


def validate(reactions: Reactions, candidates: Sequence[Candidate]) -> Validated | None:
    """Choose among strengths of the same features by their log-loss on other users' new texts.

    None where there are too few users, or none of their reactions can be validated on.
    """
    if len(set(reactions.users)) < FOLDS:
        return None
    folds = folds_by_user(reactions, FOLDS)
    sides = [_sides(reactions, folds, fold) for fold in range(FOLDS)]
    judged = [compare(reactions, side[1]) for side in sides]
    if not all(len(each) for each in judged):
        return None
    fitted = [_fit_all(reactions, candidates, compare(reactions, side[0])) for side in sides]
    losses = np.array(
        [
            [_loss(reactions, *each, one) for each in zip(candidates, some, strict=True)]
            for some, one in zip(fitted, judged, strict=True)
        ]
    )
    totals = losses.sum(0)
    best = int(np.argmin(totals))
    scores, offsets = np.full(len(reactions), np.nan), np.zeros(len(reactions))
    for fold, (_, places) in enumerate(sides):
        other = int(np.argmin(totals - losses[fold]))
        one = fitted[fold][other]
        scores[places] = (candidates[other].values @ one.weights)[places]
        offsets[places] = (reactions.circumstances @ one.circumstances)[places]
    everything = compare(reactions, np.arange(len(reactions)))
    return Validated(
        chosen=candidates[best],
        reactions=reactions,
        whole=fit(reactions, candidates[best], everything, start=fitted[0][best]),
        folds=folds,
        scores=scores,
        scale=_scale(judged, scores, offsets),
    )


def curve(reactions: Reactions, candidate: Candidate, folds: Places) -> dict[int, Floats]:
    """Scores as those of `validate`, by how many reactions the models learned from (the mean).

    The models learn from an eighth, a quarter and half of the users of the other folds.
    """
    found = {}
    for share in SHARES:
        scores, learned = np.full(len(reactions), np.nan), 0
        for fold in range(FOLDS):
            places, judged = _sides(reactions, folds, fold)
            users = sorted({reactions.users[place] for place in places.tolist()})
            some = set(users[:: round(1 / share)])
            few = np.array([p for p in places.tolist() if reactions.users[p] in some], np.int64)
            learned += len(few)
            one = fit(reactions, candidate, compare(reactions, few))
            scores[judged] = (candidate.values @ one.weights)[judged]
        found[learned // FOLDS] = scores
    return found


def dense_candidates(values: Matrix) -> list[Candidate]:
    """Features with every strength, the strongest first."""
    return [Candidate(values, variance) for variance in VARIANCES]


def _sides(reactions: Reactions, folds: Places, fold: int) -> tuple[Places, Places]:
    """The reactions to learn from and those to be judged, which share no user and no text."""
    learned, judged = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
    return learned, with_new_texts(reactions, judged, learned)


def _fit_all(
    reactions: Reactions, candidates: Sequence[Candidate], comparisons: Comparisons
) -> list[Fitted]:
    """A fit of each, which starts from that of the one before."""
    fitted: list[Fitted] = []
    for candidate in candidates:
        start = fitted[-1] if fitted else None
        fitted.append(fit(reactions, candidate, comparisons, start=start))
    return fitted


def _loss(
    reactions: Reactions, candidate: Candidate, fitted: Fitted, comparisons: Comparisons
) -> float:
    scores = candidate.values @ fitted.weights + reactions.circumstances @ fitted.circumstances
    logits = comparisons.differences(np.asarray(scores, np.float64))
    losses = np.logaddexp(0, logits) - comparisons.outcome * logits
    return float(comparisons.weight @ losses)


def _scale(judged: Sequence[Comparisons], scores: Floats, offsets: Floats) -> float:
    """The factor that makes the scores the best log-odds of other users' reactions."""
    rewards = np.concatenate([each.differences(scores) for each in judged])
    beside = np.concatenate([each.differences(offsets) for each in judged])
    outcome = np.concatenate([each.outcome for each in judged])
    weight = np.concatenate([each.weight for each in judged])

    def loss(scale: float) -> float:
        logits = scale * rewards + beside
        return float(weight @ (np.logaddexp(0, logits) - outcome * logits))

    return float(minimize_scalar(loss, bounds=(0.0, 10.0), method="bounded").x)


def _differences(values: Matrix, comparisons: Comparisons) -> Matrix:
    """As `Comparisons.differences`, of a dense or a sparse matrix."""
    if not _is_sparse(values):
        return comparisons.differences(values)
    import scipy.sparse

    is_pair = scipy.sparse.diags_array((comparisons.second >= 0).astype(values.dtype))
    return values[comparisons.first] - is_pair @ values[comparisons.second]


def _is_sparse(values: Matrix) -> bool:
    import scipy.sparse

    return bool(scipy.sparse.issparse(values))
