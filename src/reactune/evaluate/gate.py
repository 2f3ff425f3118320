"""Models on held-out reactions: how likely they find liked tips, and whether they rank them first.

Validation, gate and `reactune evaluate` measure with the functions of this module. The rule that a
trained model has to pass is `examine`'s.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from reactune.config.sections import GateConfig, ServeConfig
from reactune.generation.judge import (
    JudgeReport,
    JudgeRow,
    Writer,
    contexts_of,
    judge_writers,
)
from reactune.generation.on_policy import ON_POLICY
from reactune.model.files import BaseModel
from reactune.model.logprobs import Row, best_dtype, open_model, score
from reactune.model.prompt import Chat, completion_ids, few_shot, rebuild
from reactune.progress import progress_bar
from reactune.records import Estimate, Example
from reactune.reward.model import RewardModel
from reactune.reward.quality import resampled

Floats = npt.NDArray[np.float64]
BOOTSTRAPS = 2_000
SEED = 7  # of samples and bootstraps
ENOUGH_USERS = 20  # of whom a clearly better model is passed almost always (decision 72)
FEW_USERS = (
    "{} held-out users are few to be certain of anything: a larger test part ([dataset] split) or "
    "split_by = 'time' gives more"
)
MOST_TEACHER_GAIN = 2.0
FEW_SHOT = 3  # liked tips of the same kind shown to the few-shot base model
MIN_SHARED_CONTEXTS = 50  # pairs within one context, below which pairs within one kind are taken


@dataclass(frozen=True)
class HeldOut:
    """One held-out example: its user, the group it is compared in, and the reaction."""

    user: str
    group: str
    liked: bool


@dataclass(frozen=True)
class GateRow:
    """The figures of one model; the differences are tuned minus this model.

    `gain_difference` sets the tuned model's accuracy by gain against this one's by mean.
    `preferred` is how often a liked tip gained more in log-probability over this model than a
    disliked one: 0.5 where the tuned model writes both more often alike.
    """

    model: str
    loss: Estimate
    accuracy: Estimate
    loss_difference: Estimate | None = None
    accuracy_difference: Estimate | None = None
    gain_difference: Estimate | None = None
    gain_accuracy: Estimate | None = None
    preferred: Estimate | None = None


@dataclass(frozen=True)
class Generator:
    """The generator that a run releases: what it tuned, or, with a new reward, an earlier one.

    `version` is the champion's, `run_id` the run that trained it.
    """

    name: Literal["tuned", "champion", "base"]
    run_id: str
    version: int | None = None

    def __str__(self) -> str:
        """As the summary of a stage names it."""
        return f"{self.name} (version {self.version})" if self.version else self.name


@dataclass(frozen=True)
class GateReport:
    """The table, and why the tuned model may not be released (nothing: it may)."""

    rows: tuple[GateRow, ...]
    pairs: int
    examples: int
    refusals: tuple[str, ...]
    judged: JudgeReport | None = None
    """What a judge of other people says; None: they are too few, or there is no reward."""
    users: int = 0
    """Held-out users, whose number decides how wide the intervals are; 0: not counted."""


def gate_report(
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    train: Sequence[Example],
    adapters: Mapping[str, Path],
    settings: GateConfig,
) -> GateReport:
    """Base, few-shot base and each of `adapters` ("tuned" is one of them) on the same examples.

    By likelihood alone; `with_judge` adds what a judge says.
    """
    rows, kinds = rows_of(chat, examples), [example.kind for example in examples]
    shots = few_shot_rows(chat, examples, train)
    plain, prompted = score_rows(base, None, [rows, shots], name="base", kinds=kinds)
    scores = {"base": plain, "few-shot": prompted}
    for name, adapter in adapters.items():
        (scores[name],) = score_rows(base, adapter, [rows], name=name, kinds=kinds)
    return examine(held_out(examples), scores, settings=settings)


def ask_judge(
    base: BaseModel,
    chat: Chat,
    judges: Sequence[Example],
    train: Sequence[Example],
    adapters: Mapping[str, Path],
    reward: RewardModel,
    *,
    serve: ServeConfig,
    settings: GateConfig,
) -> JudgeReport | None:
    """The tuned model beside base, few-shot base and champion, by reactions that trained none."""
    contexts = contexts_of(judges)
    shots = [prompt for prompt, _ in few_shot_rows(chat, contexts, train)]
    others = [Writer(name, adapter) for name, adapter in adapters.items() if name != "tuned"]
    writers = [
        Writer("tuned", adapters["tuned"]),
        Writer("base"),
        Writer("few-shot", prompts=shots),
        *others,
    ]
    # Two ways lead through the gate: each has half of alpha.
    return judge_writers(base, chat, judges, writers, reward, serve, alpha=settings.alpha / 2)


def validation_reports(
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    adapters: Mapping[str, Path],
    settings: GateConfig,
) -> dict[str, GateReport]:
    """Each method's adapter beside the base on the validation part."""
    rows, kinds = rows_of(chat, examples), [example.kind for example in examples]
    (plain,) = score_rows(base, None, [rows], name="base", kinds=kinds)
    reports = {}
    for method, adapter in adapters.items():
        (tuned,) = score_rows(base, adapter, [rows], name=method, kinds=kinds)
        reports[method] = examine(
            held_out(examples), {"base": plain, "tuned": tuned}, settings=settings
        )
    return reports


def best_method(reports: Mapping[str, GateReport], settings: GateConfig) -> str:
    """The method to keep after validation, by the gate's own rule.

    Of methods that certainly rank better than the base the one that ranks best, by mean
    log-probability or by gain; where none does, of those that certainly fit better the one with
    the lowest loss: a ranking that so few users do not distinguish from the base's is chance.
    A training on own tips built on another method, and is kept unless it ranks worse by gain than
    the base by mean log-probability. Its loss says little, since it moves away from how the base
    writes; what it gains lies in what it writes, which the judge sees.
    """
    if ON_POLICY in reports and differences(_row_of(reports[ON_POLICY], "base"))[2].value >= 0:
        return ON_POLICY

    def rank(method: str) -> tuple[int, float, float]:
        base, tuned = (_row_of(reports[method], model) for model in ("base", "tuned"))
        gain = tuned.gain_accuracy.value if tuned.gain_accuracy else 0.0
        accuracy, fit = max(tuned.accuracy.value, gain), -tuned.loss.value
        if ranks_better(base, settings):
            return 2, accuracy, fit
        return (1, fit, accuracy) if fits_better(base, settings) else (0, accuracy, fit)

    return max(reports, key=rank)


def _row_of(report: GateReport, model: str) -> GateRow:
    return next(row for row in report.rows if row.model == model)


def sample(examples: Sequence[Example], *, limit: int) -> list[Example]:
    """At most `limit` examples, as many of each label as there are, in the order of tip_id."""
    ordered = sorted(examples, key=lambda example: example.tip_id)
    random.Random(SEED).shuffle(ordered)
    liked = [example for example in ordered if example.label]
    disliked = [example for example in ordered if not example.label]
    half = max(limit // 2, limit - len(disliked) if len(disliked) < limit // 2 else limit // 2)
    chosen = liked[:half] + disliked[: limit - min(half, len(liked))]
    return sorted(chosen, key=lambda example: example.tip_id)


def held_out(examples: Sequence[Example]) -> list[HeldOut]:
    """The examples as the gate compares them: within one context where that gives enough pairs."""
    contexts: dict[tuple[str, str], list[int]] = {}
    for example in examples:
        counts = contexts.setdefault((example.kind, example.context_json), [0, 0])
        counts[example.label] += 1
    shared = sum(liked * disliked for disliked, liked in contexts.values())
    by_context = shared >= MIN_SHARED_CONTEXTS
    return [
        HeldOut(
            user=example.user_key,
            group=f"{example.kind} {example.context_json}" if by_context else example.kind,
            liked=example.label,
        )
        for example in examples
    ]


def rows_of(chat: Chat, examples: Sequence[Example]) -> list[Row]:
    """Token ids of prompt and tip, as in serving."""
    return [
        (rebuild(chat, e.kind, e.context_json).token_ids, completion_ids(chat, e.tip))
        for e in examples
    ]


def few_shot_rows(chat: Chat, examples: Sequence[Example], train: Sequence[Example]) -> list[Row]:
    """As `rows_of`, after earlier turns with liked tips of the same kind from the training part."""
    shots: dict[str, list[tuple[str, str]]] = {}
    for kind in {example.kind for example in examples}:
        liked = sorted((e for e in train if e.label and e.kind == kind), key=lambda e: e.tip_id)
        chosen = random.Random(SEED).sample(liked, min(FEW_SHOT, len(liked)))
        shots[kind] = [(e.context_json, e.tip) for e in chosen]
    return [
        (
            few_shot(chat, rebuild(chat, e.kind, e.context_json), shots[e.kind]),
            completion_ids(chat, e.tip),
        )
        for e in examples
    ]


def score_rows(
    base: BaseModel,
    adapter: Path | None,
    rows: Sequence[Sequence[Row]],
    *,
    name: str,
    kinds: Sequence[str],
) -> list[list[Floats]]:
    """Token log-probabilities of several lists of rows under one model, opened once."""
    results = []
    with open_model(base.folder, adapter, dtype=best_dtype()) as model:
        for one in rows:
            scores: list[Floats] = [np.empty(0)] * len(one)
            with progress_bar(f"score {name}", total=len(one), unit="tip") as bar:
                for places in places_with_one_prefix(one, kinds):
                    part = score(model, [one[i] for i in places], progress=bar.update)
                    for place, values in zip(places, part, strict=True):
                        scores[place] = values
            results.append(scores)
    return results


def places_with_one_prefix(rows: Sequence[Row], kinds: Sequence[str]) -> list[list[int]]:
    """Rows to be scored together: those of one prompt if prompts repeat, else those of one kind.

    Their common prefix is then computed once.
    """
    prompts = [tuple(prompt) for prompt, _ in rows]
    keys: Sequence[object] = prompts if 2 * len(set(prompts)) <= len(rows) else kinds
    groups: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def examine(
    examples: Sequence[HeldOut],
    scores: Mapping[str, Sequence[Floats]],
    *,
    settings: GateConfig,
) -> GateReport:
    """Compare `scores["tuned"]` with every other model's on the same held-out examples.

    `scores` maps a model's name to each example's token log-probabilities. Loss is the mean
    negative log-probability per token of liked tips. Accuracy is how often a liked tip is ranked
    above a disliked one of the same group, by mean log-probability (for the tuned model also by
    the log-probability gained over "base"). Intervals hold the variance of resampled users (both
    tips of a pair), of whom there may be few; where there is one, examples are resampled.

    The rule, against every other model: the tuned one either ranks certainly better (by mean
    log-probability or by gain; the interval of the difference, at half of alpha for each of the
    two, is above zero) with a loss at most `max_loss_rise` higher; or it has a certainly lower
    loss, ranks at most `tolerance` worse, and what it gained certainly went to liked tips
    (`preferred`, at half of alpha): any training on an app's own tips lowers their loss, also on
    reactions that say nothing. Training on preferences raises the loss a little (it moves away
    from what people dislike), so a small rise is no fault.
    """
    means = {name: np.array([s.mean() for s in values]) for name, values in scores.items()}
    clusters = _clusters(examples)
    weights, count = cluster_weights(clusters), len(set(clusters))
    of_loss = partial(resampled, clusters=count)
    of_share = partial(resampled, clusters=count, bounds=(0.0, 1.0))
    of_difference = partial(resampled, clusters=count, bounds=(-1.0, 1.0), alpha=settings.alpha / 2)
    losses = {name: _losses(examples, values, weights) for name, values in scores.items()}
    accuracies = {name: _accuracies(examples, values, weights) for name, values in means.items()}
    totals = {name: np.array([s.sum() for s in values]) for name, values in scores.items()}
    gains = {
        name: _accuracies(examples, totals["tuned"] - totals[name], weights)
        for name in scores
        if name != "tuned"
    }

    rows, alpha = [], settings.alpha
    for name in scores:
        loss, accuracy = of_loss(losses[name], alpha=alpha), of_share(accuracies[name], alpha=alpha)
        if name == "tuned":
            gain = of_share(gains["base"], alpha=alpha)
            rows.append(GateRow(name, loss, accuracy, gain_accuracy=gain))
            continue
        rows.append(
            GateRow(
                model=name,
                loss=loss,
                accuracy=accuracy,
                loss_difference=of_loss(losses["tuned"] - losses[name], alpha=alpha),
                accuracy_difference=of_difference(accuracies["tuned"] - accuracies[name]),
                gain_difference=of_difference(gains["base"] - accuracies[name]),
                preferred=of_share(gains[name], alpha=alpha / 2),
            )
        )
    users = len({example.user for example in examples})
    refusals = with_advice([refusal(row, settings) for row in rows], users)
    return GateReport(tuple(rows), count_pairs(examples), len(examples), refusals, users=users)


def with_judge(report: GateReport, judged: JudgeReport | None, settings: GateConfig) -> GateReport:
    """The report with what the judge says, and the refusals of both.

    The tuned model may be better by likelihood or by the judge, who sees what it writes. It is
    refused where the judge certainly finds another model's tips better, and where its teacher sees
    more than `MOST_TEACHER_GAIN` times the gain that the judge can see: such a generator has
    learned what the reward is wrong about (arXiv:2210.10760).
    """
    if judged is None:
        return report
    by_model = {row.model: row for row in judged.rows}
    refusals = []
    for row in report.rows:
        of_judge = by_model.get(row.model)
        if of_judge is None or not is_preferred(of_judge):
            refusals.append(refusal(row, settings))
        if of_judge is not None:
            refusals.append(veto(of_judge))
    return replace(report, refusals=with_advice(refusals, report.users), judged=judged)


def with_advice(refusals: Sequence[str], users: int) -> tuple[str, ...]:
    """The refusals that are not empty; of few held-out users they end with how to get more."""
    given = tuple(filter(None, refusals))
    is_few = 0 < users < ENOUGH_USERS
    return (*given, FEW_USERS.format(users)) if given and is_few else given


def judge_line(report: GateReport) -> str:
    """What the judge says, in one line."""
    if report.judged is None:
        return "no judge"
    rows = (f"{row.model} {row.beside.win_rate}" for row in report.judged.rows)
    return f"win rate of its tips by a judge over {', '.join(rows)}"


def is_preferred(row: JudgeRow) -> bool:
    """Whether the judge certainly finds the tuned model's tips better than this one's."""
    return row.beside.win_rate.low > 0.5 and row.beside.gain.low > 0


def veto(row: JudgeRow) -> str:
    """Why the judge refuses the tuned model, or nothing."""
    if row.beside.win_rate.high < 0.5 and row.beside.gain.high < 0:
        return f"people who trained neither find its tips worse than {row.model}'s: {row.beside}"
    seen = row.beside.gain
    if row.teacher_gain > MOST_TEACHER_GAIN * max(seen.high, 0.0):
        return (
            f"over-optimised: beside {row.model} the reward model sees a gain of "
            f"{row.teacher_gain:.3f}, other people's rewards one of {seen}"
        )
    return ""


def refusal(row: GateRow, settings: GateConfig) -> str:
    """Why the tuned model does not beat this one, or nothing."""
    if row.model == "tuned" or ranks_better(row, settings):
        return ""
    if fits_better(row, settings) and (gains_liked(row) or not settings.lower_loss_needs_gain):
        return ""
    return (
        f"not certainly better than {row.model}: preference accuracy {row.accuracy_difference} "
        f"by mean log-probability, {row.gain_difference} by gain; loss {row.loss_difference}; "
        f"liked tips gained more in {row.preferred} of pairs"
    )


def ranks_better(row: GateRow, settings: GateConfig) -> bool:
    """Whether the tuned model certainly ranks better, and its loss is not much higher."""
    loss, by_mean, by_gain = differences(row)
    return max(by_mean.low, by_gain.low) > 0 and loss.value <= settings.max_loss_rise


def fits_better(row: GateRow, settings: GateConfig) -> bool:
    """Whether the tuned model's loss is certainly lower, and it does not rank much worse."""
    loss, by_mean, _ = differences(row)
    return loss.high < 0 and by_mean.value >= -settings.tolerance


def gains_liked(row: GateRow) -> bool:
    """Whether liked tips certainly gained more over this model than disliked ones."""
    assert row.preferred is not None, row.model
    return row.preferred.low > 0.5


def differences(row: GateRow) -> tuple[Estimate, Estimate, Estimate]:
    """Tuned minus this model: loss, accuracy by mean log-probability, accuracy by gain."""
    loss, by_mean, by_gain = row.loss_difference, row.accuracy_difference, row.gain_difference
    assert loss is not None, row.model
    assert by_mean is not None, row.model
    assert by_gain is not None, row.model
    return loss, by_mean, by_gain


def count_pairs(examples: Sequence[HeldOut]) -> int:
    """How many liked-disliked pairs share a group."""
    return sum(len(liked) * len(disliked) for liked, disliked in groups_of(examples))


def groups_of(examples: Sequence[HeldOut]) -> list[tuple[list[int], list[int]]]:
    """Indices of liked and disliked examples, for every group that has both."""
    groups: dict[str, tuple[list[int], list[int]]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.group, ([], []))[0 if example.liked else 1].append(index)
    return [(liked, disliked) for liked, disliked in groups.values() if liked and disliked]


def _losses(examples: Sequence[HeldOut], scores: Sequence[Floats], weights: Floats) -> Floats:
    liked = [i for i, example in enumerate(examples) if example.liked]
    totals = np.array([-scores[i].sum() for i in liked])
    tokens = np.array([float(len(scores[i])) for i in liked])
    return _ratio(weights[:, liked] @ totals, weights[:, liked] @ tokens)


def _accuracies(examples: Sequence[HeldOut], values: Floats, weights: Floats) -> Floats:
    won = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for liked, disliked in groups_of(examples):
        table = preference_accuracy(values[liked], values[disliked])
        won += np.einsum(
            "bi,ij,bj->b", weights[:, liked], table, weights[:, disliked], optimize=True
        )
        pairs += weights[:, liked].sum(1) * weights[:, disliked].sum(1)
    return _ratio(won, pairs)


def preference_accuracy(liked: Floats, disliked: Floats) -> Floats:
    """For each pair 1 where the liked tip scores higher, 0.5 for a tie; shape (liked, disliked)."""
    difference = liked[:, None] - disliked[None, :]
    return np.where(difference == 0, 0.5, (difference > 0).astype(np.float64))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The ratio; a resample without any case takes the value of all examples."""
    whole = numerator[0] / denominator[0]
    return np.divide(
        numerator, denominator, out=np.full_like(numerator, whole), where=denominator > 0
    )


def _clusters(examples: Sequence[HeldOut]) -> list[str]:
    """The users; where there is one alone, each example is a cluster of its own."""
    users = [example.user for example in examples]
    return users if len(set(users)) > 1 else [str(place) for place in range(len(examples))]


def cluster_weights(clusters: Sequence[str]) -> Floats:
    """Bootstrap weights by cluster, shape (1 + BOOTSTRAPS, items); the first row is all ones."""
    names, index = np.unique(np.array(clusters), return_inverse=True)
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS)
    return np.vstack([np.ones(len(clusters)), drawn[:, index].astype(float)])
