"""Erasing one user of many: seconds, beside DELETE and VACUUM by hand, and grep.

.venv/bin/python bench/erasure.py [--rows 200000]
"""

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reactune.config.settings import Config, load
from reactune.erasure.erase import finish, request_erasure
from reactune.erasure.verify import verify
from reactune.privacy.hashing import HashingKey, HashingKeys, user_key
from reactune.store.database import create_store, writing
from reactune.store.queries import upsert_scores
from record import record

KEY = HashingKey(b"the key of a benchmark, 32 chars")
ROWS_PER_USER = 20
USER = "user-7@example.org"
START = datetime(2026, 3, 2, tzinfo=UTC)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved"
        fill(install(saved), rows)
        megabytes = (saved / "reactune.db").stat().st_size / 1e6
        ours = {**erase(copy(saved, "ours")), "megabytes": megabytes}
        file = copy(saved, "hand").folder / "reactune.db"
        by_hand = timed(lambda: delete_by_hand(file))
        grep = timed(lambda: grep_for(saved, user_key(KEY, USER)))
    print(f"{rows:,} rows, {megabytes:,.0f} MB, {ROWS_PER_USER} of one user; seconds")
    print(f"erase      {ours['erase']:8.2f}   DELETE and VACUUM by hand {by_hand:8.2f}")
    print(f"--verify   {ours['verify']:8.2f}   grep for one hash         {grep:8.2f}")
    print(f"ratios: {ours['erase'] / by_hand:.2f} and {ours['verify'] / grep:.1f}")
    record("erasure", {"rows": rows, **ours, "by_hand": by_hand, "grep": grep})


def install(folder: Path) -> Config:
    """An empty store, and settings for it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "reactune.toml"
    file.write_text(f"[model]\ncache_dir = {json.dumps(str(folder / 'cache'))}\n")
    config = load(file)
    create_store(config.store_url).dispose()
    return config


def copy(saved: Path, name: str) -> Config:
    """The same rows in a folder of their own."""
    shutil.copytree(saved, saved.with_name(name))
    return install(saved.with_name(name))


def fill(config: Config, rows: int) -> None:
    """Write rows of the size of real ones, of all users in turn."""
    words = [f"word{number}" for number in range(2_000)]
    draw = random.Random(1)
    engine = create_store(config.store_url)
    for first in range(0, rows, 1_000):
        batch = []
        for number in range(first, first + 1_000):
            user = f"user-{number % (rows // ROWS_PER_USER)}@example.org"
            context = {"free_text": " ".join(draw.choices(words, k=20))}
            batch.append(
                {
                    "tip_id": f"{draw.getrandbits(128):032x}",
                    "user_key": user_key(KEY, user),
                    "key_id": KEY.key_id,
                    "kind": "focus",
                    "context_json": json.dumps({"v": 1, "context": context}),
                    "tip_content": " ".join(draw.choices(words, k=12)),
                    "created_at": START + timedelta(seconds=number),
                }
            )
        with writing(engine) as connection:
            upsert_scores(connection, batch)
    engine.dispose()


def erase(config: Config) -> dict[str, float]:
    """Seconds of `reactune erase` and of `--verify`."""
    ring, now = HashingKeys(KEY), datetime.now(UTC)

    def request_and_finish() -> None:
        request_erasure(config, ring, [USER], reason="bench", now=now, say=print)
        finish(config, ring, now=now, say=print)

    seconds = {"erase": timed(request_and_finish)}
    seconds["verify"] = timed(lambda: print(verify(config, ring, [USER]).traces or "no trace"))
    return seconds


def delete_by_hand(file: Path) -> None:
    """The same by SQL in sqlite3."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("DELETE FROM tip_scores WHERE user_key = ?", (user_key(KEY, USER),))
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def grep_for(folder: Path, text: str) -> None:
    """A search by the shell, which finds hashes and no texts."""
    # Into a pipe: into /dev/null it would stop at the first match.
    subprocess.run(["grep", "-rcaF", text, folder], stdout=subprocess.PIPE, check=False)


def timed(work: Callable[[], None]) -> float:
    """Seconds of wall time."""
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
