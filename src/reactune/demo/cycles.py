"""The demo's report: what was served and decided, told on one page with pictures.

Reads what the loop left behind; what a policy is worth is `policies.py`'s.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from reactune import deployment
from reactune.canary.compare import bounds_over_time
from reactune.canary.outcomes import Outcomes, read_outcomes
from reactune.config.settings import Config
from reactune.demo.audience import (
    Audience,
    Earned,
    Shown,
    Visit,
    earned,
    most_popular_tip,
    shortest_tip,
)
from reactune.pages import plots
from reactune.pages.report import Page, Section, write_report
from reactune.records import Rollout
from reactune.runs.manifest import manifests
from reactune.store.database import reading
from reactune.store.schema import tip_scores
from reactune.tracking import gate_table

TIPS_SHOWN = 5
RATE_BATCHES = 60


@dataclass(frozen=True)
class Told:
    """What the story hands over of one cycle: the run, the rollout it led to, and how it ended.

    `before` holds visits with the base model's tips, `after` the same with the
    challenger's; `past` is all that was shown before training. Both times are in seconds.
    """

    run: Path
    rollout: Rollout | None
    verdict: str
    before: Sequence[tuple[Visit, str]]
    after: Sequence[tuple[Visit, str]]
    past: Sequence[Shown]
    before_trial: float
    trial: float


def tell(
    config: Config, cycles: Sequence[Told], audience: Callable[[], Audience], *, now: datetime
) -> Path:
    """Write `report.html` into the demo's folder. `audience` makes people who remember nothing."""
    last = cycles[-1]
    sections: list[Section] = []
    figures: dict[str, str] = {}
    if last.rollout is not None:
        outcomes = _outcomes(config, last.rollout, now)
        figures |= _rates(outcomes)
        sections.append(_reactions(config, last.rollout, outcomes))
    if last.after:
        values = policy_values(last, audience, config)
        figures["tips that the challenger wrote"] = f"{len(last.after):,}"
        sections.append(_policies(values))
        sections.append(_five_tips(last))
    sections += _training(last.run)
    sections.append(_time(last))
    if len(cycles) > 1:
        sections.insert(0, _rounds(cycles))
    file = config.folder / "report.html"
    write_report(Page("reactune demo", last.verdict, figures, sections), file)
    return file


def policy_values(
    told: Told, audience: Callable[[], Audience], config: Config
) -> dict[str, Earned]:
    """What challenger, base model and two trivial policies earn on the challenger's visits."""
    visits = [visit for visit, _ in told.after]
    shortest, popular = shortest_tip(told.past), most_popular_tip(told.past)
    shown = {
        "challenger": told.after,
        "the base model": told.before,
        "the shortest tip": [(visit, shortest(visit)) for visit in visits],
        "the most popular tip": [(visit, popular(visit)) for visit in visits],
    }
    return {name: earned(audience(), tips, labels=config.labels) for name, tips in shown.items()}


def _outcomes(config: Config, rollout: Rollout, now: datetime) -> Outcomes:
    with deployment.database(config) as engine, reading(engine) as connection:
        return read_outcomes(
            connection,
            rollout.rollout_id,
            labels=config.labels,
            settings=config.canary,
            now=now,
        )


def _rates(outcomes: Outcomes) -> dict[str, str]:
    figures = {}
    for name, chosen in (("champion", ~outcomes.challenger), ("challenger", outcomes.challenger)):
        tips = int(outcomes.tips[chosen].sum())
        rate = outcomes.positives[chosen].sum() / max(tips, 1)
        figures[f"done after 15 s to 2 min: {name}, {tips:,} tips"] = f"{rate:.1%}"
    return figures


def _reactions(config: Config, rollout: Rollout, outcomes: Outcomes) -> Section:
    path = bounds_over_time(outcomes, settings=config.canary, planned_units=rollout.planned_units)
    effect = path.effect
    known = len(effect.estimate)
    units = [(place + 1) * len(outcomes.tips) / max(known, 1) for place in range(known)]
    picture = plots.bounds(
        units,
        effect.estimate.tolist(),
        effect.low.tolist(),
        effect.high.tolist(),
        share_steps=_steps(outcomes),
    )
    return Section(
        title="Reactions by arm",
        text="Challenger minus champion, in positives per shown tip, with bounds that hold at "
        "every look. A unit is one person on one day. Dotted lines: the challenger's share grew.",
        pictures=(picture, plots.arms(_by_arm(outcomes))),
    )


def _steps(outcomes: Outcomes) -> list[tuple[float, float]]:
    """Where the share first took each of its values."""
    seen: dict[float, float] = {}
    for place, share in enumerate(outcomes.share.tolist()):
        seen.setdefault(share, float(place))
    return [(place, share) for share, place in seen.items()]


def _by_arm(outcomes: Outcomes) -> dict[str, list[tuple[float, float]]]:
    """Each arm's rate so far, as (units seen, positives per tip)."""
    curves: dict[str, list[tuple[float, float]]] = {"champion": [], "challenger": []}
    length = len(outcomes.tips)
    for end in range(max(1, length // RATE_BATCHES), length + 1, max(1, length // RATE_BATCHES)):
        arm = outcomes.challenger[:end]
        for name, chosen in (("champion", ~arm), ("challenger", arm)):
            tips = outcomes.tips[:end][chosen].sum()
            if tips:
                rate = float(outcomes.positives[:end][chosen].sum() / tips)
                curves[name].append((float(end), rate))
    return curves


def _policies(values: Mapping[str, Earned]) -> Section:
    return Section(
        title="What others would have earned",
        text="The expected share of positives on the same visits, as the audience itself states "
        "it, without the noise of reactions. Whoever cannot beat a tip that is always the same has "
        "learnt nothing.",
        pictures=(
            plots.bars("expected positives per tip", {n: v.reward for n, v in values.items()}),
        ),
        head=("policy", "positives per tip", "quick dismissals per tip", "tips"),
        rows=tuple(
            (n, f"{v.reward:.1%}", f"{v.harm:.1%}", f"{v.tips:,}") for n, v in values.items()
        ),
    )


def _five_tips(told: Told) -> Section:
    pairs = list(zip(told.before, told.after, strict=True))
    step = max(1, len(pairs) // TIPS_SHOWN)
    return Section(
        title="Five tips, before and after",
        text="Base model and challenger on the same visits, taken at even distances, not chosen.",
        head=("kind and context", "base model", "challenger"),
        rows=tuple(
            (f"{visit.kind}: {_context(visit)}", before, after)
            for (_, before), (visit, after) in pairs[::step][:TIPS_SHOWN]
        ),
    )


def _context(visit: Visit) -> str:
    return "; ".join(
        ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in visit.context.items()
        if key in ("time_of_day", "open_tasks")
    )


def _training(run: Path) -> list[Section]:
    sections = []
    loss, gate = run / "train" / "loss.svg", run / "evaluate" / "gate.json"
    if loss.is_file():
        summary = manifests(run)["train"].summary
        sections.append(Section("Training", summary, pictures=(loss.read_text(encoding="utf-8"),)))
    if gate.is_file():
        table = json.loads(gate.read_text(encoding="utf-8"))
        sections.append(
            Section(
                title="Gate",
                text="Held-out users; 95 % intervals. Loss is per token of liked tips; preference "
                "accuracy is how often a liked tip ranks above a disliked one of the same kind.",
                pictures=((run / "evaluate" / "gate.svg").read_text(encoding="utf-8"),),
                head=("model", "loss", "preference accuracy", "by gain over the base"),
                rows=tuple(gate_table(table)),
            )
        )
    return sections


def _time(told: Told) -> Section:
    stages = {f"stage {name}": m.seconds for name, m in manifests(told.run).items()}
    seconds = {
        "people react to the champion": max(0.0, told.before_trial - sum(stages.values())),
        **stages,
        "people react to both": told.trial,
    }
    return Section(
        title="Where the time went",
        text="Of this round, on this machine.",
        pictures=(plots.bars("minutes", {name: s / 60 for name, s in seconds.items()}),),
        head=("step", "seconds"),
        rows=tuple((name, f"{value:,.0f}") for name, value in seconds.items()),
    )


def _rounds(cycles: Sequence[Told]) -> Section:
    return Section(
        title="Rounds of the loop",
        text="Each trains on what all before it earned; the sections below are about the last.",
        head=("round", "run", "how it ended"),
        rows=tuple((str(n), told.run.name, told.verdict) for n, told in enumerate(cycles, 1)),
    )


def arms_of(config: Config, rollout: Rollout) -> dict[str, tuple[str, str | None]]:
    """For every tip of a rollout its arm and why another model answered, if one did."""
    columns = (tip_scores.c.tip_id, tip_scores.c.arm, tip_scores.c.fallback)
    query = sa.select(*columns).where(tip_scores.c.rollout_id == rollout.rollout_id)
    with deployment.database(config) as engine, reading(engine) as connection:
        return {row.tip_id: (row.arm, row.fallback) for row in connection.execute(query)}
