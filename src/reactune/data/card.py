"""The dataset card: what stands in a dataset, as a page and two pictures for people.

It says what happened; it decides nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reactune import pictures
from reactune.config import DatasetConfig
from reactune.data.exports import EXAMPLES, PAIRS_PER_CONTEXT
from reactune.data.labelled import REFUSED
from reactune.data.summary import DWELL_SECONDS, DatasetResult
from reactune.records import Counts

CARD = "README.md"
REACTIONS, LOSSES = "reactions.svg", "refused.svg"
MAX_KINDS_SHOWN = 6

Dwell = Mapping[str, tuple[Sequence[int], Sequence[int]]]


def write_card(
    result: DatasetResult,
    dwell: Dwell,
    settings: DatasetConfig,
    *,
    steps: Mapping[str, Counts],
    folder: Path,
) -> list[str]:
    """Write the page and the pictures; returns their names.

    `dwell` are positives and negatives that came in, by kind and dwell time; `steps` the counts of
    every step so far, by name.
    """
    text = "\n\n".join(_sections(result, settings, steps)) + "\n"
    reasons = {
        reason: float(count)
        for counts in steps.values()
        for reason, count in counts.refused.items()
        if count
    }
    files = {
        CARD: text,
        REACTIONS: pictures.dwell_times(most_reacted(dwell), DWELL_SECONDS),
        LOSSES: pictures.bars("rows left out", reasons),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return list(files)


def most_reacted(dwell: Dwell) -> Dwell:
    """The kinds with most reactions."""
    number = {kind: sum(liked) + sum(disliked) for kind, (liked, disliked) in dwell.items()}
    shown = sorted(number, key=lambda kind: (-number[kind], kind))[:MAX_KINDS_SHOWN]
    return {kind: dwell[kind] for kind in shown}


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
        "## Whether parts know each other",
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
    found = ", ".join(f"{count:,} {name}" for name, count in result.leaks.items())
    allowed = (
        "; the split is by time, so users may come back" if settings.split_by == "time" else ""
    )
    return f"Looked up in the written file, more than one part holds: {found}{allowed}."


def _rules(settings: DatasetConfig) -> str:
    shares = " / ".join(f"{share:g}" for share in settings.split)
    way = f"by user (seed {settings.seed})"
    if settings.split_by == "time":
        way = "by age, the newest for test"
    return f"""\
* More than {settings.burst_reactions} reactions of a user within {settings.burst_seconds} s: all of
  them are left out, a person reads slower.
* A user who looks equally long at {settings.constant_dwell_reactions} tips of one label or more
  (eight in ten within a factor of {settings.constant_dwell_spread:g}): left out, unless many do.
* A user who gave more than {settings.max_share_of_kind:.0%} of a kind's reactions, where others
  gave some: left out there.
* One text in one context with both labels: the label that more users gave stays, each user's newest
  reaction counting once; a tie removes all. The same text in different contexts stays.
* Exact duplicates (kind, context, text, label) and near duplicates (kind, label, Jaccard index of
  word 3-shingles of {settings.near_duplicate:g} or more): the oldest stays.
* At most {settings.max_per_text} of each kind, label and text: the oldest; at most
  {settings.max_per_user} of each user: the newest; of each kind, one label at most
  {settings.max_imbalance:g} times as often as the other: the newest.
* Split {shares} {way}; no text stands in two parts, the earlier part keeps it."""


FILES = f"""\
* `alpaca.jsonl`: positives as instruction, input, output.
* `kto.jsonl`: prompt, completion, label.
* `dpo.jsonl`: prompt, chosen, rejected, at most {PAIRS_PER_CONTEXT} pairs of one context.
* `validation/` and `test/`: the same of the other parts.
* `{EXAMPLES}`: all examples with tip_id and user_key. It says who reacted to what, under a keyed
  hash, so it stays inside."""


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [_line(head), _line("---" for _ in head), *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return "| " + " | ".join(text.replace("|", r"\|").replace("\n", " ") for text in texts) + " |"
