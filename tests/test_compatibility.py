"""What version 0.1.0 left on disk: this version opens it and goes on with it.

`tests/compatibility/README.md` says what there is and how it was made.
"""

import gzip
import json
import re
import sqlite3
import tarfile
import tomllib
from contextlib import closing
from datetime import UTC, date, datetime

import pytest
from fastapi.testclient import TestClient

from places import TESTS
from reactune import deployment
from reactune.cli import main
from reactune.config.settings import REMOVED, load, resolved, without_passwords
from reactune.data.dataset.exports import read_examples
from reactune.errors import DataError
from reactune.model.prompt import load_chat, rebuild
from reactune.privacy.consent import user_statuses
from reactune.privacy.hashing import load_hashing_keys
from reactune.records import STAGES
from reactune.runs.folders import all_runs
from reactune.runs.remote import run_root
from reactune.runs.summaries import summarise
from reactune.service.api_keys import all_keys, make_key, recognise
from reactune.service.state import close_service
from reactune.status import status
from reactune.store.database import create_store, open_store, opened_store, reading
from reactune.store.queries import current_rollout
from reactune.web.api import create_app
from reactune.web.pages import PAGES
from serving_fixtures import ModelServer, service_of

ARTEFACTS = TESTS / "compatibility"
FACTS = json.loads((ARTEFACTS / "reactune-0.1.facts.json").read_text(encoding="utf-8"))
RUN, USERS = FACTS["run"], FACTS["users"]
MADE_AT = datetime.fromisoformat(FACTS["made_at"])


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Database, settings, run and reviews of version 0.1.0, with its tables brought up to date."""
    dump = gzip.decompress((ARTEFACTS / "reactune-0.1.sql.gz").read_bytes()).decode()
    with closing(sqlite3.connect(tmp_path / "reactune.db")) as connection:
        connection.executescript(dump.replace(FACTS["root"], str(tmp_path)))
    with tarfile.open(ARTEFACTS / "run-0.1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    url = f"sqlite:///{tmp_path / 'reactune.db'}"
    with pytest.raises(DataError, match="run `reactune init` to bring them up to date"):
        open_store(url)
    create_store(url).dispose()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)
    for name, secret in FACTS["environment"].items():
        monkeypatch.setenv(name, secret)
    return tmp_path


@pytest.fixture
def call(installation, capsys):
    """Call the command line in that folder; its lines come back, and its exit code is checked."""

    def run(*arguments, code=0):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert caught.value.code == code, out + err
        return out.splitlines()

    return run


def numbers_in(line):
    """The label and every number, date and id of a line, whose other words may change."""
    return line.split()[0], re.findall(r"[\d][\w:.,%-]*", line)


def manifests_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("manifest.json")}


def test_every_setting_that_is_left_means_what_it_did(caplog):
    values = json.loads((ARTEFACTS / "reactune-0.1.json").read_text(encoding="utf-8"))
    config = load(ARTEFACTS / "reactune-0.1.toml")
    removed = {
        f"{section}.{key}": values[section].pop(key)
        for section, key in (name.split(".") for name in REMOVED)
    }
    # Settings that came later are in no file of then.
    for now in (without_passwords(config), tomllib.loads(resolved(config))):
        known = {section: {key: now[section][key] for key in values[section]} for section in values}
        assert known == values
    (warning,) = caplog.messages
    named = {
        name: value
        for name, value in removed.items()
        if f"{name} = {value} (in force: {REMOVED[name]})" in warning
    }
    standard = {"ingest.batch_rows", "train.beta"}  # commented out in that file
    assert named.keys() == removed.keys() - standard


def test_the_settings_that_a_run_was_done_with_can_be_read_back(installation):
    recorded = json.loads((installation / "runs" / RUN / "config.json").read_text("utf-8"))
    plain = {
        (section, key): value
        for section, keys in recorded.items()
        for key, value in keys.items()
        if not isinstance(value, dict)
    }
    overrides = (f"{section}.{key}={json.dumps(value)}" for (section, key), value in plain.items())
    values = without_passwords(load(None, tuple(overrides)))
    left = {name: value for name, value in plain.items() if ".".join(name) not in REMOVED}
    assert {(section, key): values[section][key] for section, key in left} == left


def test_a_version_of_then_is_asked_as_it_was_trained(installation):
    config = load(installation / "reactune.toml")
    run = installation / "runs" / RUN
    chat = load_chat(run / "export" / "prompt", config.prompt, privacy=config.privacy)
    parts = read_examples(run / "dataset").values()
    examples = [example for part in parts for example in part]
    assert len(examples) > 20
    for example in examples:
        assert rebuild(chat, example.kind, example.context_json).text == example.prompt


def test_status_reports_what_it_reported_then(installation):
    lines = status(load(), now=MADE_AT)
    assert list(map(numbers_in, lines)) == list(map(numbers_in, FACTS["status"]))


def test_what_is_live_is_read(installation):
    with opened_store(load().store_url) as engine, reading(engine) as connection:
        rollout = current_rollout(connection)
    facts = FACTS["rollout"]
    assert (rollout.rollout_id, rollout.champion, rollout.challenger) == (
        facts["rollout_id"], facts["champion"], facts["challenger"],
    )  # fmt: skip
    assert (rollout.phase, rollout.share, rollout.salt, rollout.unit, rollout.planned_units) == (
        facts["phase"], facts["share"], facts["salt"], facts["unit"], facts["planned_units"],
    )  # fmt: skip
    assert rollout.opened_at == datetime.fromisoformat(facts["opened_at"])
    assert rollout.share_since == datetime.fromisoformat(facts["share_since"])
    names = [model.name for model in deployment.versions(load())]
    assert names == ["tip-generator:v1", "tip-generator:v2"]
    assert all(model.gguf.is_file() for model in deployment.versions(load()))


def test_no_stage_is_done_again(installation, call):
    call("erase")  # which amends manifests
    before = manifests_in(installation)
    for stage in STAGES:
        (line,) = [
            each for each in call("stage", stage, "--run", RUN) if each.startswith(f"{stage:9} ")
        ]
        # The runs of then have no reward, and are not done again for it.
        assert line.endswith("earlier version" if stage == "reward" else "(done before)")
    assert manifests_in(installation) == before


def test_a_review_of_then_repeats_what_it_decided(installation, call):
    before = manifests_in(installation)
    for review in FACTS["reviews"]:
        for step in ("compare", "decide", "wait"):
            folder = installation / "runs" / "reviews" / review / step
            summary = json.loads((folder / "manifest.json").read_text("utf-8"))["summary"]
            (line,) = call("review", step, "--id", review)
            assert numbers_in(line) == numbers_in(f"{step} {summary}")
    assert manifests_in(installation) == before


def test_an_erasure_that_was_open_is_finished_and_what_was_erased_is_not_there(call):
    user = USERS["erased"]
    found = call("erase", "--verify", "--user", user, code=4)
    (erasure_id,) = re.findall(r"erasure (\S+)", FACTS["verified"][0])
    assert any(erasure_id in line for line in found)  # as not finished
    assert found[-1].split()[1:] == FACTS["verified"][-1].split()[1:]
    (line,) = call("erase")
    assert re.search(r"\b7 rows\b.*\b1 runs\b", line)
    for erased in (user, USERS["erasure_waits"]):
        assert call("erase", "--verify", "--user", erased)[-1].split()[1:] == ["nothing"]
    (nothing,) = call("erase")
    assert "nothing" in nothing


def test_an_erasure_that_is_finished_now_brings_the_date_of_the_next_training_forward(call):
    assert {due.date() for due in deployment.to_replace(load()).values()} == {date(2026, 12, 28)}
    call("--set", "privacy.retrain_within_days=3", "erase")
    dates = deployment.to_replace(load())
    assert {version: due.date() for version, due in dates.items()} == {2: date(2026, 12, 1)}


def test_a_rollout_of_then_is_stopped_at_once(call):
    (line,) = call("rollback", "--now")
    assert "version 1" in line
    with opened_store(load().store_url) as engine, reading(engine) as connection:
        stopped = current_rollout(connection)
    assert (stopped.champion, stopped.challenger, stopped.share) == (1, None, 0)


def test_api_keys_of_then_are_recognised(installation):
    with opened_store(load().store_url) as engine:
        keys = {key.key_id: key for key in all_keys(engine)}
    found = {name: recognise(token, keys) for name, token in FACTS["api_keys"].items()}
    assert found.pop("revoked") is None
    assert {name: set(key.scopes) for name, key in found.items()} == {
        "app": {"app"}, "read": {"read"}, "operator": {"operator", "app"},
    }  # fmt: skip


def test_who_refused_then_is_left_out_now(installation):
    config = load()
    hashing_keys = load_hashing_keys(config.privacy, FACTS["environment"])
    with opened_store(config.store_url) as engine, reading(engine) as connection:
        statuses = user_statuses(connection, hashing_keys)
    found = {name: statuses.of_id(user) for name, user in USERS.items()}
    assert {name for name, status in found.items() if status.training_allowed} == {
        "allowed_again", "under_the_old_key",
    }  # fmt: skip
    before = datetime(2026, 1, 1, tzinfo=UTC)
    assert {name for name, status in found.items() if status.refuses(before)} == {
        "erased", "erased_and_came_back", "erasure_waits",
    }  # fmt: skip


def test_its_runs_and_decisions_are_shown_on_the_pages(installation, chat):
    config = load(installation / "reactune.toml")
    with opened_store(config.store_url) as engine:
        summarise(engine, run_root(config), all_runs(config.run_root))
        server = ModelServer(dict.fromkeys(range(1, 9), "a tip"))
        service = service_of(engine, chat, server)
        key = make_key(engine, "reader", ["read"], now=datetime.now(UTC))
        with TestClient(create_app(service, config), base_url="http://127.0.0.1:8765") as client:
            client.post("/login", data={"key": key})
            pages = {path: client.get(path) for path in (*PAGES.values(), f"/runs/{RUN}")}
        close_service(service)
    assert {page.status_code for page in pages.values()} == {200}
    assert "preference accuracy" in pages[f"/runs/{RUN}"].text
    assert RUN in pages["/models"].text
