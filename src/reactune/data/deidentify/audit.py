"""What the contexts of logged tips hold, key by key, and an allow-list proposed from it."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from reactune.config.settings import Config
from reactune.errors import DataError
from reactune.model.context import parse_context
from reactune.pii.patterns import labelled
from reactune.pii.spans import Detector, without_label
from reactune.records import canonical_json

Advice = Literal["allow", "watch", "leave out"]

MAX_VALUES = 100_000  # of a key: beyond these, only rows are counted
BATCH = 2_000
MANY = 0.5  # share of a key's rows with personal data, from which the key itself is personal
IDENTIFYING = 0.9  # share of values that only one user has
PLAIN_NAME = re.compile(r"[A-Za-z_][\w-]{0,39}", re.ASCII)
OTHERS = "*"  # in place of names that may be personal
MAX_WORDS = 3  # a value of more is free text, which is scrubbed rather than withheld
PERSONAL = {
    "EMAIL", "PHONE", "IBAN", "CARD", "ID", "BIRTHDATE", "IP", "COORDINATES", "PERSON", "ADDRESS",
}  # fmt: skip


@dataclass(frozen=True)
class KeyReport:
    """One context key, or one entry of an object such as `user_settings.city`.

    The key `user_settings.*` stands for all entries whose names may themselves be personal.

    `rows` is the share of rows that hold it, `users_per_value` the median number of users that
    share one value, `rare_values` the share of values that fewer than `enough` users share,
    `kinds` the share of its rows in which each kind of personal data was found.
    """

    key: str
    rows: float
    values: int
    users_per_value: float
    rare_values: float
    words: float
    kinds: Mapping[str, float]
    advice: Advice
    reason: str


@dataclass
class _KeyCounts:
    rows: int = 0
    words: int = 0
    users: dict[str, set[str]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, other: "_KeyCounts") -> None:
        """Count the other's rows here, too, as of one key."""
        self.rows += other.rows
        self.words += other.words
        self.kinds.update(other.kinds)
        for name, users in other.users.items():
            self.users.setdefault(name, set()).update(users)


def audit(
    contexts: Iterable[tuple[str, str]],
    *,
    detect: Detector,
    enough: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[KeyReport]:
    """A report on every key in the contexts: pairs of user_key and context_json.

    `enough` is how many users must share a value. Contexts that are no JSON objects are skipped.
    Up to 100,000 different values of a key are counted. A key of fewer users is named only if it
    is one word in which `detect` finds nothing: in `{"friends": {"Anna": 1}}` it is a value, too.
    """
    counts: dict[str, _KeyCounts] = {}
    rows = 0
    for batch in _batches(contexts):
        rows += len(batch)
        _count(batch, counts, detect)
        progress(len(batch))
    shown = _without_personal_names(counts, detect, enough)
    reports = [_report(key, held, rows, enough) for key, held in shown.items()]
    return sorted(reports, key=lambda report: (-report.rows, report.key))


def proposal(reports: Sequence[KeyReport], config: Config, *, enough: int) -> str:
    """The settings of `proposed`, as TOML."""
    sections = proposed(reports, config, enough=enough)
    return "\n\n".join(
        "\n".join([f"[{section}]", *(f"{key} = {json.dumps(each)}" for key, each in keys.items())])
        for section, keys in sections.items()
    )


def proposed(
    reports: Sequence[KeyReport], config: Config, *, enough: int
) -> dict[str, dict[str, Any]]:
    """The settings that follow from the reports, by section; keys keep the order they have there.

    None without reports: of contexts that hold nothing, nothing follows.
    """
    if not reports:
        return {}
    allowed = {report.key.partition(".")[0] for report in reports if report.advice != "leave out"}
    order = [key for key in config.prompt.context_keys if key in allowed]
    keys = [*order, *sorted(allowed - set(order))]
    # An entry cannot be left out of an allowed object, but its values can be withheld.
    watched = sorted(
        report.key
        for report in reports
        if _last(report.key) != OTHERS
        and (
            report.advice == "watch"
            or (report.advice == "leave out" and report.key.partition(".")[0] in allowed)
        )
    )
    settings: dict[str, dict[str, Any]] = {"prompt": {"context_keys": keys}}
    if watched:
        settings["privacy"] = {"rare_keys": watched, "min_users_per_value": enough}
    return settings


def _batches(
    contexts: Iterable[tuple[str, str]],
) -> Iterator[list[tuple[str, Mapping[str, object]]]]:
    batch: list[tuple[str, Mapping[str, object]]] = []
    for user, context_json in contexts:
        try:
            batch.append((user, parse_context(context_json).parts))
        except DataError:
            continue
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _count(
    batch: Sequence[tuple[str, Mapping[str, object]]],
    counts: dict[str, _KeyCounts],
    detect: Detector,
) -> None:
    entries = [
        (user, key, value)
        for user, context in batch
        for key, value in _entries(context)
        if value not in (None, "", [], {})
    ]
    texts = [labelled(key.rpartition(".")[2], _text(value)) for _, key, value in entries]
    found = detect([text.label + text.value for text in texts])
    for (user, key, value), text, spans in zip(entries, texts, found, strict=True):
        held = counts.setdefault(key, _KeyCounts())
        held.rows += 1
        held.words += len(_text(value).split())
        held.kinds.update({span.kind for span in without_label(spans, text.label)})
        for item in value if isinstance(value, list) else [value]:
            name = canonical_json(item) if not isinstance(item, str) else item
            if name in held.users or len(held.users) < MAX_VALUES:
                held.users.setdefault(name, set()).add(user)


def _without_personal_names(
    counts: Mapping[str, _KeyCounts], detect: Detector, enough: int
) -> dict[str, _KeyCounts]:
    """The counts under names that may be shown; those of all others in an object are added up."""
    rare = [key for key, held in counts.items() if len(set().union(*held.users.values())) < enough]
    found = detect([_last(key) for key in rare])
    hidden = {
        key
        for key, spans in zip(rare, found, strict=True)
        if spans or not PLAIN_NAME.fullmatch(_last(key))
    }
    shown: dict[str, _KeyCounts] = {}
    for key, held in counts.items():
        if key not in hidden:
            shown[key] = held
            continue
        top, dot, _ = key.partition(".")
        shown.setdefault(f"{top}.{OTHERS}" if dot else OTHERS, _KeyCounts()).add(held)
    return shown


def _last(key: str) -> str:
    """The name of an entry in its object."""
    return key.partition(".")[2] or key


def _entries(context: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Keys with their values; entries of a flat object count one by one."""
    for key, value in context.items():
        if isinstance(value, dict) and value:
            for name, part in value.items():
                yield f"{key}.{name}", part
        else:
            yield key, value


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_text(item) for item in value)
    return json.dumps(value, ensure_ascii=False)


def _report(key: str, held: _KeyCounts, rows: int, enough: int) -> KeyReport:
    shared = [len(users) for users in held.users.values()]
    kinds = {kind: number / held.rows for kind, number in held.kinds.most_common()}
    rare = sum(users < enough for users in shared) / len(shared)
    words = held.words / held.rows
    advice: Advice
    if _last(key) == OTHERS:
        advice, reason = (
            "leave out",
            f"names that may be personal, each of fewer than {enough} users",
        )
    else:
        advice, reason = _advise(kinds, shared, rare=rare, words=words, enough=enough)
    share = min(1.0, held.rows / rows)  # several entries of one row may stand under one name
    return KeyReport(key, share, len(shared), median(shared), rare, words, kinds, advice, reason)


def _advise(
    kinds: Mapping[str, float], shared: Sequence[int], *, rare: float, words: float, enough: int
) -> tuple[Advice, str]:
    if words > MAX_WORDS:
        return "allow", "free text: personal data in it is replaced"
    personal = [kind for kind, share in kinds.items() if kind in PERSONAL and share >= MANY]
    if personal:
        return "leave out", f"{personal[0]} in {kinds[personal[0]]:.0%} of its rows"
    alone = sum(users == 1 for users in shared) / len(shared)
    if len(shared) > enough and alone >= IDENTIFYING:
        return "leave out", f"{alone:.0%} of its values belong to one user only"
    if rare:
        return "watch", f"{rare:.0%} of its values are shared by fewer than {enough} users"
    return "allow", "its values are common"
