"""Safe labelled rows -> a dataset on disk, or the reason to wait.

The rules are `rules.py`'s, the files `exports.py`'s, the card `card.py`'s; where rows come from
and what is trained on them is not known here.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config import DatasetConfig
from reactune.data.card import write_card
from reactune.data.exports import pairs, write_examples
from reactune.data.rules import PARTS, Example, Part, Progress, choose, split
from reactune.data.summary import DatasetResult, labels_of, reason_to_wait
from reactune.records import Counts, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa


def build(
    batches: Iterable["pa.RecordBatch"],
    settings: DatasetConfig,
    *,
    folder: Path,
    previous_tip_ids: Collection[str] | None = None,
    steps: Mapping[str, Counts] | None = None,
    progress: Progress = lambda step, left: None,
) -> DatasetResult:
    """Choose examples from batches of `deidentify.clean`, split them and write them into `folder`.

    `previous_tip_ids` are those of the dataset trained last; None before the first training.
    `steps` are the counts of earlier steps by name, for the card. A dataset that waits writes
    nothing but its card. Fingerprint and bytes depend on the rows and the settings only, not on
    the order of the rows.
    """
    came = _examples(batches)
    progress("labelled", len(came))
    chosen = choose(came, settings, progress=progress)
    parts, leaked = split(chosen.examples, settings)
    progress("split", sum(map(len, parts.values())))
    result = _result(came, chosen.examples, parts, settings, previous_tip_ids)
    counts = replace(
        result.counts, refused={**chosen.removed, "text stands in an earlier part": leaked}
    )
    result = replace(result, counts=counts)
    folder.mkdir(parents=True, exist_ok=True)
    written = [] if result.waiting else write_examples(parts, folder)
    shown = {**(steps or {}), "rules of the dataset": counts}
    written += write_card(result, came, settings, steps=shown, folder=folder)
    progress("written", counts.went_out)
    return replace(result, files=tuple(written))


def fingerprint(parts: Mapping[Part, Sequence[Example]], settings: DatasetConfig) -> str:
    """SHA-256 over the settings and every example, sorted by tip_id, with its part."""
    digest = hashlib.sha256(canonical_json(settings.model_dump(mode="json")).encode())
    placed = [(example, part) for part in PARTS for example in parts[part]]
    for example, part in sorted(placed, key=lambda pair: pair[0].tip_id):
        row = {**asdict(example), "created_at": example.created_at.isoformat(), "part": part}
        digest.update(b"\n" + canonical_json(row).encode())
    return digest.hexdigest()


def _examples(batches: Iterable["pa.RecordBatch"]) -> list[Example]:
    names = [field.name for field in fields(Example)]
    return [
        Example(*values)
        for batch in batches
        for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True)
    ]


def _result(
    came: Sequence[Example],
    chosen: Sequence[Example],
    parts: Mapping[Part, Sequence[Example]],
    settings: DatasetConfig,
    previous_tip_ids: Collection[str] | None,
) -> DatasetResult:
    held = [example for part in PARTS for example in parts[part]]
    known = frozenset(previous_tip_ids or ())
    new = sum(example.tip_id not in known for example in held)
    after = labels_of(chosen)
    by_part = {part: labels_of(parts[part]) for part in PARTS}
    by_kind = defaultdict(list)
    for example in held:
        by_kind[example.kind].append(example)
    return DatasetResult(
        counts=Counts(len(came), len(held)),
        before=labels_of(came),
        after=after,
        parts=by_part,
        kinds={kind: labels_of(by_kind[kind]) for kind in sorted(by_kind)},
        users={part: len({example.user_key for example in parts[part]}) for part in PARTS},
        pairs={part: len(pairs(parts[part])) for part in PARTS},
        new=new,
        fingerprint=fingerprint(parts, settings),
        waiting=reason_to_wait(
            after, by_part, settings, new=new, is_first=previous_tip_ids is None
        ),
    )
