"""Rows of a source -> labels: which reactions are evidence, and which users may be learned from.

The source selects them in SQL. Rows of users who refused are left out there, or before a batch
is handed out; ids are hashed by then.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

from reactune.config.sections import LabelConfig, SourceConfig
from reactune.data.labels.sources import (
    RAW_ID,
    Answers,
    OpenScores,
    Scores,
    backends,
    dialect_of,
    in_utc,
    unbound_scores,
)
from reactune.errors import ConfigError, DataError, PrivacyError
from reactune.privacy.consent import UserStatuses
from reactune.privacy.hashing import HashingKey, user_key
from reactune.privacy.user_ids import IdError, id_of_somebody
from reactune.records import REACTIONS, Counts
from reactune.store.labels import Evidence, LabelRule, label_rule

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.expr.types import BooleanValue, Table

LABELLED_COLUMNS = (
    "tip_id",
    "user_key",
    "kind",
    "context_json",
    "tip_content",
    "source",
    "reaction",
    "dwell_ms",
    "created_at",
    "reacted_at",
    "label",
)
TIMES = ("created_at", "reacted_at")
HASHED = "^[0-9a-f]{64}$"
Admits = Callable[[Sequence[Any], Sequence[datetime | None]], list[bool]]
"""Of ids as the source has them, with the times of their rows: which may be learned from."""
OPTED_OUT, ERASED, NO_CONSENT = "opted out", "erased", "no consent stated"
MAX_CACHED = 100_000
MOST_NAMED, LEAST_ROWS = 5, 5  # names of reactions in an error, and rows that each stands in


@dataclass(frozen=True)
class DayCount:
    """Labels of the tips that were made on one UTC day."""

    day: date
    positives: int
    negatives: int


def label(scores: Scores, labels: LabelConfig) -> "Table":
    """The rows that are evidence, with `label`: true for a positive, false for a negative.

    Left out are other sources, tips that were never shown (silent shadow answers), parts of an
    answer that was cut (they end where the model did not), reactions that are neither a positive
    nor a negative, rows with `training_allowed` false, and every row of a user whose newest row
    says so, whether `[source] where` keeps that one or not.
    """
    # Consent comes last, so that it is looked up for evidence only.
    rule = label_rule(labels)
    evidence = _evidence(scores, rule, labels).values()
    kept = scores.chosen.filter([*evidence, _is_allowed(scores)])
    return kept.mutate(label=_includes(rule.positive, kept))


def read_scores(
    opened: OpenScores,
    labels: LabelConfig,
    *,
    source: SourceConfig,
    key: HashingKey,
    admits: Admits | None = None,
    batch_rows: int = 10_000,
) -> Iterator["pa.RecordBatch"]:
    """The labelled rows as Arrow batches of `LABELLED_COLUMNS`, times in UTC, in no set order.

    Ids that `[source] columns` names `user_id` are hashed before a batch is handed out. Rows
    that `admits` refuses are left out.

    Raises:
        PrivacyError: a foreign table's `user_key` is no keyed hash.
        DataError: a time is no point in time.
    """
    import pyarrow as pa

    hash_id = lru_cache(MAX_CACHED)(partial(_hash_of, key))
    is_raw = RAW_ID in source.columns
    opted_out = _opted_out_under_a_spelling(opened, hash_id) if is_raw else frozenset()
    chosen = label(opened.scores, labels).select(LABELLED_COLUMNS)
    for batch in opened.answers.batches(chosen, batch_rows=batch_rows):
        columns = {name: batch.column(name) for name in LABELLED_COLUMNS}
        ids = batch.column("user_key")
        users = _ids_in(ids, opened.scores)
        if is_raw:
            columns["user_key"] = pa.array([hash_id(each) for each in users], pa.string())
        else:
            columns["user_key"] = _user_keys(ids, source)
        columns |= {name: in_utc(batch.column(name)) for name in TIMES}
        rows = pa.RecordBatch.from_pydict(columns)
        if admits is not None:
            admitted = admits(users, columns["created_at"].to_pylist())
            rows = rows.filter(pa.array(admitted, pa.bool_()))
        if opted_out:
            theirs = rows.column("user_key").to_pylist()
            rows = rows.filter(pa.array([each not in opted_out for each in theirs], pa.bool_()))
        yield rows


def consent_note(scores: Scores, labels: LabelConfig) -> str:
    """One line about a source that says of no row whether it is allowed; empty for others."""
    if scores.states_consent:
        return ""
    verdict = "every row counts" if labels.without_consent == "allow" else "no row counts"
    return f"the source has no column training_allowed: {verdict} as allowed"


def label_counts(opened: OpenScores, labels: LabelConfig) -> Counts:
    """How many rows are evidence, and how many are not for which first reason.

    `label` also leaves out evidence of users who opted out. To count it here, an engine would read
    the table a second time on one core; it is counted when the rows are read.

    Raises:
        DataError: rows have reactions, and none of them is one that we know.
    """
    scores, table = opened.scores, opened.scores.chosen
    rules = _evidence(scores, label_rule(labels), labels)
    left = {"rows": table.count()}
    kept = None
    for number, rule in enumerate(rules.values()):
        kept = rule if kept is None else kept & rule
        left[f"after_{number}"] = table.count(where=kept)
    counts = _whole_numbers(opened.answers, table.aggregate(**left))
    if counts[0] and not counts[-1]:
        _check_reactions(opened)
    lost = [before - after for before, after in pairwise(counts)]
    refused = dict(zip(rules, lost, strict=True))
    came_in = counts[0]
    if scores.chosen is not scores.table:
        whole = scores.table.aggregate(rows=scores.table.count())
        (came_in,) = _whole_numbers(opened.answers, whole)
        refused = {"outside [source] where": came_in - counts[0], **refused}
    return Counts(came_in, counts[-1], refused)


def label_sql(source: SourceConfig, labels: LabelConfig, *, url: str, dialect: str = "") -> str:
    """The query that `read_scores` runs at `url`, in its SQL or in that of `duckdb`, `trino`, ...

    Raises:
        ConfigError: there is no such dialect, or `[source]` is not valid.
    """
    import ibis

    spoken = dialect_of(url)
    written = dialect or spoken
    if written not in backends() - {"polars"}:
        raise ConfigError(
            f"{written!r} is no dialect of SQL that Ibis writes; those are "
            f"{', '.join(sorted(backends() - {'polars'}))}"
        )
    scores = unbound_scores(source, written_in=spoken, compiled_to=written)
    return str(ibis.to_sql(label(scores, labels).select(LABELLED_COLUMNS), dialect=written))


def admission(
    statuses: UserStatuses, source: SourceConfig, left_out: Counter[str]
) -> Admits | None:
    """The test of consent for `read_scores`, or None where nobody refuses.

    Rows that it refuses are counted in `left_out`, by reason.
    """
    if not statuses.by_mark:
        return None
    is_raw = RAW_ID in source.columns
    status_of = lru_cache(MAX_CACHED)(
        statuses.of_id if is_raw else lambda user: statuses.of_user_key(user or "")
    )

    def admits(ids: Sequence[str | None], times: Sequence[datetime | None]) -> list[bool]:
        return [_admits(each, at) for each, at in zip(ids, times, strict=True)]

    def _admits(user: Any, created_at: datetime | None) -> bool:
        try:
            status = status_of(user)
        except IdError:
            return True  # a row without an id is refused and counted as such later
        if status.refuses(created_at):
            left_out[ERASED] += 1
            return False
        if not status.training_allowed:
            left_out[OPTED_OUT] += 1
        return status.training_allowed

    return admits


def after_consent(evidence: Counts, left_out: Counter[str], *, read: int) -> Counts:
    """The counts of the labels after consent; `read` rows were read and not left out.

    What the source's own query left out has opted out, too.
    """
    in_source = max(0, evidence.went_out - left_out.total() - read)
    theirs = {**left_out, OPTED_OUT: in_source + left_out[OPTED_OUT]}
    return Counts(evidence.came_in, read, {**evidence.refused, **theirs})


def daily_counts(opened: OpenScores, labels: LabelConfig) -> list[DayCount]:
    """Positives and negatives by the UTC day on which the tip was made; empty days are absent."""
    labelled = label(opened.scores, labels)
    created = labelled.created_at
    moment = created if created.type().is_timestamp() else created.cast("timestamp")
    dated = labelled.mutate(day=moment.date().cast("string"))
    days = dated.group_by("day").aggregate(positives=dated.label.sum(), tips=dated.count())
    return [
        DayCount(
            day=date.fromisoformat(str(row["day"])),
            positives=int(str(row["positives"])),
            negatives=int(str(row["tips"])) - int(str(row["positives"])),
        )
        for row in opened.answers.rows(days.order_by("day"))
    ]


def kept_share(counts: Mapping[str, Any]) -> float:
    """The share of labelled rows that duplicates and caps left in a dataset; 1 of no rows.

    `counts` are those of the stage `dataset`: `came_in` and `went_out`.
    """
    came_in = counts.get("came_in", 0)
    return float(counts["went_out"]) / float(came_in) if came_in else 1.0


def forecast(
    days: Sequence[DayCount],
    *,
    have: tuple[int, int],
    need: tuple[int, int],
    today: date,
    window_days: int = 14,
    kept: float = 1.0,
) -> date | None:
    """The day on which both counts are reached at the recent rate; None if they never are.

    `have` and `need` are (positives, negatives). The rate is the mean over the last `window_days`
    days, or over the days since the first label if these are fewer; `kept` is the share of labels
    that duplicates and caps leave.
    """
    missing = [max(0, needed - had) for had, needed in zip(have, need, strict=True)]
    if not any(missing):
        return today
    past = [count for count in days if count.day <= today]
    recent = [count for count in past if count.day > today - timedelta(days=window_days)]
    if not recent:
        return None
    seen_days = min(window_days, (today - min(count.day for count in past)).days + 1)
    came = (sum(count.positives for count in recent), sum(count.negatives for count in recent))
    waits = [0]
    for gap, total in zip(missing, came, strict=True):
        if gap and not total * kept:
            return None
        if gap:
            waits.append(ceil(gap * seen_days / (total * kept)))
    return today + timedelta(days=max(waits))


def _whole_numbers(answers: Answers, expression: "Table") -> list[int]:
    (result,) = answers.rows(expression)
    return [int(str(number)) for number in result.values()]


def _includes(evidence: Evidence, table: "Table") -> "BooleanValue":
    """`Evidence.includes` as an expression of Ibis."""
    within = table.dwell_ms.between(evidence.min_dwell_ms, evidence.max_dwell_ms)
    return table.reaction.isin(sorted(evidence.reactions)) & within


def _evidence(scores: Scores, rule: LabelRule, labels: LabelConfig) -> dict[str, "BooleanValue"]:
    """What a row must meet to be labelled, by the reason for which it is left out if it does not.

    The reasons together are `LabelRule.is_positive` or `is_negative` of a tip that was shown.
    """
    import ibis

    table = scores.chosen
    if not scores.states_consent and labels.without_consent == "refuse":
        return {NO_CONSENT: ibis.literal(value=False)}
    return {
        "from another source": table.source == rule.source,
        "never shown": table.shown_at.notnull(),
        "cut at max_tokens": ~table.cut.fill_null(False),
        "no evidence": _includes(rule.positive, table) | _includes(rule.negative, table),
    }


def _check_reactions(opened: OpenScores) -> None:
    """Refuse a source whose reactions have other names: none of its rows would ever be evidence."""
    table = opened.scores.chosen
    reacted = table.filter(table.reaction.notnull())
    by_name = reacted.group_by("reaction").aggregate(rows=reacted.count())
    ours = by_name.filter(by_name.reaction.isin(REACTIONS))
    found = opened.answers.rows(by_name.order_by(by_name.rows.desc()).limit(MOST_NAMED))
    if not found or opened.answers.rows(ours):
        return
    names = {str(row["reaction"]): int(str(row["rows"])) for row in found}
    # What stands in few rows may be somebody's own words.
    often = {name: rows for name, rows in names.items() if rows >= LEAST_ROWS}
    shown = ", ".join(f"{name[:40]!r} ({rows:,} rows)" for name, rows in often.items())
    raise DataError(
        f"no reaction there is {' or '.join(REACTIONS)}; found: {shown or 'rare texts'}; name a "
        "view in [source] table that gives them our names"
    )


def _is_allowed(scores: Scores) -> "BooleanValue":
    """Whether a row may be learned from, and its user did not opt out."""
    table, everything = scores.chosen, scores.table
    # NOT IN a list that holds NULL is never true.
    opted_out = _opted_out(everything)
    named = opted_out.filter(opted_out.user_key.notnull()).user_key
    return table.training_allowed & table.user_key.notin(named)


def _opted_out(everything: "Table") -> "Table":
    """The ids of users whose newest row refuses."""
    # Users who refused once are few: only their rows are grouped.
    refusing = everything.filter(~everything.training_allowed).user_key
    theirs = everything.filter(everything.user_key.isin(refusing))
    per_user = theirs.group_by("user_key").aggregate(
        newest=theirs.created_at.max(),
        newest_refusal=theirs.created_at.max(where=~theirs.training_allowed),
    )
    return per_user.filter(per_user.newest_refusal >= per_user.newest).select("user_key")


def _opted_out_under_a_spelling(
    opened: OpenScores, hash_id: Callable[[Any], str | None]
) -> frozenset[str | None]:
    """Hashed ids of who opted out; their query knows one spelling of an id, and there are more."""
    batches = opened.answers.batches(_opted_out(opened.scores.table), batch_rows=10_000)
    ids = (each for batch in batches for each in _ids_in(batch.column(0), opened.scores))
    return frozenset(map(hash_id, ids)) - {None}


def _ids_in(values: "pa.Array", scores: Scores) -> list[Any]:
    """The ids of a column by its type; some engines give decimals as text."""
    ids: list[Any] = values.to_pylist()
    if not scores.table.user_key.type().is_decimal():
        return ids
    return [None if each is None else Decimal(str(each)) for each in ids]


def _hash_of(key: HashingKey, raw_id: Any) -> str | None:
    """The hash of a raw id, None where there is none; such rows are refused later."""
    try:
        return user_key(key, id_of_somebody(raw_id))
    except IdError:
        return None


def _user_keys(values: "pa.Array", source: SourceConfig) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    if source.url and not pc.all(pc.match_substring_regex(values, HASHED)).as_py():
        raise PrivacyError(
            f"user_key of {source.table} holds ids that are no keyed hashes; name that column "
            f"{RAW_ID} in [source] columns, and it is hashed on the way in"
        )
    return values.cast(pa.string())
