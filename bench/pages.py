"""How fast the pages answer over a database of a million tips, on SQLite and on PostgreSQL.

    python bench/pages.py --rows 1000000

The first byte of each page is timed at a client of the service's own app, after `reactune run` has
counted the days (`store.summaries`). The goal is 300 ms at the median. Counting itself is timed,
too: that is what each page would take without the counts.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reactune.config.sections import ModelConfig, PromptConfig
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.pages.pictures import _drawn
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores
from reactune.store.summaries import count_days, recount
from record import record

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from page_fixtures import NOW, World, client_of, fill, world
from server_fixtures import free_port, make_cluster, running_postgres

GOAL_MS = 300.0
DAYS, BATCH, TRIES = 60, 20_000, 15
PATHS = (
    "/", "/reactions", "/runs", "/runs/20261117-080000-0000", "/rollout", "/models", "/people",
    "/settings", "/keys",
)  # fmt: skip


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Tips of sixty days up to now, of a fifth as many users, and their reactions."""
    draw = random.Random(11)
    for number in range(count):
        at = NOW - timedelta(days=DAYS * number / count)
        reaction = draw.choices(["done", "dismiss", "snooze", None], [25, 30, 10, 35])[0]
        yield {
            "tip_id": f"old-{number}",
            "user_key": f"{draw.randrange(count // 5):064x}",
            "key_id": "bench",
            "kind": draw.choice(["focus", "rest", "headline"]),
            "source": "llm",
            "context_json": "{}",
            "tip_content": "Write the first line of your essay now.",
            "model_version": 1,
            "created_at": at,
            "shown_at": at,
            "reaction": reaction,
            "dwell_ms": draw.randrange(120_000) if reaction else None,
            "reacted_at": at if reaction else None,
            "training_allowed": True,
            "cut": False,
        }


def insert(engine: sa.Engine, count: int) -> None:
    """Write the rows in large batches."""
    batch: list[dict[str, Any]] = []
    for each in rows(count):
        batch.append(each)
        if len(batch) == BATCH:
            with engine.begin() as connection:
                connection.execute(tip_scores.insert(), batch)
            batch = []
    if batch:
        with engine.begin() as connection:
            connection.execute(tip_scores.insert(), batch)


def measure(made: World, count: int) -> dict[str, Any]:
    """Milliseconds to the first byte of each page, and seconds of a count of all days."""
    rule = label_rule(made.config.labels)
    with reading(made.engine) as connection:
        started = time.perf_counter()
        count_days(connection, rule)
        counted = time.perf_counter() - started
    recount(made.engine, rule, now=NOW)
    pages: dict[str, dict[str, float]] = {}
    with client_of(made, made.key("read", "operator", "content")) as client:
        for path in PATHS:
            taken = []
            _drawn.cache_clear()
            for _ in range(TRIES + 1):
                started = time.perf_counter()
                answer = client.get(path)
                taken.append(1e3 * (time.perf_counter() - started))
                assert answer.status_code == 200, (path, answer.status_code)
            first, *later = taken
            pages[path] = {
                "first_ms": round(first, 1),
                "median_ms": round(statistics.median(later), 1),
                "worst_ms": round(max(later), 1),
            }
            print(f"{path:32} {pages[path]}", flush=True)
    return {"rows": count, "count_all_days_s": round(counted, 2), "pages": pages}


def main() -> None:
    """Measure both databases, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--record", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    chat = load_chat(base_model(ModelConfig()).folder, PromptConfig())
    figures: dict[str, Any] = {"goal_ms": GOAL_MS}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        make_cluster(folder)
        with running_postgres(folder, port=port):
            urls = {
                "sqlite": f"sqlite:///{folder / 'reactune.db'}",
                "postgresql": f"postgresql://postgres@127.0.0.1:{port}/postgres",
            }
            for database, url in urls.items():
                print(database, flush=True)
                with world(url, chat) as made:
                    fill(made, tips=6_000)
                    insert(made.engine, options.rows)
                    if database == "postgresql":
                        with made.engine.begin() as connection:
                            connection.exec_driver_sql("ANALYZE")
                    figures[database] = measure(made, options.rows)
    medians = [
        page["median_ms"]
        for database in ("sqlite", "postgresql")
        for page in figures[database]["pages"].values()
    ]
    figures["worst_median_ms"] = max(medians)
    print(f"worst median {max(medians):.0f} ms, goal {GOAL_MS:.0f} ms")
    if options.record:
        print(record("pages", figures, packages=("sqlalchemy",)))


if __name__ == "__main__":
    main()
