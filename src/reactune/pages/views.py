"""From facts to what each page shows: sections with figures, pictures and tables."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from itertools import pairwise
from math import exp, isfinite, log
from typing import Any

import sqlalchemy as sa

from reactune.canary.compare import Comparison
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.config.settings import Config, described, without_passwords
from reactune.pages import pictures
from reactune.pages.facts import ErasureFacts, PrivacyFacts, Progress, RunFacts, Trial
from reactune.pages.tables import (
    NONE,
    Figure,
    Link,
    Mark,
    Picture,
    Section,
    Table,
    Tone,
    moment,
    percent,
    plural,
    points,
    short,
)
from reactune.records import ModelVersion
from reactune.service.api_keys import ApiKey
from reactune.store.summaries import DWELL_EDGES_MS, DayCounts, Summary

OUTCOMES = {"done": "done", "dismiss": "dismissed", "snooze": "snoozed"}
OUTCOME_TONES: Mapping[str, Tone] = {"done": "good", "waiting": "wait", "refused": "bad"}
NO_REACTION = "no reaction"
SHARE_DIGITS = 0
RECORDED = "The database that the pages read holds counts and figures only, no text."


def week(days: Sequence[DayCounts], since: date) -> dict[str, int]:
    """Shown tips and reactions from this day on."""
    recent = [each for each in days if each.day >= since]
    counts = {"shown": sum(each.shown for each in recent)}
    return counts | {
        word: sum(each.count(reaction) for each in recent) for reaction, word in OUTCOMES.items()
    }


def by_day(days: Sequence[DayCounts]) -> Picture:
    """Shown tips of each day by what became of them."""
    totals: dict[date, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for each in days:
        for reaction, word in OUTCOMES.items():
            totals[each.day][word] += each.count(reaction)
        totals[each.day]["shown"] += each.shown
    values, rows = [], []
    for day, counts in sorted(totals.items()):
        reacted = [counts[word] for word in OUTCOMES.values()]
        nothing = max(0, counts["shown"] - sum(reacted))
        both = zip((*OUTCOMES.values(), NO_REACTION), (*reacted, nothing), strict=True)
        values += [
            {"day": day.isoformat(), "what": what, "tips": tips} for what, tips in both if tips
        ]
        rows.append((day.isoformat(), counts["shown"], *reacted, nothing))
    head = ("day (UTC)", "shown", *OUTCOMES.values(), NO_REACTION)
    table = Table("days", "Day by day", head, tuple(reversed(rows)))
    return Picture(pictures.days(values), "Tips shown on each day, by what became of them", table)


def reactions_page(
    days: Sequence[DayCounts], labels: LabelConfig, names: Mapping[int, str]
) -> list[Section]:
    """The funnel by kind and by version, dwell times, and the days."""
    kinds = _funnel("kinds", "By kind", "kind", days, lambda each: each.kind or "(erased)")
    versions = _funnel("versions", "By version", "version", days, lambda each: _writer(each, names))
    return [
        Section("What became of the tips", tables=(kinds, versions)),
        Section("Day by day", pictures=(by_day(days),)),
        Section(
            "How long tips were visible",
            f"Shaded: what training learns from. `done` after {_seconds(labels.positive_dwell_ms)} "
            f"is liked, `dismiss` within {labels.negative_dwell_below_ms / 1000:g} s is disliked; "
            "everything else is no evidence.",
            pictures=(_dwell(days, labels),),
        ),
    ]


def trial_sections(trial: Trial, config: Config) -> list[Section]:
    """A rollout: the difference over time, guardrails, shares, the split, and every decision."""
    sections = []
    comparison = trial.comparison
    if comparison is not None:
        numbers = (trial.last or trial.decisions[-1]).numbers
        sections += [
            _difference(trial, comparison, config.labels),
            Section(
                "Is it safe?",
                "Each guardrail watches one harm. Evidence of harm grows from 1; at its alarm the "
                "next review withdraws the new model.",
                tables=(_guardrails(comparison),),
            ),
            Section(
                "Is the comparison fair?",
                "Units are assigned at random. If their split did not fit the shares, exposures "
                "would be missing.",
                tables=(_fairness(comparison, numbers), _steps(trial, comparison, config.canary)),
            ),
        ]
    return [*sections, Section("What was decided", tables=(_decisions(trial),))]


def trial_facts(trial: Trial, names: Mapping[int, str]) -> list[tuple[str, str]]:
    """The main facts of a rollout, by name."""
    rollout = trial.rollout
    facts = [("champion", names.get(rollout.champion, str(rollout.champion)))]
    if rollout.challenger is not None:
        facts += [
            ("challenger", names.get(rollout.challenger, str(rollout.challenger))),
            ("phase", rollout.phase),
            ("share of the challenger", percent(rollout.share, SHARE_DIGITS)),
            ("since", f"{moment(rollout.share_since)} UTC"),
        ]
    facts += [("opened", f"{moment(rollout.opened_at)} UTC")]
    if trial.decisions:
        facts.append(("last decision", f"{moment(trial.decisions[-1].at)} UTC"))
    return facts


def runs_table(runs: Sequence[RunFacts]) -> Table:
    """The runs, each with its end in one line."""
    rows = [
        (
            Link(each.run_id, f"/runs/{each.run_id}"),
            moment(each.started),
            run_state(each),
            _version_of(each) or "",
            (each.end or each.stages[-1]).line if each.stages else "",
        )
        for each in runs
    ]
    return Table(
        "runs",
        "Runs",
        ("run", "began (UTC)", "state", "version", "in one line"),
        tuple(rows),
        empty="No run yet: `reactune run` starts one.",
    )


def run_state(run: RunFacts) -> Mark:
    """How a run ended, or that it is open."""
    end = run.end
    if end is None:
        return Mark("interrupted", "wait")
    if end.outcome == "done":
        return Mark("on trial", "good")
    return Mark(f"{end.outcome} at {end.stage}", OUTCOME_TONES[end.outcome])


def run_page(run: RunFacts) -> list[Section]:
    """One run: its stages, what was left out, training, gate, reward, and where it comes from."""
    parts: tuple[Callable[[RunFacts], Section | None], ...] = (
        _stages, _gate, _writing, _reward, _training, _dataset, _refusals, _parity, _lineage,
    )  # fmt: skip
    return [section for part in parts if (section := part(run))]


def models_page(
    versions: Mapping[int, tuple[ModelVersion, datetime]],
    trial: Trial | None,
    due: Mapping[int, datetime],
    runs: Mapping[str, RunFacts],
    *,
    now: datetime,
) -> list[Section]:
    """Every version with its state, what it was made from, and when it has to be replaced."""
    rows, origins = [], []
    for number, (model, created) in sorted(versions.items(), reverse=True):
        run = runs.get(model.run_id)
        link = Link(model.run_id, f"/runs/{model.run_id}") if run else model.run_id
        rows.append(
            (
                model.name, version_state(number, trial), link, model.base, model.quantisation,
                "yes" if model.reward else "no", moment(created), due_mark(due.get(number), now),
            )
        )  # fmt: skip
        origins.append((model.name, *_origin(model, run)))
    head = (
        "version", "state", "run", "base", "file type", "reward", "registered (UTC)", "replace by",
    )  # fmt: skip
    origin = ("version", "dataset", "examples", "method", "code", "file (SHA-256)")
    return [
        Section("Versions", tables=(Table("models", "Versions", head, tuple(rows)),)),
        Section(
            "Where each version comes from",
            "From a tip to its origin: its row names the version, the version its run, and the run "
            "the dataset, the base, the settings and the code.",
            tables=(Table("lineage", "Lineage", origin, tuple(origins)),),
        ),
    ]


def version_state(number: int, trial: Trial | None) -> Mark:
    """Whether a version answers now."""
    if trial and number == trial.rollout.champion:
        return Mark("champion", "good")
    if trial and number == trial.rollout.challenger:
        share = percent(trial.rollout.share, SHARE_DIGITS)
        return Mark(f"challenger, {share}", "wait")
    return Mark("not live")


def due_mark(date_: datetime | None, now: datetime) -> Mark:
    """The date by which a version has to be replaced after an erasure."""
    if date_ is None:
        return Mark(NONE)
    return Mark(f"{date_:%Y-%m-%d}" + (" (overdue)" if date_ < now else ""),
                "bad" if date_ < now else "wait")  # fmt: skip


def erasures_table(found: Sequence[ErasureFacts]) -> Table:
    """Who asked to be forgotten, how far it reached, and what is left to do."""
    rows = [
        (
            each.erasure_id,
            moment(each.asked_at),
            plural(each.people, "user") if each.people is not None else "by age",
            each.reason or NONE,
            "by the app" if each.actor == "service" else "by hand",
            _reach(each),
            Mark(f"done {moment(each.finished_at)}", "good")
            if each.finished_at
            else Mark("not done", "bad"),
            ", ".join(each.left) or "nothing",
        )
        for each in found
    ]
    head = (
        "erasure", "asked (UTC)", "of whom", "reason", "how", "reach", "state", "left to do",
    )  # fmt: skip
    return Table("erasures", "Erasures", head, tuple(rows), empty="Nobody has asked yet.")


def people_page(
    found: Sequence[ErasureFacts],
    facts: PrivacyFacts,
    due: Mapping[int, datetime],
    names: Mapping[int, str],
    config: Config,
    *,
    now: datetime,
) -> list[Section]:
    """Erasures, the models that have to follow them, consent, and retention."""
    waiting = [each for each in found if each.finished_at is None]
    done = len(found) - len(waiting)
    replaced = [
        (names.get(number, str(number)), due_mark(date_, now)) for number, date_ in due.items()
    ]
    days = config.privacy.retention_days
    keeps = "Tips are kept without a limit (`[privacy] retention_days = 0`)."
    if days:
        keeps = f"`reactune erase --expired` erases tips that are older than {plural(days, 'day')}."
    return [
        Section(
            "Asked to be forgotten",
            "The database is cleared at once. Datasets, models' records and files follow with the "
            "next `reactune run` or `reactune erase`.",
            figures=(
                Figure("done", f"{done:,}"),
                Figure("not done", f"{len(waiting):,}"),
                Figure("models to replace", f"{len(replaced):,}"),
            ),
            tables=(
                erasures_table(found),
                Table(
                    "replacements",
                    "Models that learned from somebody who was erased",
                    ("version", "replace by"),
                    tuple(replaced),
                    note=f"They are replaced within {config.privacy.retrain_within_days} days.",
                    empty="None.",
                ),
            ),
        ),
        Section(
            "Consent and retention",
            figures=(
                Figure("users who refuse training", f"{facts.refusing_users:,}"),
                Figure("tips that are not trained on", f"{facts.refused_tips:,}"),
                Figure("decisions recorded", f"{facts.decisions:,}", moment(facts.last_decision)),
            ),
            text=keeps,
        ),
    ]


def settings_page(config: Config) -> list[Section]:
    """Every setting in force, with its default and its meaning; passwords are hidden."""
    values, standard = without_passwords(config), without_passwords(Config())
    rows: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for section, key, kind, default, meaning in _described():
        value = values[section][key]
        is_default = value == standard[section][key]
        shown = Mark(_value(value), "none" if is_default else "wait")
        rows[section].append((key, shown, "" if is_default else default, kind, meaning))
    head = ("setting", "in force", "default", "type", "meaning")
    return [
        Section(f"[{name}]", tables=(Table(name, "Settings", head, tuple(each)),))
        for name, each in rows.items()
    ]


@cache
def _described() -> tuple[tuple[str, str, str, str, str], ...]:
    return tuple(described())


def keys_page(keys: Sequence[ApiKey], actions: Sequence[sa.RowMapping]) -> list[Section]:
    """The API keys without their secrets, and what was done on the pages."""
    names = {each.key_id: each.name for each in keys}
    rows = [
        (
            each.key_id,
            each.name,
            ", ".join(sorted(each.scopes)),
            moment(each.created_at),
            Mark(f"revoked {moment(each.revoked_at)}", "bad")
            if each.revoked_at
            else Mark("valid", "good"),
        )
        for each in keys
    ]
    done = [
        (
            moment(each["at"]), names.get(each["key_id"], each["key_id"]), each["action"],
            each["subject"], each["reason"], each["outcome"],
        )
        for each in actions
    ]  # fmt: skip
    return [
        Section(
            "API keys",
            "`reactune keys create NAME --scope read` makes one and prints it once; "
            "`reactune keys revoke ID` ends it within two seconds.",
            tables=(
                Table(
                    "keys",
                    "Keys",
                    ("id", "name", "scopes", "created (UTC)", "state"),
                    tuple(rows),
                    empty="None yet: `reactune keys create NAME --scope read`.",
                ),
            ),
        ),
        Section(
            "What was done on these pages",
            tables=(
                Table(
                    "actions",
                    "Actions",
                    ("at (UTC)", "key", "action", "on", "reason", "outcome"),
                    tuple(done),
                ),
            ),
        ),
    ]


def tips_tables(found: Mapping[str, Sequence[sa.RowMapping]]) -> tuple[Table, ...]:
    """The texts that each arm showed last, side by side."""
    titles = {"champion": "The old model's tips", "challenger": "The new model's tips"}
    return tuple(
        Table(
            f"tips-{arm}",
            titles[arm],
            ("kind", "tip", "reaction"),
            tuple(
                (row["kind"], row["tip_content"], OUTCOMES.get(row["reaction"] or "", NONE))
                for row in rows
            ),
            is_verbatim=True,
        )
        for arm, rows in found.items()
    )


def candidates_table(choices: Sequence[Mapping[str, Any]]) -> Table:
    """The candidates of some tips with their rewards, and which of them was shown."""
    rows: list[tuple[Any, ...]] = []
    for number, choice in enumerate(choices, 1):
        for place, each in enumerate(choice["candidates"]):
            values = (f"(refused: {each['verdict']})", NONE, NONE, NONE)
            if each["verdict"] == "passed":
                values = (
                    each["text"], f"{each['reward']:+.2f}", f"{each['bound']:+.2f}",
                    percent(each["chance"], 0),
                )  # fmt: skip
            rows.append((number, *values, "shown" if place == choice["chosen"] else ""))
    return Table(
        "candidates",
        "Candidates and their rewards",
        ("tip", "candidate", "reward", "lower bound", "chance", ""),
        tuple(rows),
        note="The reward is the log-odds that a tip is liked in its context, against the average "
        "tip. The choice is drawn, by the lower bounds; the chance is logged.",
        empty="No reward chose among candidates here.",
        is_verbatim=True,
    )


def progress_figures(progress: Progress) -> list[Figure]:
    """How many examples the next training has of those that it needs."""
    ready = f"enough about {progress.ready_on:%Y-%m-%d}" if progress.ready_on else "no date yet"
    if not progress.need_negatives:
        return [_part("new examples", progress.positives, progress.need_positives, ready)]
    return [
        _part("liked tips", progress.positives, progress.need_positives, ready),
        _part("disliked tips", progress.negatives, progress.need_negatives, ready),
    ]


def _part(name: str, have: int, need: int, note: str) -> Figure:
    part = 1.0 if not need else min(1.0, have / need)
    return Figure(name, f"{have:,} of {need:,}", "enough" if part == 1 else note, part)


def _funnel(
    name: str,
    title: str,
    of: str,
    days: Sequence[DayCounts],
    key: Callable[[DayCounts], str],
) -> Table:
    groups: dict[str, list[DayCounts]] = defaultdict(list)
    for each in days:
        groups[key(each)].append(each)
    rows = []
    for group, some in sorted(groups.items(), key=lambda item: -sum(d.shown for d in item[1])):
        shown = sum(each.shown for each in some)
        counts = [sum(each.count(reaction) for each in some) for reaction in OUTCOMES]
        shares = [percent(count / shown) if shown else NONE for count in counts]
        written = sum(each.tips for each in some)
        rows.append((group, written, shown, *(x for two in zip(counts, shares, strict=True)
                                              for x in two)))  # fmt: skip
    words = [text for word in OUTCOMES.values() for text in (word, "of shown")]
    head = (of, "written", "shown", *words)
    return Table(name, title, head, tuple(rows), empty="No tip was written in these days.")


def _writer(counts: DayCounts, names: Mapping[int, str]) -> str:
    if counts.version:
        return names.get(counts.version, f"version {counts.version}")
    return "stored tips" if counts.source == "stored" else f"source {counts.source}"


def _dwell(days: Sequence[DayCounts], labels: LabelConfig) -> Picture:
    names = bin_names()
    totals = {reaction: [0] * (len(names) + 1) for reaction in OUTCOMES}
    for each in days:
        for reaction, bins in each.dwell.items():
            for place, tips in enumerate(bins):
                totals[reaction][place] += tips
    values = [
        {"bin": name, "what": OUTCOMES[reaction], "tips": totals[reaction][place]}
        for reaction in OUTCOMES
        for place, name in enumerate(names)
        if totals[reaction][place]
    ]
    rows = [
        (name, *(totals[reaction][place] for reaction in OUTCOMES))
        for place, name in enumerate((*names, "unknown"))
    ]
    table = Table("dwell", "Dwell times", ("seconds", *OUTCOMES.values()), tuple(rows))
    spec = pictures.dwell_bins(values, names, _zones(labels))
    return Picture(spec, "Reactions by how long the tip was visible", table)


def bin_names() -> tuple[str, ...]:
    """The bins of dwell times in seconds."""
    edges = [0, *(edge // 1000 for edge in DWELL_EDGES_MS)]
    between = (f"{low}\N{EN DASH}{high}" for low, high in pairwise(edges))
    return (*between, f"over {edges[-1]}")


def _zones(labels: LabelConfig) -> dict[str, list[str]]:
    """The bins that lie in the two label zones, at least in part."""
    lows, highs = (0, *DWELL_EDGES_MS), (*DWELL_EDGES_MS, 10**12)
    low, high = labels.positive_dwell_ms
    bins = list(zip(bin_names(), lows, highs, strict=True))
    return {
        "liked": [name for name, start, end in bins if end > low and start < high],
        "disliked": [name for name, start, _ in bins if start < labels.negative_dwell_below_ms],
    }


def _seconds(limits: tuple[int, int]) -> str:
    return f"{limits[0] / 1000:g} to {limits[1] / 1000:g} s"


def _difference(trial: Trial, comparison: Comparison, labels: LabelConfig) -> Section:
    rows = [
        (moment(each.at), each.comparison.units, *map(points, (
            each.comparison.estimate if each.comparison.is_ready else None,
            _finite(each.comparison.low), _finite(each.comparison.high),
        )))
        for each in trial.decisions
        if each.comparison
    ]  # fmt: skip
    head = ("review (UTC)", "units", "difference", "at least", "at most")
    table = Table("difference", "The difference at each review, in points", head,
                  tuple(reversed(rows)), note="A point is one liked tip more of 100.")  # fmt: skip
    units = f"{comparison.challenger_units:,} of {comparison.units:,} units on the new model"
    figures = (
        Figure("new model", percent(comparison.challenger_rate), "of its tips were liked"),
        Figure("old model", percent(comparison.champion_rate), "of its tips were liked"),
        Figure("difference", f"{points(comparison.estimate)} points", _bounds(comparison)),
        Figure("evidence", percent(min(1.0, comparison.progress), 0), f"of the plan; {units}",
               min(1.0, comparison.progress)),
    )  # fmt: skip
    text = f"A tip is liked when it was done after {_seconds(labels.positive_dwell_ms)}."
    path = trial.path
    if not path.get("at"):
        return Section("How much better?", text, figures=figures, tables=(table,))
    times = [datetime.fromisoformat(at) for at in path["at"]]
    spec = pictures.bounds(times, path["estimate"], path["low"], path["high"])
    caption = "New model minus old model, in liked tips per tip; the band holds at every reading"
    return Section(
        "How much better?", text, figures=figures, pictures=(Picture(spec, caption, table),)
    )


def _bounds(comparison: Comparison) -> str:
    if not (isfinite(comparison.low) and isfinite(comparison.high)):
        return "no bounds yet"
    return f"{points(comparison.low)} to {points(comparison.high)}"


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _guardrails(comparison: Comparison) -> Table:
    rows = [
        (
            each.name,
            percent(each.challenger_rate),
            percent(each.champion_rate),
            _evidence(each.log_e_value),
            _evidence(each.alarm),
            Mark("harm is shown", "bad") if each.is_broken else Mark("no harm shown", "good"),
        )
        for each in comparison.guardrails
    ]
    head = ("guardrail", "new model", "old model", "evidence of harm", "alarm at", "state")
    return Table("guardrails", "Guardrails", head, tuple(rows), empty="No unit was observed yet.")


def _evidence(log_e_value: float) -> str:
    """An e-value; beyond a million its size says nothing more."""
    return f"{exp(log_e_value):,.1f}" if log_e_value < log(1e6) else "over a million"


def _fairness(comparison: Comparison, numbers: Mapping[str, Any]) -> Table:
    alarm = float(numbers.get("mismatch_alarm", log(1000)))
    is_fair = comparison.mismatch < alarm
    rows = (
        ("units on the new model",
         f"{comparison.challenger_units:,} of {comparison.units:,}", ""),
        ("evidence that the split does not fit the shares",
         f"{_evidence(comparison.mismatch)}, alarm at {_evidence(alarm)}",
         Mark("fits", "good") if is_fair else Mark("does not fit", "bad")),
        ("units that met the old model after the new one", f"{comparison.moved_away:,}",
         Mark("none", "good") if not comparison.moved_away else Mark("check the routing", "wait")),
        ("tips of the new model that the old one had to write",
         percent(comparison.fallback_share), ""),
    )  # fmt: skip
    return Table("fairness", "Checks", ("what", "found", "state"), rows)


def _steps(trial: Trial, comparison: Comparison, settings: CanaryConfig) -> Table:
    shares = sorted({*comparison.units_at_share, settings.share, *settings.ramp})
    rows = []
    for share in shares:
        units = sum(n for at, n in comparison.units_at_share.items() if abs(at - share) < 1e-6)
        is_now = abs(share - trial.rollout.share) < 1e-6 and trial.closed_at is None
        state = Mark("now", "wait") if is_now else Mark("done", "good") if units else Mark("later")
        rows.append((percent(share, SHARE_DIGITS), units, settings.min_units_per_step, state))
    note = "Each review without harm takes the next step, once a step has its units."
    return Table(
        "steps", "Share of the new model", ("share", "units", "needed", "state"), tuple(rows), note
    )


def _decisions(trial: Trial) -> Table:
    tones: Mapping[str, Tone] = {"promote": "good", "roll back": "bad"}
    rows = [
        (
            moment(each.at),
            "a person" if each.actor == "hand" else "the review",
            Mark(each.verdict, tones.get(each.verdict, "none")),
            each.reason,
        )
        for each in reversed(trial.decisions)
    ]
    return Table("decisions", "Decisions", ("at (UTC)", "by", "verdict", "reason"), tuple(rows))


def _stages(run: RunFacts) -> Section:
    rows = [
        (
            each.stage,
            Mark(each.outcome, OUTCOME_TONES.get(each.outcome, "none")),
            f"{each.seconds:,.0f} s",
            each.line,
        )
        for each in run.stages
    ]
    table = Table("stages", "Stages", ("stage", "outcome", "took", "in one line"), tuple(rows))
    erased = sorted({one for each in run.stages for one in each.lineage.get("erased") or ()})
    text = (
        f"Changed by {plural(len(erased), 'erasure')} since: {', '.join(erased)}." if erased else ""
    )
    return Section("Stage by stage", text, tables=(table,))


def _gate(run: RunFacts) -> Section | None:
    stage = run.stage("evaluate")
    if stage is None or not stage.figures:
        return None
    figures = stage.figures
    judged = (figures.get("judged") or {}).get("rows", ())  # runs of earlier versions have none
    wins = {row["model"]: row["beside"]["win_rate"] for row in judged}
    rows = [
        (
            row["model"], _estimate(row["accuracy"]), _estimate(row["loss"]),
            _estimate(row["gain_accuracy"]), _estimate(row["accuracy_difference"]),
            _estimate(wins.get(row["model"])),
        )
        for row in figures["rows"]
    ]  # fmt: skip
    head = ("model", "preference accuracy", "loss per token", "accuracy by gain",
            "tuned minus this", "tuned wins")  # fmt: skip
    table = Table("gate", "Gate", head, tuple(rows),
                  note="Preference accuracy: how often a liked tip is ranked above a disliked one; "
                  "0.5 is chance. Tuned wins: how often its tips are liked more than this model's, "
                  "by rewards of people whose reactions trained neither. In brackets: 95 % "
                  "interval.")  # fmt: skip
    spec = pictures.intervals(
        "preference accuracy on held-out users",
        [(row["model"], *_values(row["accuracy"])) for row in figures["rows"]],
        reference=0.5,
    )
    refusals = figures.get("refusals") or ()
    verdict = f"Refused: {'; '.join(refusals)}." if refusals else "Passed."
    text = f"{verdict} {figures['examples']:,} held-out tips, {figures['pairs']:,} pairs."
    caption = "How often each model ranks a liked tip above a disliked one, on held-out users"
    return Section("Did it get better on held-out users?", text,
                   pictures=(Picture(spec, caption, table),))  # fmt: skip


def _writing(run: RunFacts) -> Section | None:
    stage = run.stage("evaluate")
    judged = stage.figures.get("judged") if stage else None
    if not judged:
        return None
    written = judged["writing"]
    rewards = {row["model"]: row["reward"] for row in written if row.get("reward") is not None}
    rows = [
        (
            row["model"], percent(row["shown"], 0),
            f"{rewards[row['model']]:+.2f}" if row["model"] in rewards else NONE,
            f"{row['words']:.1f}", f"{row['distinct_pairs']:.2f}", f"{row['similarity']:.2f}",
            f"{row['logprob']:.2f}",
        )
        for row in written
    ]  # fmt: skip
    head = ("model", "shown", "reward", "words", "distinct pairs", "similarity", "log-probability")
    note = (
        "Shown: texts that the guard lets through. Distinct pairs: the share of different pairs of "
        "words. Similarity: how alike two tips are (Jaccard index of their words). "
        "Log-probability: how probable the base model finds a tip, per token."
    )
    table = Table("writing", "What the models write", head, tuple(rows), note=note)
    text = (
        "Rewards before and after: each model wrote tips for the same held-out contexts, and this "
        "is their mean reward by the model that taught the generator, in log-odds; 0 is the "
        "average tip that it learned from."
    )
    if not rewards:
        return Section("What the models write", text, tables=(table,))
    spec = pictures.bars("mean reward, in log-odds", rewards)
    return Section(
        "What the models write",
        text,
        pictures=(Picture(spec, "Mean reward of what each model writes", table),),
    )


def _reward(run: RunFacts) -> Section | None:
    stage = run.stage("reward")
    if stage is None or not stage.figures:
        return None
    quality = stage.figures["quality"]
    accuracies, learned = quality["accuracies"], quality["curve"]
    rows = [(name, _estimate(each["estimate"]), each["pairs"]) for name, each in accuracies.items()]
    shown = []
    if accuracies:
        spec = pictures.intervals(
            "preference accuracy on other users",
            [(name, *_values(each["estimate"])) for name, each in accuracies.items()],
            reference=0.5,
        )
        table = Table("reward", "Rankings", ("ranking", "accuracy", "pairs"), tuple(rows))
        shown.append(Picture(spec, "How often each ranking is right on other users", table))
    if learned:
        ordered = sorted(learned.items(), key=lambda item: int(item[0]))
        spec = pictures.curve(
            "accuracy", "reactions learned from",
            [(int(count), *_values(each["estimate"])) for count, each in ordered],
        )  # fmt: skip
        table = Table(
            "learning", "Learning curve", ("reactions", "accuracy"),
            tuple((int(count), _estimate(each["estimate"])) for count, each in ordered),
        )  # fmt: skip
        shown.append(Picture(spec, "Accuracy by the number of reactions learned from", table))
    reason = stage.figures.get("reason")
    text = f"No reward model: {reason}." if reason else stage.line
    return Section("The reward: what people like", text, pictures=tuple(shown))


def _training(run: RunFacts) -> Section | None:
    stage = run.stage("train")
    if stage is None or not stage.figures:
        return None
    curves = stage.figures["curves"]
    rows = [
        (name, f"{stage.figures['seconds'][name]:,.0f} s", points_[-1][0] if points_ else 0,
         f"{points_[-1][1]:.4f}" if points_ else NONE)
        for name, points_ in curves.items()
    ]  # fmt: skip
    head = ("method", "took", "steps", "last loss")
    table = Table("training", "Methods tried", head, tuple(rows))
    spec = pictures.loss_curves({name: [tuple(p) for p in each] for name, each in curves.items()})
    text = f"Kept: {stage.figures['method']}, the best on the validation part."
    return Section("Training", text, pictures=(Picture(spec, "Training loss by step", table),))


def _dataset(run: RunFacts) -> Section | None:
    stage = run.stage("dataset")
    if stage is None or "parts" not in stage.counts:
        return None
    counts = stage.counts
    parts = [
        (part, labels["positives"], labels["negatives"], counts["users"].get(part, 0),
         counts["pairs"].get(part, 0))
        for part, labels in counts["parts"].items()
    ]  # fmt: skip
    kinds = [
        (kind, labels["positives"], labels["negatives"]) for kind, labels in counts["kinds"].items()
    ]
    return Section(
        "The dataset",
        f"Fingerprint {short(counts['fingerprint'])}. {counts['new']:,} examples are new.",
        tables=(
            Table("parts", "Parts", ("part", "liked", "disliked", "users", "pairs"), tuple(parts)),
            Table("dataset-kinds", "Kinds", ("kind", "liked", "disliked"), tuple(kinds)),
        ),
    )


def _refusals(run: RunFacts) -> Section | None:
    rows = []
    extract, dataset = run.stage("extract"), run.stage("dataset")
    if extract is not None:
        for name in ("labels", "de-identification"):
            refused = extract.counts.get(name, {}).get("refused", {})
            rows += [(name, reason, count) for reason, count in refused.items() if count]
    if dataset is not None:
        refused = dataset.counts.get("counts", {}).get("refused", {})
        rows += [("dataset", reason, count) for reason, count in refused.items() if count]
    if not rows:
        return None
    table = Table("refused", "Left out", ("step", "reason", "rows"), tuple(rows))
    return Section("What was left out, and why", tables=(table,))


def _parity(run: RunFacts) -> Section | None:
    stage = run.stage("export")
    if stage is None or not stage.figures:
        return None
    rows = [(name.replace("_", " "), f"{value:,.4g}") for name, value in stage.figures.items()]
    table = Table("parity", "Parity", ("measure", "value"), tuple(rows))
    return Section("Is the served model the trained one?", tables=(table,))


def _lineage(run: RunFacts) -> Section:
    files = [
        (f"{each.stage}/{name}", digest)
        for each in run.stages
        for name, digest in each.lineage.get("outputs", {}).items()
    ]
    libraries: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for each in run.stages:
        libraries |= each.lineage.get("versions", {})
        for section, values in each.lineage.get("settings", {}).items():
            settings |= {f"{section}.{name}": value for name, value in values.items()}
    standard = without_passwords(Config())
    changed = [
        (name, _value(value))
        for name, value in sorted(settings.items())
        if standard.get(name.partition(".")[0], {}).get(name.partition(".")[2]) != value
    ]
    return Section(
        "Where it comes from",
        tables=(
            Table("changed", "Settings other than the defaults", ("setting", "value"),
                  tuple(changed)),
            Table("libraries", "Code and libraries", ("what", "version"),
                  tuple(libraries.items())),
            Table("files", "Files and their SHA-256", ("file", "SHA-256"), tuple(files)),
        ),
    )  # fmt: skip


def _origin(model: ModelVersion, run: RunFacts | None) -> tuple[str, ...]:
    dataset = run.stage("dataset") if run else None
    train = run.stage("train") if run else None
    counts = dataset.counts if dataset else {}
    parts: Mapping[str, Mapping[str, int]] = counts.get("parts", {})
    learned = sum(parts.get("train", {}).values())
    done: Iterable[Summary] = run.stages if run else ()
    code = next((each.lineage.get("versions", {}).get("reactune", "") for each in done), "")
    return (
        short(counts.get("fingerprint", "")) or NONE,
        f"{learned:,}" if learned else NONE,
        str(train.figures.get("method", NONE)) if train else NONE,
        f"reactune {code}" if code else NONE,
        short(model.sha256),
    )


def _version_of(run: RunFacts) -> int | None:
    stage = run.stage("register")
    return int(stage.counts["version"]) if stage and "version" in stage.counts else None


def _reach(erasure: ErasureFacts) -> str:
    parts = [plural(erasure.rows, "row")]
    if erasure.kept:
        parts.append(f"{erasure.kept:,} kept without ids for the open rollout")
    if erasure.runs:
        parts.append(plural(len(erasure.runs), "run"))
    if erasure.learned:
        parts.append(f"{plural(erasure.learned, 'model')} learned from them")
    return ", ".join(parts)


def _estimate(values: Mapping[str, float] | None) -> str:
    if not values:
        return NONE
    return f"{values['value']:.3f} [{values['low']:.3f}, {values['high']:.3f}]"


def _values(values: Mapping[str, float]) -> tuple[float, float, float]:
    return values["value"], values["low"], values["high"]


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {each}" for name, each in value.items()) or "(none)"
    return str(value) if value != "" else "(empty)"
