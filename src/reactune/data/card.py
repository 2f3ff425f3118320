"""The dataset card: what stands in a dataset, as a page and a picture for people.

It says what happened; it decides nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reactune.config import DatasetConfig
from reactune.data.exports import EXAMPLES, PAIRS_PER_CONTEXT
from reactune.data.rules import Example
from reactune.data.summary import DatasetResult
from reactune.records import Counts

CARD = "README.md"
PICTURE = "reactions.png"
MAX_KINDS_SHOWN = 6
SECONDS_SHOWN = (0.1, 300.0)
SECONDS_MARKED = (0.1, 0.5, 1, 2, 5, 15, 30, 60, 120, 300)
LIKED, DISLIKED = "#2a7f62", "#c1443c"


def write_card(
    result: DatasetResult,
    labelled: Sequence[Example],
    settings: DatasetConfig,
    *,
    steps: Mapping[str, Counts],
    folder: Path,
) -> list[str]:
    """Write the page and the picture; returns their names.

    `labelled` are the rows that came in, for the picture; `steps` the counts of every step so
    far, by name.
    """
    text = "\n\n".join(_sections(result, settings, steps)) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8")
    draw_reactions(labelled, folder / PICTURE)
    return [CARD, PICTURE]


def draw_reactions(examples: Iterable[Example], file: Path) -> None:
    """Reactions by kind and dwell time, as PNG; the kinds with most reactions."""
    import numpy as np
    from matplotlib.figure import Figure

    dwells: dict[str, tuple[list[float], list[float]]] = {}
    for example in examples:
        liked, disliked = dwells.setdefault(example.kind, ([], []))
        (liked if example.label else disliked).append(example.dwell_ms / 1000)
    most = Counter({kind: len(liked) + len(disliked) for kind, (liked, disliked) in dwells.items()})
    shown = sorted(most, key=lambda kind: (-most[kind], kind))[:MAX_KINDS_SHOWN]
    figure = Figure(figsize=(8, 1 + 1.8 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    bins = np.geomspace(*SECONDS_SHOWN, 40)
    for axis, kind in zip(axes, shown, strict=False):
        seconds = [np.clip(side, *SECONDS_SHOWN) for side in dwells[kind]]
        axis.hist(seconds, bins, stacked=True, color=[LIKED, DISLIKED], label=["done", "dismissed"])
        axis.set_title(kind.replace("$", r"\$"), loc="left", fontsize=10)
        axis.set_ylabel("tips")
    axes[0].set_xscale("log")
    axes[0].set_xticks(SECONDS_MARKED, [f"{seconds:g}" for seconds in SECONDS_MARKED])
    axes[0].minorticks_off()
    axes[-1].set_xlabel("dwell time in seconds")
    if shown:
        axes[0].legend()
    figure.savefig(file, dpi=100, metadata={"Software": None})


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
        f"Labels that came in: {result.before.positives:,} positives and "
        f"{result.before.negatives:,} negatives. After contradictions, duplicates and the cap: "
        f"{result.after.positives:,} positives and {result.after.negatives:,} negatives; "
        f"a training needs {settings.min_positives:,} and {settings.min_negatives:,}. "
        f"New since the last training: {result.new:,}.",
        "## What was left out, and why",
        _table(("step", "rows in", "rows out", "left out because", "rows"), _losses(steps)),
        f"![Reactions by kind and dwell time]({PICTURE})",
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


def _rules(settings: DatasetConfig) -> str:
    shares = " / ".join(f"{share:g}" for share in settings.split)
    return f"""\
* One text in one context with both labels: the label that more users gave stays, each user's newest
  reaction counting once; a tie removes all. The same text in different contexts stays.
* Exact duplicates (kind, context, text, label) and near duplicates (kind, label, Jaccard index of
  word 3-shingles of {settings.near_duplicate:g} or more): the oldest stays.
* At most {settings.max_per_user} examples of each user: the newest stay.
* Split {shares} by user (seed {settings.seed}); no text stands in two parts, the earlier part keeps
  it."""


FILES = f"""\
* `alpaca.jsonl`: positives as instruction, input, output.
* `kto.jsonl`: prompt, completion, label.
* `dpo.jsonl`: prompt, chosen, rejected, at most {PAIRS_PER_CONTEXT} pairs of one context.
* `validation/` and `test/`: the same of users that train does not know.
* `{EXAMPLES}`: all examples with tip_id and user_key. It says who reacted to what, under a keyed
  hash, so it stays inside."""


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [_line(head), _line("---" for _ in head), *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells)
    return "| " + " | ".join(text.replace("|", r"\|").replace("\n", " ") for text in texts) + " |"
