"""How much a ranking is worth: preference accuracy on other people, with an honest interval.

Beside the reward stand rankings that cost nothing: TF-IDF, and the longer tip.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from reactune.records import Estimate, plain_words
from reactune.reward.comparisons import Floats, Places, Reactions
from reactune.reward.fit import FOLDS, Candidate

ALPHA = 0.05
ROUNDING = 1e-15  # variance of resamples that are all alike
LEAST_GAIN = 0.01  # in accuracy, by twice as many reactions: below it, the curve is flat
MIN_SHARED_CONTEXTS = 50  # pairs within one context, below which pairs within one kind are taken
MIN_USERS_OF_WORD = 5  # who share a word or pair of words that TF-IDF counts
TFIDF_VARIANCES = (0.3, 1.0, 3.0, 10.0)
# Models of different folds learned from the same people, so their errors are not independent: the
# variance of a mean over folds grows by 1 + (size judged / size learned) x folds (Nadeau and
# Bengio, Machine Learning 52, 2003).
VARIANCE_OF_FOLDS = 1 + FOLDS / (FOLDS - 1)
IMPERATIVES = """
add ask avoid break breathe bring build buy call check choose clean close come consider
cook create do don't drink drop eat end enjoy find finish focus follow get give go have
help join keep know learn leave let limit list listen look make meet move open organize
pack pause pick plan play prepare put read remember rest review run save schedule see
send set share show sit sleep spend stand start stay step stop stretch switch take talk
tell think tidy treat try turn use visit wait walk watch write
"""
OPENINGS = frozenset(IMPERATIVES.split())


@dataclass(frozen=True)
class Accuracy:
    """How often the liked of two tips is ranked above the other, and on how many pairs."""

    estimate: Estimate
    pairs: int

    @property
    def is_above_chance(self) -> bool:
        """Whether that is certain."""
        return self.estimate.low > 0.5

    def __str__(self) -> str:
        return f"{self.estimate} on {self.pairs:,} pairs"


def interval(
    value: float, variance: float, *, clusters: int, independent: float, alpha: float = ALPHA
) -> Estimate:
    """A share with its interval after Korn and Graubard (Survey Methodology 24, 1998, 193-201).

    Clopper and Pearson's exact interval at the number of independent observations that would have
    the cluster-robust `variance`, which is smaller where few clusters make the variance uncertain.
    Without variance (all observations agree) it is `independent`; so its width is never zero.
    """
    count = independent
    if variance > 0 and clusters > 1:
        count = value * (1 - value) / variance
        known = stats.t.ppf(1 - alpha / 2, max(count, 1.0))
        count *= min(1.0, float(known / stats.t.ppf(1 - alpha / 2, clusters - 1)) ** 2)
    won, lost = value * count, (1 - value) * count
    low = stats.beta.ppf(alpha / 2, won, lost + 1) if won > 0 else 0.0
    high = stats.beta.ppf(1 - alpha / 2, won + 1, lost) if lost > 0 else 1.0
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def resampled(
    values: Floats,
    *,
    clusters: int,
    alpha: float = ALPHA,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The first value, with an interval by the variance of the others, those of resamples.

    Quantiles of resamples are too narrow where few clusters were drawn from: with two users, a
    model that is no better passed the gate in three cases of ten (decision 72). What lies within
    `bounds` has the `interval` of a share, anything else Student's, both with one degree of freedom
    less than there are clusters. Values that are NaN do not count.
    """
    value, freedom = float(values[0]), max(1, clusters - 1)
    variance = float(np.nanvar(values[1:])) * clusters / freedom
    if bounds is not None:
        low, width = bounds[0], bounds[1] - bounds[0]
        share = interval(
            (value - low) / width,
            variance / width**2 if variance > ROUNDING else 0.0,
            clusters=clusters,
            independent=clusters,
            alpha=alpha,
        )
        return Estimate(value, low + width * share.low, low + width * share.high)
    margin = float(stats.t.ppf(1 - alpha / 2, freedom)) * variance**0.5
    return Estimate(value, value - margin, value + margin)


def share_won(wins: Floats, clusters: Sequence[Hashable], *, alpha: float = ALPHA) -> Estimate:
    """The mean of wins (1, 0.5 for a tie, 0) that depend on each other within a cluster.

    Where all are of one cluster, each counts as a cluster of its own.
    """
    names = list(clusters) if len(set(clusters)) > 1 else list(range(len(wins)))
    value = float(wins.mean())
    sums: dict[Hashable, float] = defaultdict(float)
    for name, win in zip(names, wins.tolist(), strict=True):
        sums[name] += win - value
    return interval(
        value,
        _variance(np.array(list(sums.values())), len(wins)),
        clusters=len(sums),
        independent=len(sums),
        alpha=alpha,
    )


def accuracy(
    scores: Floats,
    liked: npt.NDArray[np.bool_],
    groups: Sequence[str],
    users: Sequence[str],
    *,
    inflation: float = 1.0,
) -> Accuracy | None:
    """How often a liked tip scores above a disliked one of the same group; half of the ties.

    None where no group has both. The variance is that of users (both users of a pair), times
    `inflation`.
    """
    names, user = np.unique(np.array(users), return_inverse=True)
    touched = np.zeros((len(names), 2))  # wins and pairs of each user, as one of the two
    sides: tuple[set[int], set[int]] = (set(), set())
    won = pairs = 0.0
    for places in _places(groups, liked):
        above, below = _beaten(scores, places, liked)
        for one, counts in ((True, above), (False, below)):
            mine, other = places[liked[places] == one], places[liked[places] != one]
            np.add.at(touched, user[mine], np.stack([counts, np.full(len(mine), len(other))], 1))
            sides[0 if one else 1].update(user[mine].tolist())
        won, pairs = won + above.sum(), pairs + len(above) * len(below)
        _subtract_own(touched, scores, places, liked, user)
    if not pairs:
        return None
    value = won / pairs
    is_in = touched[:, 1] > 0
    influences = touched[is_in, 0] - value * touched[is_in, 1]
    estimate = interval(
        float(value),
        inflation * _variance(influences, pairs),
        clusters=int(is_in.sum()),
        independent=min(map(len, sides)) / inflation,
    )
    return Accuracy(estimate, round(pairs))


def accuracy_of_folds(
    reactions: Reactions, scores: Floats, folds: Places, *, is_fitted: bool = True
) -> Accuracy | None:
    """Accuracy of scores by several models: tips of one context or kind, and of one fold.

    Scores that are NaN do not count. `is_fitted`: the scores are of models that learned from the
    other folds, rather than of one rule for all.
    """
    known = np.flatnonzero(~np.isnan(scores))
    _, groups = groups_of(reactions, folds)
    return accuracy(
        scores[known],
        reactions.liked[known],
        [groups[place] for place in known.tolist()],
        [reactions.users[place] for place in known.tolist()],
        inflation=VARIANCE_OF_FOLDS if is_fitted else 1.0,
    )


def groups_of(reactions: Reactions, folds: Places) -> tuple[str, list[str]]:
    """Whether tips of a fold are compared within one `context` or one `kind`, and each one's group.

    Within contexts, unless they give too few pairs.
    """
    contexts = [f"{f} {c}" for f, c in zip(folds, reactions.contexts, strict=True)]
    labels: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for context, liked in zip(contexts, reactions.liked.tolist(), strict=True):
        labels[context][liked] += 1
    if sum(disliked * liked for disliked, liked in labels.values()) >= MIN_SHARED_CONTEXTS:
        return "context", contexts
    return "kind", [f"{f} {kind}" for f, kind in zip(folds, reactions.kinds, strict=True)]


def tfidf(reactions: Reactions) -> sparse.csr_array | None:
    """TF-IDF of words and pairs of words, rows of length 1; None if no two words are shared.

    Counted are those that `MIN_USERS_OF_WORD` users share.
    """
    terms = [_terms(text) for text in reactions.texts]
    users: dict[str, set[str]] = defaultdict(set)
    for some, user in zip(terms, reactions.users, strict=True):
        for term in some:
            users[term].add(user)
    kept = sorted(term for term, who in users.items() if len(who) >= MIN_USERS_OF_WORD)
    if not kept:
        return None
    column = {term: place for place, term in enumerate(kept)}
    known = [{t: n for t, n in some.items() if t in column} for some in terms]
    documents = Counter(term for some in known for term in some)
    rows, columns, values = [], [], []
    for row, counts in enumerate(known):
        weights = {
            term: (1 + np.log(n)) * (1 + np.log((1 + len(known)) / (1 + documents[term])))
            for term, n in counts.items()
        }
        length = np.sqrt(sum(w * w for w in weights.values()))
        for term, weight in weights.items():
            rows.append(row)
            columns.append(column[term])
            values.append(weight / length)
    shape = (len(known), len(kept))
    return sparse.csr_array((values, (rows, columns)), shape=shape, dtype=np.float64)


def tfidf_candidates(matrix: sparse.csr_array) -> list[Candidate]:
    """TF-IDF with every strength, the strongest first."""
    return [Candidate(matrix, variance) for variance in TFIDF_VARIANCES]


def lengths(reactions: Reactions) -> Floats:
    """The words of each tip."""
    return np.array([float(len(text.split())) for text in reactions.texts])


def correlates(reactions: Reactions, scores: Floats) -> dict[str, float]:
    """Spearman's rank correlation of the scores with what people can see in a tip."""
    openings = [plain_words(each.tip).split()[:1] for each in reactions.examples]
    seen = {
        "length in words": lengths(reactions),
        "holds a number": np.array(
            [float(bool(re.search(r"\d", e.tip))) for e in reactions.examples]
        ),
        "opens with an imperative": np.array(
            [float(bool(OPENINGS.intersection(some))) for some in openings]
        ),
        "asks a question": np.array([float("?" in each.tip) for each in reactions.examples]),
    }
    known = ~np.isnan(scores)
    return {
        name: float(stats.spearmanr(values[known], scores[known]).statistic)
        for name, values in seen.items()
        if len(set(values[known].tolist())) > 1 and len(set(scores[known].tolist())) > 1
    }


def _variance(influences: Floats, count: float) -> float:
    """Of a mean of `count`, from the sums of deviations of its clusters."""
    clusters = len(influences)
    if clusters < 2:
        return 0.0
    return float(np.square(influences).sum()) / count**2 * clusters / (clusters - 1)


def _places(
    groups: Sequence[Hashable], liked: npt.NDArray[np.bool_]
) -> list[npt.NDArray[np.int64]]:
    """The places of each group that has both labels."""
    by_group: dict[Hashable, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        by_group[group].append(place)
    some = (np.array(places, np.int64) for places in by_group.values())
    return [places for places in some if liked[places].any() and not liked[places].all()]


def _beaten(
    scores: Floats, places: npt.NDArray[np.int64], liked: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Pairs won by each liked place, and by those each disliked place meets; half of the ties."""
    good, bad = scores[places[liked[places]]], scores[places[~liked[places]]]
    ordered_good, ordered_bad = np.sort(good), np.sort(bad)
    above = (np.searchsorted(ordered_bad, good) + np.searchsorted(ordered_bad, good, "right")) / 2
    met = (np.searchsorted(ordered_good, bad) + np.searchsorted(ordered_good, bad, "right")) / 2
    return above, len(good) - met


def _subtract_own(
    touched: Floats,
    scores: Floats,
    places: npt.NDArray[np.int64],
    liked: npt.NDArray[np.bool_],
    user: npt.NDArray[np.int64],
) -> None:
    """Count the pairs of which both tips are one user's once, not twice."""
    for mine in _places(user[places].tolist(), liked[places]):
        own = places[mine]
        above, below = _beaten(scores, own, liked)
        touched[user[own[0]]] -= (above.sum(), len(above) * len(below))


def _terms(text: str) -> Counter[str]:
    words = text.split()
    return Counter([*words, *map(" ".join, pairwise(words))])
