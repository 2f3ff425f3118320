"""Examples as files: Alpaca, KTO and DPO JSONL for any trainer, and one Parquet file for ours.

The same examples give the same bytes. The JSONL files hold texts and labels only: no user, no
tip_id.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path

from reactune.data.rules import PARTS, Example, Part
from reactune.errors import DataError

EXAMPLES = "examples.parquet"
PAIRS_PER_CONTEXT = 8


def write_examples(parts: Mapping[Part, Sequence[Example]], folder: Path) -> list[str]:
    """Write every file of the examples into the folder; returns their names, relative to it.

    The three JSONL files of train lie in the folder, those of the other parts in folders named
    after them.
    """
    names = [EXAMPLES]
    _write_parquet(parts, folder / EXAMPLES)
    for part in PARTS:
        place = Path() if part == "train" else Path(part)
        (folder / place).mkdir(parents=True, exist_ok=True)
        files: tuple[tuple[str, Iterator[Mapping[str, str | bool]]], ...] = (
            ("alpaca.jsonl", alpaca_rows(parts[part])),
            ("kto.jsonl", kto_rows(parts[part])),
            ("dpo.jsonl", dpo_rows(parts[part])),
        )
        for name, rows in files:
            _write_jsonl(rows, folder / place / name)
            names.append((place / name).as_posix())
    return names


def alpaca_rows(examples: Iterable[Example]) -> Iterator[dict[str, str]]:
    """The positives: the instruction of the kind, the context as input, the tip as output."""
    for example in examples:
        if example.label:
            yield {
                "instruction": example.instruction,
                "input": example.input,
                "output": example.tip,
            }


def kto_rows(examples: Iterable[Example]) -> Iterator[dict[str, str | bool]]:
    """Every example: the whole prompt with its template, the tip, and whether it was liked."""
    for example in examples:
        yield {"prompt": example.prompt, "completion": example.tip, "label": example.label}


def dpo_rows(examples: Iterable[Example]) -> Iterator[dict[str, str]]:
    """Pairs of a liked and a disliked tip that answered the same prompt."""
    for chosen, rejected in pairs(examples):
        yield {"prompt": chosen.prompt, "chosen": chosen.tip, "rejected": rejected.tip}


def pairs(examples: Iterable[Example]) -> list[tuple[Example, Example]]:
    """Positives with negatives of the same kind and context, at most `PAIRS_PER_CONTEXT` of each.

    Every positive meets its first negative before any meets its second, so that the limit costs
    repetition before it costs variety.
    """
    by_context: dict[tuple[str, str], tuple[list[Example], list[Example]]] = defaultdict(
        lambda: ([], [])
    )
    for example in sorted(examples, key=lambda example: example.tip_id):
        liked, disliked = by_context[example.kind, example.context_json]
        (liked if example.label else disliked).append(example)
    found: list[tuple[Example, Example]] = []
    for liked, disliked in by_context.values():
        rounds = (
            (chosen, disliked[(place + shift) % len(disliked)])
            for shift in range(len(disliked))
            for place, chosen in enumerate(liked)
        )
        found += islice(rounds, PAIRS_PER_CONTEXT)
    return found


def read_tip_ids(folder: Path) -> frozenset[str]:
    """The tips of a dataset that was written into the folder; none if it was not."""
    import pyarrow.parquet as pq

    file = folder / EXAMPLES
    if not file.is_file():
        return frozenset()
    return frozenset(pq.read_table(file, columns=["tip_id"]).column("tip_id").to_pylist())


def read_examples(folder: Path) -> dict[Part, tuple[Example, ...]]:
    """The examples that `write_examples` wrote, by part, sorted by tip_id.

    Raises:
        DataError: the folder holds no dataset.
    """
    import pyarrow.parquet as pq

    file = folder / EXAMPLES
    if not file.is_file():
        raise DataError(f"{folder} holds no {EXAMPLES}; the stage `dataset` writes it")
    by_part: dict[Part, list[Example]] = {part: [] for part in PARTS}
    for row in pq.read_table(file).to_pylist():
        by_part[row.pop("part")].append(Example(**row))
    return {part: tuple(examples) for part, examples in by_part.items()}


def _write_parquet(parts: Mapping[Part, Sequence[Example]], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    placed = [(example, part) for part in PARTS for example in parts[part]]
    placed.sort(key=lambda pair: pair[0].tip_id)
    kinds = {"label": pa.bool_(), "dwell_ms": pa.int64(), "created_at": pa.timestamp("us", "UTC")}
    columns = {
        name: pa.array(
            [getattr(example, name) for example, _ in placed], kinds.get(name, pa.string())
        )
        for name in (field.name for field in fields(Example))
    }
    columns["part"] = pa.array([part for _, part in placed], pa.string())
    pq.write_table(pa.table(columns), file, compression="zstd")


def _write_jsonl(rows: Iterable[Mapping[str, str | bool]], file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
