"""Examples as files: Alpaca, KTO and DPO JSONL for any trainer, and one Parquet file for ours.

The same examples give the same bytes, and no file is held in memory whole. The JSONL files hold
texts and labels only: no user, no tip_id.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config.sections import DatasetConfig
from reactune.data.labelled import GROUP_ROWS, in_groups, quoted, write_groups
from reactune.errors import DataError
from reactune.records import PARTS, Example, Part, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection


EXAMPLES = "examples.parquet"
PAIRS_PER_CONTEXT = 8
COLUMNS = tuple(field.name for field in fields(Example))
FORMS = {
    "alpaca": "instruction, input, tip AS output",
    "kto": "prompt, tip AS completion, label",
}


def write_parquet(connection: "DuckDBPyConnection", file: Path) -> None:
    """Write the `examples` that the rules left, with their texts and parts, sorted by tip_id."""
    texts = ", ".join(f"labelled.{name}" for name in COLUMNS)
    query = (
        f"SELECT {texts}, examples.part FROM examples JOIN labelled "
        "ON labelled.rowid = examples.row ORDER BY examples.place"
    )
    write_groups(connection.sql(query).to_arrow_reader(GROUP_ROWS), examples_schema(), file)


def fingerprint(file: Path, settings: DatasetConfig) -> str:
    """SHA-256 of the settings and of every example of a file with its part, sorted by tip_id.

    The settings as canonical JSON; then, of every 20,000 rows, each column: the lengths of its
    texts as 32-bit numbers and their UTF-8 bytes one after the other, or its numbers in 64 bits.
    """
    import pyarrow.parquet as pq

    digest = hashlib.sha256(canonical_json(settings.model_dump(mode="json")).encode())
    with pq.ParquetFile(file) as parquet:
        for group in in_groups(parquet.iter_batches(GROUP_ROWS), GROUP_ROWS):
            for name in examples_schema().names:
                for part in _bytes_of(group.column(name).combine_chunks()):
                    digest.update(part)
    return digest.hexdigest()


def write_jsonl(connection: "DuckDBPyConnection", folder: Path) -> list[str]:
    """Write the JSONL files of the examples that lie in the folder; returns their names.

    The three files of train lie in the folder, those of the other parts in folders named after
    them. Alpaca has the positives: the instruction of the kind, the context as input, the tip as
    output. KTO has every example: the whole prompt with its template, the tip, and whether it was
    liked.
    """
    names = []
    for part in PARTS:
        place = Path() if part == "train" else Path(part)
        (folder / place).mkdir(exist_ok=True)
        for form, columns in FORMS.items():
            names.append((place / f"{form}.jsonl").as_posix())
            connection.execute(
                f"COPY (SELECT {columns} FROM {quoted(folder / EXAMPLES)} WHERE part = '{part}' "
                f"{'AND label' if form == 'alpaca' else ''}) "
                f"TO {quoted(folder / names[-1])} (FORMAT json)"
            )
        names.append((place / "dpo.jsonl").as_posix())
        with (folder / names[-1]).open("w", encoding="utf-8", newline="\n") as lines:
            for same in _by_context(connection, folder / EXAMPLES, part):
                lines.writelines(
                    json.dumps(row, ensure_ascii=False) + "\n" for row in dpo_rows(same)
                )
    return names


def count_pairs(connection: "DuckDBPyConnection", file: Path) -> dict[Part, int]:
    """How many DPO pairs each part of a file of examples gives."""
    found: dict[Part, int] = dict.fromkeys(PARTS, 0)
    rows = connection.execute(f"""
        SELECT part, sum(least({PAIRS_PER_CONTEXT}, liked * disliked))::BIGINT FROM (
            SELECT part, count(*) FILTER (label) AS liked, count(*) FILTER (NOT label) AS disliked
            FROM {quoted(file)} GROUP BY part, kind, context_json) GROUP BY part""").fetchall()
    return found | dict(rows)


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


def read_examples(folder: Path) -> dict[Part, tuple[Example, ...]]:
    """The examples that `write_parquet` wrote, by part, sorted by tip_id.

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


def examples_schema() -> "pa.Schema":
    """The columns of the file of examples."""
    import pyarrow as pa

    kinds = {"label": pa.bool_(), "dwell_ms": pa.int64(), "created_at": pa.timestamp("us", "UTC")}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in (*COLUMNS, "part")])


def _bytes_of(column: "pa.Array") -> Iterator[bytes]:
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_string(column.type):
        yield column.cast(pa.int64()).to_numpy().astype("<i8").tobytes()
        return
    _, ends, texts = column.buffers()
    edges = np.frombuffer(ends, np.int32)[column.offset :][: len(column) + 1]
    yield np.diff(edges).astype("<i4").tobytes()
    yield memoryview(texts or b"")[edges[0] : edges[-1]].tobytes()


def _by_context(
    connection: "DuckDBPyConnection", file: Path, part: Part
) -> Iterator[list[Example]]:
    """Examples of one kind and context together, where both labels are among them.

    Of each label come as many as `pairs` may use, contexts in the order of their first tip_id.
    """
    query = f"""
        WITH placed AS (SELECT *, file_row_number AS place FROM
            read_parquet({quoted(file)}, file_row_number = true) WHERE part = '{part}'),
        ranked AS (SELECT *, min(place) OVER same AS first, min(label) OVER same AS least,
            max(label) OVER same AS most, row_number() OVER (
                PARTITION BY kind, context_json, label ORDER BY place) AS rank
            FROM placed WINDOW same AS (PARTITION BY kind, context_json))
        SELECT {", ".join(COLUMNS)} FROM ranked
        WHERE least <> most AND rank < {2 * PAIRS_PER_CONTEXT} ORDER BY first, place"""
    batches = connection.sql(query).to_arrow_reader(5_000)
    examples = (Example(**row) for batch in batches for row in batch.to_pylist())
    for _, same in groupby(examples, key=attrgetter("kind", "context_json")):
        yield list(same)
