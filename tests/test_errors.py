"""Passwords in URLs: hidden in texts, errors, logs, run folders and what MLflow is given."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from reactune.cli.session import where, without_secrets, word_tracebacks
from reactune.config.sections import RegistryConfig, SourceConfig
from reactune.config.settings import Config, deciding, load
from reactune.data.labels.sources import open_scores
from reactune.errors import DataError, ReactuneError, ReleaseError, hide_passwords
from reactune.release.registry import tag_versions
from reactune.runs.folders import StageResult, is_up_to_date, run_stage
from reactune.runs.locks import lease
from reactune.runs.manifest import Manifest
from reactune.runs.remote import RunRoot, fetch
from reactune.web.telemetry import JsonLines

SECRET = "s3cret"
# Each with what is shown of it.
URLS = [
    ("postgresql://u:s3cret@h/db", "postgresql://u:***@h/db"),
    ("postgresql+psycopg://:s3cret@h:5432/db", "postgresql+psycopg://:***@h:5432/db"),
    ("postgresql://u:p@ss/s3cret@h/db", "postgresql://u:***@h/db"),
    ("postgresql://u:s3cret%2Fx%40y@h/db", "postgresql://u:***@h/db"),
    ("postgresql://h/db?user=u&password=s3cret", "postgresql://h/db?user=u&password=***"),
    ("postgresql://h:5432/db?password=x@s3cret", "postgresql://h:5432/db?password=***"),
    ("postgresql://h/db?sslpassword=s3cret&user=u", "postgresql://h/db?sslpassword=***&user=u"),
    ("postgresql://h/db?pass%77ord=s3cret", "postgresql://h/db?pass%77ord=***"),
    ("s3://bucket/runs?key=s3cret&secret=s3cret", "s3://bucket/runs?key=***&secret=***"),
    ("https://host/mlflow?token=s3cret", "https://host/mlflow?token=***"),
    ("https://b.s3.aws/x?X-Amz-Signature=s3cret", "https://b.s3.aws/x?X-Amz-Signature=***"),
    ("sftp://u:s3cret@h/runs", "sftp://u:***@h/runs"),
]
FORMS = [url for url, _ in URLS]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_of_a_url_all_but_the_password_is_shown(url, shown):
    assert hide_passwords(url) == shown
    assert hide_passwords(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/a?page=2",
        "sqlite:////var/x.db",
        "postgresql://u@h:5432/db?sslmode=require&application_name=tips",
        "write to someone@example.org: the ratio is 3:4, lora_rank=8",
        "source.columns = {user_key = 'person'}",
        "--set privacy.key_env=TIPS_KEY",
    ],
)
def test_texts_without_a_password_stay_as_they_are(text):
    assert hide_passwords(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "(psycopg.OperationalError) connection to postgresql://u:s3cret@h/db failed: no route",
        "two: 'postgresql://u:s3cret@h/a','postgresql://u:s3cret@h/b'",
        "HTTPConnectionPool(host='h', port=80): Max retries exceeded with url: /a?token=s3cret",
        "invalid connection: host=h user=u password=s3cret dbname=tips",
        "invalid connection: password = 's3cret with \\'quotes' host=h",
        "connect() got an unexpected keyword: {'user': 'u', 'password': 's3cret'}",
        'storage options: {"key": "id", "aws_secret": "s3cret"}',
    ],
)
def test_messages_of_libraries_lose_the_password_and_keep_the_rest(text):
    shown = hide_passwords(text)
    assert SECRET not in shown
    assert shown.startswith(text[:10])


words = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=12)


@given(st.from_regex(r"[a-z]{1,8}", fullmatch=True), words)
@example("u", "/?#@:")
@example("u", "80/")
def test_no_password_that_sqlalchemy_writes_into_a_url_is_shown(user, rest):
    url = sa.URL.create("postgresql", user, SECRET + rest, "db.example", 5432, "tips")
    message = f"cannot reach {url.render_as_string(hide_password=False)}: no route"
    shown = f"cannot reach postgresql://{user}:***@db.example:5432/tips: no route"
    assert hide_passwords(message) == shown


@given(st.from_regex(r"[a-z]{1,8}", fullmatch=True), words)
def test_a_password_that_nobody_encoded_is_not_shown_either(user, rest):
    for character in "&?;=":  # of these nobody could say where a value ends
        rest = rest.replace(character, "")
    assert SECRET not in hide_passwords(f"x://{user}:{SECRET}{rest}@h/db")
    assert SECRET not in hide_passwords(f"x://{user}:{rest}{SECRET}@h/db")
    assert SECRET not in hide_passwords(f"x://h/db?user={user}&password={rest}{SECRET}")


@pytest.mark.parametrize("url", FORMS)
def test_an_error_of_ours_never_holds_a_password(url):
    error = DataError(f"{url} did not answer; repeat")
    assert SECRET not in str(error) + repr(error) + str(error.args)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("url", FORMS)
def test_tracebacks_hide_passwords_of_other_libraries_errors_even_when_shown_in_full(
    url, monkeypatch
):
    try:
        try:
            raise OSError(f"cannot reach {url}")
        except OSError as cause:
            raise ReactuneError("away") from cause
    except ReactuneError as error:
        shown = where(error)
        monkeypatch.setenv("REACTUNE_TRACEBACKS", "full")
        in_full = where(error)
    assert SECRET not in shown + in_full
    assert "cannot reach" in shown
    assert "cannot reach" in in_full


@pytest.mark.parametrize("url", FORMS)
def test_a_log_hides_passwords_in_what_is_logged(url, caplog, capsys):
    word_tracebacks()
    caplog.handler.addFilter(without_secrets)
    logging.getLogger("other.library").error("cannot reach %s: %s", url, OSError(url))
    assert "cannot reach" in caplog.text
    assert SECRET not in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize("url", FORMS)
def test_the_log_of_the_service_hides_passwords(url):
    record = logging.LogRecord("x", logging.INFO, "", 0, "cannot reach %s", (url,), None)
    line = JsonLines().format(record)
    assert json.loads(line)["message"].startswith("cannot reach ")
    assert SECRET not in line


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=u&password=s3cret",
        "nosuchstore://u:s3cret@h/db",
        "nosuchstore://h/db?token=s3cret",
    ],
)
def test_a_source_that_cannot_be_opened_is_named_without_its_password(url, tmp_path):
    source = SourceConfig(url=url)
    with (
        pytest.raises(ReactuneError) as caught,
        open_scores(source, store_url="", folder=tmp_path),
    ):
        pass
    assert SECRET not in str(caught.value)
    assert url.partition("://")[0] in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:s3cret@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=u&password=s3cret",
        "http://u:s3cret@127.0.0.1:1",
    ],
)
def test_an_mlflow_that_is_away_is_named_without_its_password(uri):
    with pytest.raises(ReleaseError) as caught:
        tag_versions(RegistryConfig(), uri, {})
    assert SECRET not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_a_stage_that_is_missing_or_in_use_names_the_url_without_its_password(tmp_path):
    root = RunRoot(tmp_path / "a", "memory://u:s3cret@h/runs", 300)
    with pytest.raises(DataError, match=r"memory://u:\*\*\*@h/runs/r: stage dataset is not done"):
        fetch(root, "r", "dataset")
    (tmp_path / "b").mkdir()
    other = RunRoot(tmp_path / "b", root.url, 300)
    with (
        lease(root, "r/dataset"),
        pytest.raises(DataError, match=r"memory://u:\*\*\*@h/runs/r/dataset is in use"),
        lease(other, "r/dataset"),
    ):
        pass


@pytest.mark.parametrize("url", FORMS)
def test_a_run_folder_holds_no_password_of_the_settings(url, tmp_path):
    config = load(None, (f"source.url={url}", f"registry.tracking_uri={url}"))
    sections = deciding(config, ("source", "registry"))
    run_stage(tmp_path, "extract", lambda folder: StageResult("done"), inputs={}, settings=sections)
    assert SECRET not in (tmp_path / "extract" / "manifest.json").read_text(encoding="utf-8")


def test_a_manifest_that_an_earlier_version_wrote_with_its_password_is_still_up_to_date():
    url = "postgresql://h/db?user=u&password=s3cret"
    config = Config(source=SourceConfig(url=url), folder=Path("/"))
    recorded = {"source": {"url": url, "table": "tip_scores"}}
    manifest = Manifest(
        stage="extract", outcome="done", summary="", inputs={}, outputs={}, counts={},
        settings=recorded, versions={}, seconds=0, finished_at="",
    )  # fmt: skip
    assert is_up_to_date(manifest, {}, deciding(config, ("source",)))
    recorded["source"]["url"] = "postgresql://elsewhere/db?user=u&password=s3cret"
    assert not is_up_to_date(manifest, {}, deciding(config, ("source",)))
