"""How fast the pages answer over a database of a million tips, on SQLite and on PostgreSQL.

    python bench/pages.py --rows 1000000

The service is a process of its own, asked over a socket after `reactune run` has counted the days
(`store.summaries`). The time to the first byte of each page is taken; the goal is 300 ms at the
median. `first_ms` is the first opening after the service started and somebody pasted a key into
the login. Counting itself is timed, too: that is what each page would take without the counts.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from reactune.config.sections import ModelConfig, PromptConfig
from reactune.model.files import base_model
from reactune.model.prompt import Chat, load_chat
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.summaries import count_days, recount
from record import record

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from page_fixtures import NOW, fill, many_tips, world
from server_fixtures import answers, free_port, make_cluster, running_postgres, wait_until

GOAL_MS = 300.0
TRIES, PASTING_SECONDS = 15, 2.0
PATHS = (
    "/", "/reactions", "/runs", "/runs/20261117-080000-0000", "/rollout", "/models", "/people",
    "/settings", "/keys",
)  # fmt: skip


def serve(url: str, port: int) -> None:
    """Listen with the pages of a filled database until the process is ended."""
    with world(url, chat()) as made:
        uvicorn.run(made.app, host="127.0.0.1", port=port, log_config=None)


def chat() -> Chat:
    """The prompts of the base model, which a service needs to start."""
    return load_chat(base_model(ModelConfig()).folder, PromptConfig())


def make(url: str, count: int) -> tuple[str, float]:
    """Fill a database; the key to read it with, and the seconds that a count of all days takes."""
    with world(url, chat()) as made:
        fill(made, tips=6_000)
        many_tips(made.engine, count)
        rule = label_rule(made.config.labels)
        with reading(made.engine) as connection:
            started = time.perf_counter()
            count_days(connection, rule)
            counted = time.perf_counter() - started
        recount(made.engine, rule, now=NOW)
        return made.key("read", "operator", "content"), counted


@contextlib.contextmanager
def serving(url: str, log: Path) -> Iterator[str]:
    """A process that listens with the pages; its address."""
    port = free_port()
    command = [sys.executable, __file__, "--serve", url, "--port", str(port)]
    with log.open("wb") as output, subprocess.Popen(command, stderr=output) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(f"{address}/healthz"), process=process, log=log)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def first_byte(client: httpx.Client, path: str) -> float:
    """Milliseconds from a request until the first byte of the page is here."""
    started = time.perf_counter()
    with client.stream("GET", path) as answer:
        next(answer.iter_raw())
        taken = 1e3 * (time.perf_counter() - started)
        assert answer.status_code == 200, (path, answer.status_code)
    return taken


def measure(address: str, token: str) -> dict[str, dict[str, float]]:
    """Milliseconds to the first byte of each page, from the first opening on."""
    pages: dict[str, dict[str, float]] = {}
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        client.get("/login")
        time.sleep(PASTING_SECONDS)
        assert client.post("/login", data={"key": token}).headers["location"] == "/"
        for path in PATHS:
            first, *later = (first_byte(client, path) for _ in range(TRIES + 1))
            pages[path] = {
                "first_ms": round(first, 1),
                "median_ms": round(statistics.median(later), 1),
                "worst_ms": round(max(later), 1),
            }
            print(f"{path:32} {pages[path]}", flush=True)
    return pages


def main() -> None:
    """Measure both databases, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--record", action="store_true", help="keep the figures in bench/results")
    parser.add_argument("--serve", metavar="URL", help="only listen, with this database")
    parser.add_argument("--port", type=int, default=8765)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port)
        return
    figures: dict[str, Any] = {"goal_ms": GOAL_MS, "rows": options.rows}
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
                token, counted = make(url, options.rows)
                with serving(url, folder / f"{database}.log") as address:
                    pages = measure(address, token)
                figures[database] = {"count_all_days_s": round(counted, 2), "pages": pages}
    for which in ("median_ms", "first_ms"):
        worst = max(
            page[which]
            for database in ("sqlite", "postgresql")
            for page in figures[database]["pages"].values()
        )
        figures[f"worst_{which}"] = worst
        print(f"worst {which} {worst:.0f}, goal {GOAL_MS:.0f}")
    if options.record:
        print(record("pages", figures, packages=("sqlalchemy",)))


if __name__ == "__main__":
    main()
