"""Safe labelled rows -> a dataset on disk with its card, or the reason to wait for more.

Fingerprint and bytes depend on the rows and the settings only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config.sections import DataConfig, DatasetConfig
from reactune.data.dataset.exports import (
    EXAMPLES,
    PAIRS_PER_CONTEXT,
    count_pairs,
    fingerprint,
    write_jsonl,
    write_parquet,
)
from reactune.data.dataset.rules import (
    BURST_SECONDS,
    CONSTANT_DWELL_REACTIONS,
    CONSTANT_DWELL_SPREAD,
    MAX_IMBALANCE,
    MAX_SHARE_OF_KIND,
    NEAR_DUPLICATE,
    Progress,
    choose,
    count_examples,
    load,
    require_no_leaks,
    split,
)
from reactune.data.labelled import REFUSED, Batches, list_refused, one_row, quoted, workspace
from reactune.pages import pictures
from reactune.records import PARTS, Counts, Part

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LABELS = "count(*) FILTER (label) AS positives, count(*) FILTER (NOT label) AS negatives"
DWELL_BINS = 40
DWELL_SECONDS = (0.1, 300.0)  # edges of the first and the last bin, which hold what is beyond, too
CARD = "README.md"
REACTIONS, LOSSES = "reactions.svg", "refused.svg"
MAX_KINDS_SHOWN = 6
Dwell = Mapping[str, tuple[Sequence[int], Sequence[int]]]
FILES = f"""\
* `alpaca.jsonl`: positives as instruction, input, output.
* `kto.jsonl`: prompt, completion, label.
* `dpo.jsonl`: prompt, chosen, rejected, at most {PAIRS_PER_CONTEXT} pairs of one context.
* `validation/` and `test/`: the same of the other parts.
* `{EXAMPLES}`: all examples with tip_id and user_key. It has each user's reactions, under a keyed
  hash, so it stays inside."""
MEMORY_GB = DataConfig().memory_gb
REFUSALS = "SELECT labelled.*, reason FROM refused JOIN labelled ON labelled.rowid = row"


@dataclass(frozen=True)
class Labels:
    """Positives and negatives."""

    positives: int
    negatives: int


@dataclass(frozen=True)
class DatasetResult:
    """What a dataset holds, what it was made from, and why it waits, if it does."""

    counts: Counts
    before: Labels
    """Labels that came in."""
    after: Labels
    """Labels that the rules leave; the thresholds are about these."""
    parts: Mapping[Part, Labels]
    """Labels of each part, without texts that an earlier part holds."""
    kinds: Mapping[str, Labels]
    """Labels of each kind, over all parts."""
    users: Mapping[Part, int]
    """Users of each part."""
    pairs: Mapping[Part, int]
    """DPO pairs of each part."""
    weights: Mapping[str, float]
    """What a positive and a negative of train weigh, so that both labels weigh the same in sum."""
    leaks: Mapping[str, int]
    """What more than one part holds; where that must not be, there is no dataset."""
    new: int
    """Examples that the last trained dataset did not hold."""
    fingerprint: str
    """SHA-256 of all examples and the settings of the dataset."""
    waiting: str | None
    """What is missing, such as `waiting: 312 of 500 positives`; None: train."""
    files: tuple[str, ...] = ()
    """What was written, relative to the folder."""


def build(
    batches: Batches,
    settings: DatasetConfig,
    *,
    folder: Path,
    previous: Path | None = None,
    steps: Mapping[str, Counts] | None = None,
    note: str = "",
    memory_gb: float = MEMORY_GB,
    progress: Progress = lambda step, left: None,
) -> DatasetResult:
    """Choose examples from batches of `deidentify.clean`, split them and write them into `folder`.

    `previous` is the file of examples of the dataset trained last; None before the first training.
    `steps` are the counts of earlier steps by name, and `note` a line on consent, for the card. A
    dataset that waits writes nothing but its card and the list of what was refused. What is over
    `memory_gb` of rows is on disk meanwhile.

    Raises:
        DataError: two parts share what they must not; memory or disk do not suffice.
    """
    with workspace(folder, memory_gb=memory_gb) as (connection, place):
        counts = Counts(load(connection, batches, settings), 0)
        progress("labelled", counts.came_in)
        before, dwell = count_labels(connection), count_dwell(connection)
        removed = choose(connection, settings, folder=place, progress=progress)
        after = count_labels(connection)
        removed |= split(connection, settings)
        counts = Counts(counts.came_in, count_examples(connection), removed)
        progress("split", counts.went_out)
        file = place / EXAMPLES
        write_parquet(connection, file)
        result = _result(connection, file, settings, counts, (before, after), previous)
        written = [] if result.waiting else _write(connection, file, folder)
        list_refused(connection, REFUSALS, folder / REFUSED)
    shown = {**(steps or {}), "rules of the dataset": counts}
    written += [
        REFUSED,
        *write_card(result, dwell, settings, steps=shown, note=note, folder=folder),
    ]
    progress("written", counts.went_out)
    return replace(result, files=tuple(written))


def reason_to_wait(
    after: Labels,
    parts: Mapping[Part, Labels],
    settings: DatasetConfig,
    *,
    new: int,
    is_first: bool,
) -> str | None:
    """What a training has to wait for, or None.

    Every run needs `min_positives` and `min_negatives`, and both labels in every part; a later
    run also needs `min_new` examples that the last trained dataset did not hold.
    """
    short = []
    if after.positives < settings.min_positives:
        short.append(f"{after.positives:,} of {settings.min_positives:,} positives")
    if after.negatives < settings.min_negatives:
        short.append(f"{after.negatives:,} of {settings.min_negatives:,} negatives")
    if not is_first and new < settings.min_new:
        short.append(f"{new:,} of {settings.min_new:,} new examples")
    if not short:
        empty = [part for part in PARTS if not (parts[part].positives and parts[part].negatives)]
        short = [f"both labels in {part}, which takes more users" for part in empty]
    return f"waiting: {', '.join(short)}" if short else None


def weights_of(labels: Labels) -> dict[str, float]:
    """The weight of an example of each label, by which both labels weigh the same in sum.

    The rarer label gets the weight, the other 1 (KTO, arXiv:2402.01306, equation 8); a trainer
    weights the rows it uses alike.
    """
    liked, disliked = max(labels.positives, 1), max(labels.negatives, 1)
    return {"positive": max(1.0, disliked / liked), "negative": max(1.0, liked / disliked)}


def count_labels(connection: "DuckDBPyConnection") -> Labels:
    """The labels of all examples."""
    return _labels(connection, "'all'").get("all", Labels(0, 0))


def count_parts(connection: "DuckDBPyConnection") -> dict[Part, Labels]:
    """The labels of each part."""
    by_part = _labels(connection, "part")
    return {part: by_part.get(part, Labels(0, 0)) for part in PARTS}


def count_kinds(connection: "DuckDBPyConnection") -> dict[str, Labels]:
    """The labels of each kind."""
    return _labels(connection, "kind")


def count_users(connection: "DuckDBPyConnection") -> dict[Part, int]:
    """The users of each part."""
    query = "SELECT part, count(DISTINCT person) FROM examples GROUP BY part"
    number = dict(connection.execute(query).fetchall())
    return {part: number.get(part, 0) for part in PARTS}


def count_new(connection: "DuckDBPyConnection", file: Path, previous: Path | None) -> int:
    """How many examples of a file are not in an earlier one."""
    known = f"ANTI JOIN {quoted(previous)} USING (tip_id)" if previous else ""
    (number,) = one_row(connection, f"SELECT count(*) FROM {quoted(file)} {known}")
    return int(number)


def count_dwell(connection: "DuckDBPyConnection") -> dict[str, tuple[list[int], list[int]]]:
    """Positives and negatives of each kind by dwell time, in bins of equal ratio."""
    first, last = DWELL_SECONDS
    bins: dict[str, tuple[list[int], list[int]]] = {}
    rows = connection.execute(f"""
        SELECT kind, label, count(*), greatest(0, least({DWELL_BINS - 1}, floor({DWELL_BINS}
            * ln(greatest(dwell_ms, 1) / {first * 1000}) / ln({last / first}))))::INTEGER AS bin
        FROM examples GROUP BY kind, label, bin ORDER BY ALL""").fetchall()
    for kind, label, number, place in rows:
        liked, disliked = bins.setdefault(kind, ([0] * DWELL_BINS, [0] * DWELL_BINS))
        (liked if label else disliked)[place] = number
    return bins


def write_card(
    result: DatasetResult,
    dwell: Dwell,
    settings: DatasetConfig,
    *,
    steps: Mapping[str, Counts],
    folder: Path,
    note: str = "",
) -> list[str]:
    """Write the page and the pictures; returns their names.

    `dwell` are positives and negatives that came in, by kind and dwell time; `steps` the counts of
    every step so far, by name.
    """
    first, *rest = _sections(result, settings, steps)
    consent = [f"Consent: {note}."] if note else []
    text = "\n\n".join([first, *consent, *rest]) + "\n"
    reasons = {
        reason: float(count)
        for counts in steps.values()
        for reason, count in counts.refused.items()
        if count
    }
    files = {
        CARD: text,
        REACTIONS: pictures.draw(pictures.dwell_times(most_reacted(dwell), DWELL_SECONDS)),
        LOSSES: pictures.draw(pictures.bars("rows left out", reasons)),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return list(files)


def most_reacted(dwell: Dwell) -> Dwell:
    """The kinds with most reactions."""
    number = {kind: sum(liked) + sum(disliked) for kind, (liked, disliked) in dwell.items()}
    shown = sorted(number, key=lambda kind: (-number[kind], kind))[:MAX_KINDS_SHOWN]
    return {kind: dwell[kind] for kind in shown}


def _labels(connection: "DuckDBPyConnection", by: str) -> dict[str, Labels]:
    rows = connection.execute(
        f"SELECT {by} AS one, {LABELS} FROM examples GROUP BY one ORDER BY one"
    )
    return {name: Labels(*counts) for name, *counts in rows.fetchall()}


def _sections(
    result: DatasetResult, settings: DatasetConfig, steps: Mapping[str, Counts]
) -> list[str]:
    state = result.waiting or "complete"
    sections = [
        "# Dataset of tips and reactions",
        f"State: {state}. Fingerprint: `{result.fingerprint}`.",
        "## What it holds",
        _table(
            ("part", "users", "positives", "negatives", "DPO pairs"),
            [
                (part, result.users[part], labels.positives, labels.negatives, result.pairs[part])
                for part, labels in result.parts.items()
            ],
        ),
        _table(
            ("kind", "positives", "negatives"),
            [(kind, labels.positives, labels.negatives) for kind, labels in result.kinds.items()],
        ),
        f"So that both labels weigh the same in sum, a positive of train weighs "
        f"{result.weights['positive']:.2f} and a negative {result.weights['negative']:.2f}.",
        f"Labels that came in: {result.before.positives:,} positives and "
        f"{result.before.negatives:,} negatives. After all rules: "
        f"{result.after.positives:,} positives and {result.after.negatives:,} negatives; "
        f"a training needs {settings.min_positives:,} and {settings.min_negatives:,}. "
        f"New since the last training: {result.new:,}.",
        "## What was left out, and why",
        _table(("step", "rows in", "rows out", "left out because", "rows"), _losses(steps)),
        f"![Rows left out, by reason]({LOSSES})",
        f"Which rows the rules of the dataset left out, each with the reason: `{REFUSED}`.",
        f"![Reactions by kind and dwell time]({REACTIONS})",
        "## What parts share",
        _leaks(result, settings),
        "## Rules",
        _rules(settings),
    ]
    if not result.waiting:
        sections += ["## Files", FILES]
    return sections


def _losses(steps: Mapping[str, Counts]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, counts in steps.items():
        lost = {reason: count for reason, count in counts.refused.items() if count} or {"": 0}
        for place, (reason, count) in enumerate(lost.items()):
            step = (name, counts.came_in, counts.went_out) if place == 0 else ("", "", "")
            rows.append((*step, reason, count))
    return rows


def _leaks(result: DatasetResult, settings: DatasetConfig) -> str:
    shared = ", ".join(f"{count:,} {name}" for name, count in result.leaks.items())
    allowed = (
        "; the split is by time, so users may come back" if settings.split_by == "time" else ""
    )
    return f"Checked in the written file: more than one part holds {shared}{allowed}."


def _rules(settings: DatasetConfig) -> str:
    shares = " / ".join(f"{share:g}" for share in settings.split)
    way = f"by user (seed {settings.seed})"
    if settings.split_by == "time":
        way = "by age, the newest for test"
    return f"""\
* More than {settings.burst_reactions} reactions of a user within {BURST_SECONDS} s: all of
  them are left out, a person reads slower.
* A user with nearly the same dwell time at {CONSTANT_DWELL_REACTIONS} tips of one label or more
  (eight in ten within a factor of {CONSTANT_DWELL_SPREAD:g}): left out, unless many do.
* A user who gave more than {MAX_SHARE_OF_KIND:.0%} of a kind's reactions, where others
  gave some: left out there.
* One text in one context with both labels: the label that more users gave stays, each user's newest
  reaction counting once; a tie removes all. The same text in different contexts stays.
* Exact duplicates (kind, context, text, label) and near duplicates (kind, label, Jaccard index of
  word 3-shingles of {NEAR_DUPLICATE:g} or more): the oldest stays.
* At most {settings.max_per_text} of each kind, label and text: the oldest; at most
  {settings.max_per_user} of each user: the newest; of each kind, one label at most
  {MAX_IMBALANCE} times as often as the other: the newest.
* Split {shares} {way}; no text is in two parts, the earlier part keeps it."""


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [_line(head), _line("---" for _ in head), *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return "| " + " | ".join(text.replace("|", r"\|").replace("\n", " ") for text in texts) + " |"


def _result(
    connection: "DuckDBPyConnection",
    file: Path,
    settings: DatasetConfig,
    counts: Counts,
    labels: tuple[Labels, Labels],
    previous: Path | None,
) -> DatasetResult:
    before, after = labels
    parts, new = count_parts(connection), count_new(connection, file, previous)
    return DatasetResult(
        counts=counts,
        before=before,
        after=after,
        parts=parts,
        kinds=count_kinds(connection),
        users=count_users(connection),
        pairs=count_pairs(connection, file),
        weights=weights_of(parts["train"]),
        leaks=require_no_leaks(connection, file, settings),
        new=new,
        fingerprint=fingerprint(file, settings),
        waiting=reason_to_wait(after, parts, settings, new=new, is_first=previous is None),
    )


def _write(connection: "DuckDBPyConnection", file: Path, folder: Path) -> list[str]:
    file.replace(folder / EXAMPLES)
    return [EXAMPLES, *write_jsonl(connection, folder)]
