"""Speed of labelling and extracting beside the engine's own export, and memory by rows.

Speed: the same labelled rows and columns as Parquet, by us (label query, counts by reason, keyed
hashes checked, times in UTC) and by the engine's own means with the two conditions alone: DuckDB's
COPY, Python's sqlite3 and PostgreSQL's ADBC driver with pyarrow. Rounds take turns.

Memory: the stages extract and dataset in a process of their own, for each of --memory rows.
"""

import argparse
import hashlib
import json
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reactune.config.sections import (
    DataConfig,
    DatasetConfig,
    LabelConfig,
    ModelConfig,
    PrivacyConfig,
    PromptConfig,
    SourceConfig,
)
from reactune.data.dataset import build
from reactune.data.deidentify import batches as extraction
from reactune.data.labelled import read_batches
from reactune.data.labels.scores import LABELLED_COLUMNS, after_consent, label_counts, read_scores
from reactune.data.labels.sources import open_scores
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import HashingKey
from reactune.store.database import create_store
from record import record

KEY = HashingKey(b"a key of more than 32 characters, for a benchmark")
GROUP = 50_000
WORDS = np.array([f"{a}{b}" for a in "bcdfglmnprst" for b in ("alk", "ead", "ring", "ome", "ush")])
PLAIN = (
    f"SELECT {', '.join(LABELLED_COLUMNS[:-1])}, reaction = 'done' AS label FROM tip_scores "
    "WHERE source = 'llm' AND ((reaction = 'done' AND dwell_ms BETWEEN 15000 AND 120000) "
    "OR (reaction = 'dismiss' AND dwell_ms < 5000))"
)


def scores(rows: int, *, seed: int = 7) -> Iterator[pa.Table]:
    """Rows of `tip_scores`: one in six is evidence, one in two thousand refuses training."""
    draw = np.random.default_rng(seed)
    users = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(max(10, rows // 50))]
    for start in range(0, rows, GROUP):
        size = min(GROUP, rows - start)
        yield _group(draw, users, start, size)


def _group(draw: np.random.Generator, users: list[str], start: int, size: int) -> pa.Table:
    words = WORDS[draw.integers(0, len(WORDS), (size, 18))].tolist()
    seconds = draw.integers(0, 200 * 86_400, size).astype("m8[s]")
    at = pa.array(
        (np.datetime64("2026-03-01") + seconds).astype("M8[us]"), pa.timestamp("us", "UTC")
    )
    reaction = np.array(["done", "dismiss", "snooze", None])[
        np.searchsorted([0.3, 0.55, 0.65], draw.random(size))
    ]
    contexts = (
        f'{{"v":1,"context":{{"free_text":"{w[0]} {w[1]}","open_tasks":["{w[2]} {w[3]}",'
        f'"{w[4]} {w[5]} {number % 97}"],"time_of_day":"{number % 24} h"}}}}'
        for number, w in enumerate(words)
    )
    return pa.table(
        {
            "tip_id": [f"tip-{number:012d}" for number in range(start, start + size)],
            "user_key": [users[number] for number in draw.integers(0, len(users), size).tolist()],
            "key_id": ["00000000"] * size,
            "kind": [f"kind {number}" for number in draw.integers(0, 5, size).tolist()],
            "source": np.where(draw.random(size) < 0.9, "llm", "rule").tolist(),
            "context_json": list(contexts),
            "tip_content": [f"{' '.join(w[6:])}." for w in words],
            "reaction": pa.array(reaction.tolist(), pa.string()),
            "dwell_ms": np.exp(draw.normal(np.log(12_000), 1.2, size)).astype(np.int64),
            "training_allowed": draw.random(size) > 0.0005,
            "created_at": at,
            "shown_at": at,
            "reacted_at": at,
        }
    )


def fill_duckdb(file: Path, rows: int) -> str:
    """A DuckDB file with the rows; its URL."""
    with duckdb.connect(str(file)) as base:
        for number, group in enumerate(scores(rows)):
            base.register("incoming", group)
            verb = "INSERT INTO tip_scores" if number else "CREATE TABLE tip_scores AS"
            base.execute(f"{verb} FROM incoming")
            base.unregister("incoming")
    return f"duckdb://{file}"


def fill_sqlite(file: Path, rows: int) -> str:
    """A store of ours in SQLite with the rows; its URL."""
    url = f"sqlite:///{file}"
    create_store(url).dispose()
    with closing(sqlite3.connect(file)) as base:
        for group in scores(rows):
            times = {"created_at", "shown_at", "reacted_at"}
            columns = [
                [each.strftime("%Y-%m-%d %H:%M:%S.%f") for each in column.to_pylist()]
                if name in times
                else column.to_pylist()
                for name, column in zip(group.column_names, group.columns, strict=True)
            ]
            marks = ", ".join("?" * len(columns))
            names = ", ".join(group.column_names)
            base.executemany(
                f"INSERT INTO tip_scores ({names}) VALUES ({marks})", zip(*columns, strict=True)
            )
        base.commit()
    return url


def fill_postgres(url: str, rows: int) -> str:
    """A store of ours in PostgreSQL with the rows; its URL."""
    from adbc_driver_postgresql import dbapi

    create_store(url).dispose()
    with dbapi.connect(url) as base:
        for group in scores(rows):
            at = group.column_names.index("dwell_ms")
            # The binary COPY wants the very width of the column.
            dwell = group.column(at).cast(pa.int32())
            with base.cursor() as cursor:
                narrow = group.set_column(at, "dwell_ms", dwell)
                cursor.adbc_ingest("tip_scores", narrow, mode="append")
            base.commit()
        with base.cursor() as cursor:
            cursor.execute("ANALYZE tip_scores")
        base.commit()
    return url


def extract_ours(url: str, file: Path) -> int:
    """Label, count and extract as a run does, without what de-identifies; the rows written."""
    source = SourceConfig(url=url)
    with open_scores(source, store_url=url, folder=file.parent) as scores:
        counts = label_counts(scores, LabelConfig())
        written = _write(read_scores(scores, LabelConfig(), source=source, key=KEY), file)
    return after_consent(counts, Counter(), read=written).went_out


def export_duckdb(url: str, file: Path) -> int:
    """DuckDB's own COPY."""
    with duckdb.connect(url.removeprefix("duckdb://"), read_only=True) as base:
        return int(base.execute(f"COPY ({PLAIN}) TO '{file}' (FORMAT parquet)").fetchall()[0][0])


def export_sqlite(url: str, file: Path) -> int:
    """Python's driver and pyarrow: SQLite itself writes no Parquet."""
    names = [name.strip() for name in LABELLED_COLUMNS]

    def batches() -> Iterator[pa.RecordBatch]:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as base:
            cursor = base.execute(PLAIN)
            while rows := cursor.fetchmany(10_000):
                columns = [pa.array(column) for column in zip(*rows, strict=True)]
                yield pa.RecordBatch.from_arrays(columns, names=names)

    return _write(batches(), file)


def export_postgres(url: str, file: Path) -> int:
    """PostgreSQL's binary COPY through its ADBC driver, and pyarrow."""
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(url) as base, base.cursor() as cursor:
        cursor.execute(PLAIN)
        return _write(cursor.fetch_record_batch(), file)


def _write(batches: Any, file: Path) -> int:
    writer, rows = None, 0
    for batch in batches:
        writer = writer or pq.ParquetWriter(file, batch.schema)
        writer.write_batch(batch)
        rows += batch.num_rows
    if writer:
        writer.close()
    return rows


Peer = Callable[[str, Path], int]


def compare(url: str, peer: Peer, *, rounds: int) -> dict[str, float]:
    """Seconds of ours and of the peer, each the median of rounds that take turns."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, run in (("ours", extract_ours), ("peer", peer)):
                started = time.perf_counter()
                rows[name] = run(url, Path(folder) / f"{name}.parquet")
                if number:  # the first round imports libraries and warms caches
                    seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["peer"], strict=True)]
    return {
        "rows out": rows["ours"],
        "rows out, peer": rows["peer"],
        "ours s": round(median["ours"], 3),
        "peer s": round(median["peer"], 3),
        "speed of ours / peer": round(statistics.median(ratios), 3),
        "best of ours / best of peer": round(min(seconds["peer"]) / min(seconds["ours"]), 3),
    }


def remember(rows: int, memory_gb: float) -> dict[str, Any]:
    """Both stages on so many rows of a DuckDB file, in this process: CPU time and peak memory."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run(
            [
                sys.executable,
                __file__,
                "--fill",
                str(folder / "scores.duckdb"),
                "--rows",
                str(rows),
            ],
            check=True,
        )
        source = SourceConfig(url=f"duckdb://{folder / 'scores.duckdb'}")
        settings = DataConfig(memory_gb=memory_gb)
        started = time.process_time()
        chat = load_chat(base_model(ModelConfig()).folder, PromptConfig())
        figures["before MB"] = _peak_mb()
        with open_scores(source, store_url="", folder=folder) as scores:
            batches = read_scores(scores, LabelConfig(), source=source, key=KEY)
            privacy = PrivacyConfig(min_users_per_value=5, rare_keys=("time_of_day",))
            extracted = extraction.extract(
                batches, chat=chat, privacy=privacy, settings=settings, folder=folder
            )
        figures |= {"extract cpu s": _since(started), "extract peak MB": _peak_mb()}
        started = time.process_time()
        built = build.build(
            read_batches(folder / extraction.FILES[0]),
            DatasetConfig(),
            folder=folder / "dataset",
            memory_gb=memory_gb,
        )
        figures |= {"dataset cpu s": _since(started), "peak MB": _peak_mb()}
    return {
        "rows": rows,
        "labelled": extracted.counts.came_in,
        "examples": built.counts.went_out,
        "memory_gb": memory_gb,
        **figures,
    }


def _peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024, 1)


def _since(started: float) -> float:
    return round(time.process_time() - started, 1)


def measure_speed(rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """Every engine: ours beside its own export."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from server_fixtures import free_port, make_cluster, running_postgres

    figures = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        make_cluster(folder)
        port = free_port()
        stack.enter_context(running_postgres(folder, port=port))
        engines: dict[str, tuple[str, Peer]] = {
            "DuckDB": (fill_duckdb(folder / "scores.duckdb", rows), export_duckdb),
            "SQLite": (fill_sqlite(folder / "scores.db", rows), export_sqlite),
            "PostgreSQL": (
                fill_postgres(f"postgresql://postgres@127.0.0.1:{port}/postgres", rows),
                export_postgres,
            ),
        }
        for name, (url, peer) in engines.items():
            figures[name] = compare(url, peer, rounds=rounds)
            print(f"{name:10} {json.dumps(figures[name])}", flush=True)
    return figures


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table, for speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="*", default=[100_000], help="rows, each")
    parser.add_argument("--memory-gb", type=float, default=1.0)
    parser.add_argument("--fill", type=Path, help="only make this DuckDB file")
    parser.add_argument("--remember", type=int, help="only measure this many rows, in this process")
    options = parser.parse_args()
    if options.fill:
        fill_duckdb(options.fill, options.rows)
        return
    if options.remember:
        print(json.dumps(remember(options.remember, options.memory_gb)))
        return
    figures: dict[str, Any] = {"rows": options.rows, "rounds": options.rounds}
    if options.rounds:
        figures["speed"] = measure_speed(options.rows, options.rounds)
    figures["memory"] = []
    for rows in options.memory:
        command = [sys.executable, __file__, "--remember", str(rows)]
        done = subprocess.run(
            [*command, "--memory-gb", str(options.memory_gb)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        figures["memory"].append(json.loads(done.stdout.splitlines()[-1]))
        print(figures["memory"][-1], flush=True)
    packages = ("duckdb", "ibis-framework", "pyarrow", "adbc-driver-postgresql")
    print(f"kept in {record('dataset', figures, packages=packages).name}")


if __name__ == "__main__":
    main()
