"""Makes what an installation leaves on disk, for a test that later versions go on with it.

Everything goes through the command line and the HTTP service of whatever reactune is installed, so
it does not matter where its modules are. What lies beside this script was made with reactune 0.1.0
at commit 228c2fe:

    PYTHONPATH=CHECKOUT/src python tests/compatibility/make_compatibility.py

The installation is built in /srv/tips, which must not exist and is removed at the end: manifests
hold digests of files that name their folder, so another name cannot be put in afterwards. The model
is the tests' tiny GGUF. Two calls give the same people, tips of the past, settings and weights;
times, salts, API keys, and what the service drew differ. It takes three minutes on two cores.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import tomllib
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from gguf_fixtures import write_tiny_gguf  # noqa: E402

MADE_WITH = "reactune 0.1.0, commit 228c2fe"
KEYS = {
    "REACTUNE_KEY": "the key of the compatibility test, known to everybody",
    "REACTUNE_OLD_KEY": "the key before it, in the compatibility test alone",
}
# Warnings name the files of libraries, and a run keeps what its trainer says.
QUIET = {"PYTHONWARNINGS": "ignore"}
REACTUNE = (sys.executable, "-c", "from reactune.cli import main; main()")
START = datetime(2026, 3, 2, 8, tzinfo=UTC)
LIKED, DISLIKED = "aaaaaaaabbbbccd", "wwwwwwwwxxxxyyz"
USERS = 40
RUN, SHADOW_REVIEW, TRIAL_REVIEW = (
    "20260801-080000-0000",
    "20260802-080000-0000",
    "20260803-080000-0000",
)
REFUSED, ALLOWED_AGAIN = "user-7", "user-8"
EARLIER, EARLIER_REFUSED = "early-1", "early-2"
REFUSED_OVER_HTTP, ERASED_OVER_HTTP = "user-3", "user-4"

# A settings file with much that is not the default, and a little that is, as `init` writes it.
CHANGED = {
    "store": {"url": "sqlite:///tips.db"},
    "source": {
        "url": "duckdb://warehouse.db",
        "table": "app.tip_scores",
        "columns": {"tip_content": "text", "user_key": "person"},
        "where": "app = 'coach'",
    },
    "data": {"engine": "processes", "workers": 3, "memory_gb": 2.5},
    "ingest": {
        "columns": {"tip_id": "id", "dwell_ms": "seen ms"},
        "max_text_chars": 9_000,
    },
    "privacy": {
        "key_env": "TIPS_KEY",
        "old_key_envs": ["TIPS_KEY_2025", "TIPS_KEY_2024"],
        "retrain_within_days": 14,
        "retention_days": 400,
        "rare_keys": ["open_tasks", "city"],
        "kinds": ["PERSON", "EMAIL", "PHONE", "IBAN", "AGE", "DATE"],
        "models": {"en": "names", "de": "de_core_news_sm"},
    },
    "labels": {
        "source": "coach",
        "positive_dwell_ms": [10_000, 90_000],
        "negative_dwell_below_ms": 4_000,
    },
    "dataset": {
        "min_positives": 120,
        "min_negatives": 130,
        "min_new": 70,
        "max_per_user": 25,
        "max_imbalance": 4.0,
        "near_duplicate": 0.8,
        "split_by": "time",
        "split": [0.7, 0.2, 0.1],
        "seed": 11,
        "burst_seconds": 45,
        "burst_reactions": 15,
        "constant_dwell_reactions": 8,
        "constant_dwell_spread": 1.1,
        "max_share_of_kind": 0.3,
    },
    "prompt": {
        "system": 'You are brief. "Never" rude; say Grüezi.',
        "instruction": "Write a tip of one sentence.",
        "instructions": {"focus": "Help to focus.", "good night": "Help to sleep."},
        "context_keys": ["time_of_day", "mood"],
        "cut_order": ["mood"],
        "max_context_tokens": 128,
    },
    "model": {"base": "models/base.gguf", "cache_dir": "cache"},
    "train": {
        "backend": "axolotl",
        "backend_folder": "backends",
        "launcher": "torchrun",
        "processes": 2,
        "method": "kto",
        "lora_rank": 8,
        "lora_alpha": 24,
        "lora_layers": 6,
        "lora_dropout": 0.05,
        "learning_rate": 1e-4,
        "preference_learning_rate": 5e-05,
        "kto_loss": "kto",
        "epochs": 1.5,
        "batch_size": 16,
        "token_budget": 900_000,
        "time_budget_minutes": 90.0,
        "checkpoint_steps": 10,
        "seed": 3,
        "mlflow_experiment": "curves",
    },
    "gate": {
        "max_examples": 200,
        "max_pairs": 1_500,
        "few_shot": 2,
        "tolerance": 0.01,
        "max_loss_rise": 0.25,
        "alpha": 0.1,
        "seed": 5,
    },
    "export": {
        "quantisation": "f16",
        "parity_prompts": 12,
        "min_learned_kept": 0.95,
        "min_greedy_agreement": 0.85,
    },
    "registry": {
        "tracking_uri": "sqlite:///registry.db",
        "experiment": "coach",
        "model_name": "coach-tips",
    },
    "serve": {
        "runtime": "ollama",
        "ollama_url": "http://127.0.0.1:21434",
        "timeout_seconds": 5.0,
        "champion_timeout_seconds": 8.0,
        "record_seconds": 1.5,
        "top_p": 0.8,
        "max_tokens": 48,
        "threads": 2,
        "parallel": 2,
        "host": "0.0.0.0",
        "port": 9_000,
        "workers": 2,
        "auth": "required",
        "requests_per_second": 50.0,
        "max_tips_waiting": 64,
        "max_tip_chars": 280,
        "unsafe_texts": ["miracle cure", "bet now"],
        "good_tips": {"*": ["Take a walk."], "focus": ["Close one tab.", "Set a timer."]},
    },
    "canary": {
        "shadow_answers": 50,
        "shadow_faults": 0.02,
        "share": 0.02,
        "ramp": [0.05, 0.2],
        "min_units_per_step": 150,
        "min_days": 3.5,
        "decides": "propose",
        "unit": "user",
        "alpha": 0.1,
        "planned_units": 9_000,
        "max_units": 30_000,
        "min_positives": 15,
        "min_negatives": 25,
        "own_weight": 5.0,
        "harm_margin": 0.2,
        "slow_ms": 4_000,
        "max_fallbacks": 0.08,
        "repeat_margin": 0.03,
        "kind_margin": 0.02,
        "holdback": 0.1,
        "window_seconds": 240,
    },
    "run": {"root": "s3://tips/runs", "stale_lock_seconds": 120.0},
}

# The installation whose database and runs are kept. Paths are relative, and so are manifests'.
INSTALLED = """
[model]
base = "tiny.gguf"
cache_dir = "cache"

[privacy]
# Tips of random letters are in no language.
models = {}
old_key_envs = ["REACTUNE_OLD_KEY"]

[prompt]
system = "Be brief."
instruction = "Tip?"
context_keys = ["time_of_day"]
cut_order = ["time_of_day"]
max_context_tokens = 32

[dataset]
min_positives = 40
min_negatives = 40
min_new = 30
split = [0.5, 0.25, 0.25]

[train]
method = "sft"
learning_rate = 0.02
epochs = 4
lora_rank = 4
checkpoint_steps = 4
threads = 1

[gate]
max_examples = 60
few_shot = 1

[export]
parity_prompts = 4
# Random weights: what a rounding changes there says nothing about a trained model.
max_logprob_gap = 1.0
min_greedy_agreement = 0.5

[serve]
max_tokens = 8
threads = 1
parallel = 1
unsafe_texts = ["aaaa"]
good_tips = { "*" = ["Take a walk."] }

[canary]
shadow_answers = 6
shadow_faults = 1.0
share = 0.3
ramp = [0.5]
min_units_per_step = 20
min_days = 0
unit = "tip"
window_seconds = 1
"""


def main():
    """Make everything, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("/srv/tips"), help="Neutral folder.")
    parser.add_argument("--keep", action="store_true", help="Leave that folder there.")
    asked = parser.parse_args()
    if asked.root.exists():
        sys.exit(f"{asked.root} exists; remove it first")
    asked.root.mkdir(parents=True)
    try:
        write_settings(asked.root / "settings")
        facts = live_through(asked.root)
        dump(asked.root / "reactune.db", HERE / "reactune-0.1.sql.gz")
        pack(asked.root, HERE / "run-0.1.tar.gz")
        write_json(HERE / "reactune-0.1.facts.json", facts)
    finally:
        if not asked.keep:
            shutil.rmtree(asked.root)
    for file in sorted(HERE.iterdir()):
        if file.is_file():
            print(f"{file.stat().st_size:>9,} {file.name}")


def write_settings(folder):
    """The settings file with much changed, and what it resolves to."""
    folder.mkdir()
    values = [
        f"--set={section}.{key}={toml(value)}"
        for section, keys in CHANGED.items()
        for key, value in keys.items()
    ]
    call(folder, *values, "init")
    resolved = tomllib.loads(call(folder, "config"))
    for section, keys in CHANGED.items():
        assert {key: resolved[section][key] for key in keys} == keys, section
    shutil.copyfile(folder / "reactune.toml", HERE / "reactune-0.1.toml")
    write_json(HERE / "reactune-0.1.json", resolved)


def toml(value):
    """A value as TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def live_through(root):
    """An installation from its first day to a running trial; what a test has to know of it."""
    write_tiny_gguf(root / "tiny.gguf", context=1024)
    (root / "reactune.toml").write_text(INSTALLED, encoding="utf-8")
    call(root, "init")
    take_in_the_past(root)
    call(root, "consent", "refuse", "--user", REFUSED, "--user", ALLOWED_AGAIN)
    call(root, "consent", "allow", "--user", ALLOWED_AGAIN)
    tokens = make_keys(root)

    for stage in ("extract", "dataset", "train", "evaluate", "export", "register", "deploy"):
        call(root, "stage", stage, "--run", RUN)
    erased, came_back = learned_users(root)[:2]
    call(root, "rollback", "--now")
    call(root, "deploy", "--version", "2")
    with served(root, tokens["app"]) as service:
        for number in range(10):
            ask(service, number, user=f"reader-{number}")
        wait_for(root, "silent_answers", 6)
        time.sleep(2)
    review(root, SHADOW_REVIEW)
    with served(root, tokens["app"]) as service:
        for number in range(10, 90):
            who = {0: erased, 1: came_back}.get(number % 20, f"reader-{number % 30}")
            ask(service, number, user=who)
        again = ask(service, 11, user="reader-11")
        send(service, "POST", "/v1/tips/tip-of-tomorrow-01/shown", code=204)
        early = {"tip_id": "tip-of-tomorrow-01", "reaction": "snooze", "dwell_ms": 4_000}
        send(service, "POST", "/v1/reactions", early, code=202)
        early = {"tip_id": "tip-of-tomorrow-02", "reaction": "done", "dwell_ms": 31_000}
        send(service, "POST", "/v1/reactions", early, code=202)
        path = f"/v1/users/{REFUSED_OVER_HTTP}/training"
        send(service, "PUT", path, {"allowed": False}, code=204)
        ask(service, 90, user=REFUSED_OVER_HTTP)
    time.sleep(2)  # the window in which reactions count
    review(root, TRIAL_REVIEW)
    call(root, "erase", "--user", erased, "--user", came_back, "--reason", "asked by mail")
    call(root, "erase", "--expired")
    # The champion is always too slow now, and a stored tip is shown in its place.
    with served(root, tokens["app"], "--set=serve.champion_timeout_seconds=1e-6") as service:
        back = ask(service, 91, user=came_back)
        for number in range(92, 99):
            ask(service, number, user=f"reader-{number}")
        send(service, "DELETE", f"/v1/users/{ERASED_OVER_HTTP}", code=202)
        live = send(service, "GET", "/v1/rollouts/current", token=tokens["read"])
    said = call(root, "status").splitlines()
    verified = call(root, "erase", "--verify", "--user", erased, code=4).splitlines()
    return {
        "made_with": MADE_WITH,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "root": str(root),
        "environment": KEYS,
        "run": RUN,
        "reviews": [SHADOW_REVIEW, TRIAL_REVIEW],
        "api_keys": tokens,
        "users": {
            "erased": erased,
            "erased_and_came_back": came_back,
            "erasure_waits": ERASED_OVER_HTTP,
            "refused": REFUSED,
            "refused_over_http": REFUSED_OVER_HTTP,
            "allowed_again": ALLOWED_AGAIN,
            "under_the_old_key": EARLIER,
            "refused_under_the_old_key": EARLIER_REFUSED,
        },
        "tips": {
            "asked_twice": {"tip_id": tip_id(11), "user": "reader-11", **again},
            "of_who_came_back": {"tip_id": tip_id(91), **back},
            "early": ["tip-of-tomorrow-01", "tip-of-tomorrow-02"],
        },
        "rollout": live,
        "status": said,
        "verified": [line for line in verified if not line.startswith(("looked", "elsewhere"))],
        "rows": count_rows(root),
    }


def take_in_the_past(root):
    """Rows of a file under the key of today, and two people's under the key before it."""
    rows = list(past(200))
    rows += [
        {**rows[0], "tip_id": "tip-snoozed", "reaction": "snooze", "dwell_ms": 7_000},
        {**rows[2], "tip_id": "tip-ignored", "reaction": None, "dwell_ms": None},
        {**rows[4], "tip_id": "tip-unseen", "reaction": None, "dwell_ms": None, "shown_at": None},
        {**rows[6], "tip_id": "tip-by-hand", "source": "editor"},
        {**rows[8], "tip_id": "tip-not-to-learn", "training_allowed": False},
    ]
    old = [
        {**row, "tip_id": f"old-{row['tip_id']}", "user_id": user}
        for user in (EARLIER, EARLIER_REFUSED)
        for row in past(4, first=1_000 if user == EARLIER else 2_000)
    ]
    before = {"REACTUNE_KEY": KEYS["REACTUNE_OLD_KEY"]}
    for each, environment, options in (
        (old, before, ("--set=privacy.old_key_envs=[]",)),
        (rows, KEYS, ()),
    ):
        file = root / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in each), encoding="utf-8")
        call(root, *options, "ingest", file.name, environment=environment)
        if each is old:
            refuse = ("consent", "refuse", "--user", EARLIER_REFUSED)
            call(root, *options, *refuse, environment=environment)
        file.unlink()


def past(count, *, first=0):
    """Rows to ingest: tips of two alphabets; the first is done, the other dismissed."""
    for number in range(first, first + count):
        draw = random.Random(number)
        is_liked = number % 2 == 0
        letters = LIKED if is_liked else DISLIKED
        words = ("".join(draw.choices(letters, k=draw.randint(3, 5))) for _ in range(5))
        at = START + timedelta(minutes=number)
        yield {
            "tip_id": f"tip-{number}",
            "user_id": user_of(number),
            "kind": "focus",
            "source": "llm",
            "context_json": json.dumps({"time_of_day": draw.choice(["morning", "night"])}),
            "tip_content": " ".join(words),
            "created_at": at.isoformat(),
            "shown_at": at.isoformat(),
            "reaction": "done" if is_liked else "dismiss",
            "dwell_ms": 30_000 if is_liked else 1_000,
        }


def user_of(number):
    """Whose tip that of this number is."""
    return f"user-{number // 2 % USERS}"


def make_keys(root):
    """API keys of every scope, by scope, and one that was revoked."""
    tokens = {
        "app": call(root, "keys", "create", "phone app").strip(),
        "read": call(root, "keys", "create", "prometheus", "--scope", "read").strip(),
        "operator": call(
            root, "keys", "create", "on call", "--scope", "operator", "--scope", "app"
        ).strip(),
        "revoked": call(root, "keys", "create", "lost phone").strip(),
    }
    call(root, "keys", "revoke", tokens["revoked"].split("_")[1])
    return tokens


def learned_users(root):
    """People whose tips were trained on, and who are nobody else of this story."""
    table = pq.read_table(root / "runs" / RUN / "dataset" / "examples.parquet").to_pylist()
    others = {REFUSED, ALLOWED_AGAIN, REFUSED_OVER_HTTP, ERASED_OVER_HTTP}
    numbers = (
        int(row["tip_id"].removeprefix("tip-"))
        for row in table
        if row["part"] == "train" and row["tip_id"].removeprefix("tip-").isdigit()
    )
    return sorted({user_of(number) for number in numbers} - others)


def ask(service, number, *, user):
    """A tip of the service, shown and reacted to as its number says; the answer."""
    body = {
        "user": user,
        "kind": "focus",
        "context": {"time_of_day": "morning"},
        "tip_id": tip_id(number),
    }
    answer = send(service, "POST", "/v1/tips", body)
    if number % 7 == 6:
        return answer  # nobody saw it
    send(service, "POST", f"/v1/tips/{answer['tip_id']}/shown", code=204)
    did = {0: "dismiss", 1: "done", 2: "snooze", 3: "done"}.get(number % 5)
    if did:
        dwell = 30_000 if did == "done" else 1_500
        body = {"tip_id": answer["tip_id"], "reaction": did, "dwell_ms": dwell}
        send(service, "POST", "/v1/reactions", body, code=204)
    return answer


def tip_id(number):
    """An id as an app draws it."""
    return f"compatibility-{number:04}"


def send(service, method, path, body=None, *, code=200, token=None):
    """A request; what was answered."""
    client, known = service
    bearer = {"authorization": f"Bearer {token or known}"}
    answer = client.request(method, path, json=body, headers=bearer)
    assert answer.status_code == code, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


@contextlib.contextmanager
def served(root, token, *options):
    """`reactune serve` while it answers: a client, and the key it is called with."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*REACTUNE, *options, f"--set=serve.port={port}", "serve"]
    with (
        (root / "service.log").open("ab") as log,
        subprocess.Popen(
            command, cwd=root, env={**os.environ, **QUIET, **KEYS}, stderr=log
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        try:
            deadline = time.monotonic() + 120
            while not is_ready(client):
                assert process.poll() is None, (root / "service.log").read_text()
                assert time.monotonic() < deadline, (root / "service.log").read_text()
                time.sleep(0.2)
            yield client, token
        finally:
            process.terminate()
            process.wait(60)


def is_ready(client):
    """Whether the service answers and can write."""
    with contextlib.suppress(httpx.TransportError):
        return client.get("/readyz").is_success
    return False


def review(root, review_id):
    """A review in steps, as a scheduler does it."""
    for step in ("compare", "decide", "promote", "rollback", "wait"):
        call(root, "review", step, "--id", review_id)


def call(folder, *arguments, code=0, environment=KEYS):
    """A command as a process of its own; what it said."""
    began = time.monotonic()
    done = subprocess.run(
        [*REACTUNE, *arguments],
        cwd=folder,
        env={**os.environ, **QUIET, **environment},
        text=True,
        capture_output=True,
    )
    if code is not None and done.returncode != code:
        sys.exit(f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
    said = done.stdout.strip().splitlines()
    name = " ".join(word for word in arguments if not word.startswith("--set"))
    print(f"{time.monotonic() - began:5.1f} s  {name}: {said[-1][:150] if said else ''}")
    return done.stdout


def wait_for(root, table, count):
    """Return when a table holds as many rows."""
    deadline = time.monotonic() + 30
    while count_rows(root)[table] < count:
        assert time.monotonic() < deadline, f"{table}: {count_rows(root)[table]} rows"
        time.sleep(0.2)


def count_rows(root):
    """The rows of every table, and what the values of some columns of `tip_scores` are."""
    with contextlib.closing(sqlite3.connect(root / "reactune.db")) as connection:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        names = [name for (name,) in connection.execute(query)]
        counts = {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names
        }
        for column in ("reaction", "key_id", "source", "arm", "fallback", "training_allowed"):
            values = connection.execute(f"SELECT {column} FROM tip_scores")
            found = Counter("none" if value is None else str(value) for (value,) in values)
            counts[f"tip_scores by {column}"] = dict(sorted(found.items()))
        return counts


def dump(database, file):
    """The database as SQL text."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        data = ("\n".join(connection.iterdump()) + "\n").encode()
    assert not any(place in data for place in machine()), "the database names a folder"
    file.write_bytes(gzip.compress(data, mtime=0))


def pack(root, file):
    """Settings, base model and all runs, without locks, which name process and machine."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("reactune.toml", "tiny.gguf", "runs"):
            for path in sorted([root / name, *(root / name).rglob("*")]):
                if path.is_file() and path.name not in (".lock", ".erasing"):
                    data = path.read_bytes()
                    assert not any(place in data for place in machine()), f"{path} names a folder"
                    entry = tarfile.TarInfo(path.relative_to(root).as_posix())
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    file.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def machine():
    """Folders of this machine that nothing may name."""
    return [str(place).encode() for place in (sys.prefix, Path.home(), Path.cwd(), HERE.parent)]


def write_json(file, value):
    """A file that is read in diffs."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
