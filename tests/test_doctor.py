"""The doctor before real parts: servers that answer or do not, models that fit or do not."""

import json
import os
import subprocess
import threading
import venv
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa
from packaging.requirements import Requirement

from cli_fixtures import nobody
from places import REPOSITORY
from reactune import doctor
from reactune.config.settings import load
from reactune.errors import ReleaseError
from reactune.model import files
from reactune.model.prompt import load_chat
from reactune.store.database import create_store
from reactune.store.schema import tip_scores
from reactune.train import backends
from registry_fixtures import mlflow_client
from template_fixtures import family_folder

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def config(tmp_path, tmp_path_factory, monkeypatch):
    """Settings of an empty folder; the base model is one whose dimensions are read at once."""
    monkeypatch.chdir(tmp_path)
    base = model_folder(tmp_path_factory.mktemp("models") / "llama")

    def with_settings(*overrides):
        return load(None, (f"model.base={base}", *overrides))

    return with_settings


def findings(config, **environ):
    return {finding.name: finding for finding in doctor.examine(config, environ)}


@contextmanager
def answering(pages):
    """A real HTTP server on a free port; what it does not know is 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write((body or "").encode())

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def model_folder(folder, **changes):
    """The configuration of Llama 3.1 8B, as its publisher states it, without any weights."""
    folder.mkdir(exist_ok=True)
    shape = {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape | changes))
    return folder


def test_a_machine_that_is_set_up_lacks_nothing(config):
    settings = config("model.base=smollm2-135m-instruct")
    create_store(settings.store_url).dispose()
    found = findings(settings, REACTUNE_KEY=KEY)
    assert [line.line() for line in found.values() if line.state == "missing"] == []
    assert "134 million weights" in found["base model"].text
    assert "tips: 0" in found["database"].text


def test_a_missing_key_and_database_are_named_with_what_to_do(config):
    found = findings(config())
    assert found["key"].state == found["database"].state == "missing"
    assert "openssl rand" in found["key"].text
    assert "reactune init" in found["database"].text


def test_the_checks_make_no_file(config, tmp_path):
    doctor.examine(config(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_not_the_one_of_the_stored_users_is_a_warning(config):
    settings = config()
    engine = create_store(settings.store_url)
    with engine.begin() as connection:
        connection.execute(
            tip_scores.insert(),
            {
                "tip_id": "a", "user_key": "k", "key_id": "0ld0ld00", "kind": "x",
                "context_json": "{}", "tip_content": "y", "created_at": datetime.now(UTC),
            },
        )  # fmt: skip
    engine.dispose()
    found = findings(settings, REACTUNE_KEY=KEY)["database"]
    assert (found.state, "0ld0ld00" in found.text) == ("warning", True)


@pytest.mark.postgres
def test_postgres_is_checked_with_its_password_hidden(config, fresh_postgres_url):
    create_store(fresh_postgres_url).dispose()
    url = sa.make_url(fresh_postgres_url).set(password="hush")
    text = url.render_as_string(hide_password=False)
    found = findings(config(f"store.url={text}"), REACTUNE_KEY=KEY)
    assert found["database"].state == found["extra postgres"].state == "ok"
    assert "hush" not in "".join(finding.line() for finding in found.values())


def test_a_postgres_that_is_away_is_missing(config):
    found = findings(config("store.url=postgresql://me:hush@127.0.0.1:1/x"))["database"]
    assert found.state == "missing"
    assert "hush" not in found.text


def test_ollama_is_missing_where_nobody_listens(config):
    found = findings(config("serve.runtime=ollama", "serve.ollama_url=http://127.0.0.1:1"))
    assert found["model server"].state == "missing"
    assert "ollama serve" in found["model server"].text
    assert "extra llamacpp" not in found


def test_ollama_is_named_with_its_version(config):
    with answering({"/api/version": '{"version": "0.40.1"}'}) as url:
        found = findings(config("serve.runtime=ollama", f"serve.ollama_url={url}/"))
    assert found["model server"].line() == f"ok       model server  Ollama 0.40.1 at {url}"


def test_a_server_that_is_not_ollama_is_not_taken_for_it(config):
    with answering({"/api/version": "hello"}) as url:
        found = findings(config("serve.runtime=ollama", f"serve.ollama_url={url}"))
    assert found["model server"].state == "missing"


def test_a_server_of_openais_api_is_named_with_its_base_model(config):
    listed = '{"data": [{"id": "meta/llama"}]}'
    with answering({"/v1/models": listed}) as url:
        settings = ("serve.runtime=openai", f"serve.openai_url={url}")
        found = findings(config(*settings))
        other = findings(config(*settings, "serve.openai_model=meta/other"))
    assert found["model server"].line() == (
        f"ok       model server  meta/llama at {url}, which answers for one version: it loads no "
        "adapters"
    )
    assert other["model server"].state == "missing"
    assert "lists meta/llama; name the one" in other["model server"].text


def test_a_server_of_openais_api_is_compared_with_the_base_of_the_settings(config):
    base = "model.base=meta-llama/Llama-3.2-1B-Instruct"
    card = {"id": "tips", "root": "/models/Llama-3.2-1B-instruct/"}
    for root, extra, state in (
        (card["root"], (), "ok"),
        ("Qwen/Qwen2.5-0.5B", (), "missing"),
        ("Qwen/Qwen2.5-0.5B", ("serve.openai_model=tips",), "ok"),
    ):
        with answering({"/v1/models": json.dumps({"data": [card | {"root": root}]})}) as url:
            settings = ("serve.runtime=openai", f"serve.openai_url={url}", base, *extra)
            found = findings(config(*settings))["model server"]
        assert found.state == state, found
        said = "[model] base is meta-llama/Llama-3.2-1B-Instruct; serve that, or if both are"
        assert (said in found.text) == (state == "missing")


def test_nothing_is_trained_for_a_server_that_holds_one_version_only(config, family):
    folder = family("gemma-2")
    base = files.BaseModel(str(folder), folder, None, "", "")
    with answering({"/v1/models": '{"data": [{"id": "gemma"}]}'}) as url:
        openai = ("serve.runtime=openai", f"serve.openai_url={url}", "serve.openai_model=gemma")
        settings = config(f"model.base={folder}", *openai)
        chat = load_chat(folder, settings.prompt)
        with pytest.raises(ReleaseError, match=r"model server: gemma at .* 2 are needed; start vL"):
            doctor.require_ready(settings, base, chat, trains=True)
        assert doctor._model_server(settings).state == "ok"


def test_a_server_of_openais_api_is_missing_where_nobody_listens(config):
    settings = ("serve.runtime=openai", "serve.openai_url=http://me:hush@127.0.0.1:1")
    found = findings(config(*settings))["model server"]
    assert found.state == "missing"
    assert "See [serve] openai_url" in found.text
    assert "hush" not in found.text


@pytest.mark.parametrize(("stage", "state"), [("active", "ok"), ("deleted", "missing")])
def test_an_mlflow_server_is_asked_for_the_experiment(config, stage, state):
    experiment = {"experiment_id": "7", "name": "reactune", "lifecycle_stage": stage}
    asked = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=reactune"
    pages = {"/health": "OK", asked: json.dumps({"experiment": experiment})}
    with answering(pages) as url:
        found = findings(config(f"registry.tracking_uri={url}"))["MLflow"]
    assert (found.state, stage == "active") == (
        state,
        "experiment reactune is active" in found.text,
    )
    assert findings(config(f"registry.tracking_uri={url}"))["MLflow"].state == "missing"


@pytest.mark.parametrize("body", ["", "{}", '{"status": "ok"}', "<html>", "[]"])
def test_a_server_that_is_no_mlflow_is_no_deleted_experiment(config, body):
    asked = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=reactune"
    with answering({"/health": body, asked: body}) as url:
        found = findings(config(f"registry.tracking_uri={url}"))["MLflow"]
    assert found.state == "missing"
    assert "[registry] tracking_uri" in found.text
    assert "deleted" not in found.text


def test_a_deleted_experiment_and_a_name_that_mlflow_refuses_are_found(config, tmp_path):
    from mlflow.utils.validation import _validate_model_name

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with mlflow_client(uri) as client:
        client.search_experiments()
        assert "is made by the first version" in findings(config())["MLflow"].text
        number = client.create_experiment("reactune", artifact_location=tmp_path.as_uri())
        assert "experiment reactune is active" in findings(config())["MLflow"].text
        client.delete_experiment(number)
    found = findings(config())["MLflow"]
    assert (found.state, f"--experiment-id {number}" in found.text) == ("missing", True)
    for name in ("team/tips", "tips:v2", "..", " ", "a'b"):
        assert findings(config(f"registry.model_name={json.dumps(name)}"))["model name"].state == (
            "missing"
        )
    _validate_model_name("tips v2")  # and what MLflow takes, unless Ollama does not, is no finding
    assert "model name" not in findings(config('registry.model_name="tips v2"'))
    ollama = ('registry.model_name="tips v2"', "serve.runtime=ollama")
    assert "is no name for Ollama" in findings(config(*ollama))["model name"].text


@pytest.fixture
def family(tmp_path_factory):
    """Makes the folder of a base model without weights, with the template of a family."""

    def folder_of(name, template=None):
        folder = family_folder(tmp_path_factory.mktemp("bases") / name, name)
        model_folder(folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return folder_of


def test_a_chat_template_is_rendered_and_described(config, family):
    found = findings(config(f"model.base={family('gemma-3')}"))["chat template"]
    assert found.state == "ok"
    assert "begins with <bos>, ends with <end_of_turn>, takes a system message" in found.text
    base = family("gemma-2")
    found = findings(config(f"model.base={base}"))["chat template"]
    assert (found.state, "takes no system message" in found.text) == ("ok", True)
    found = findings(config(f"model.base={base}", 'prompt.system="Be brief."'))["chat template"]
    assert (found.state, "System role not supported" in found.text) == ("missing", True)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", "<bos> twice"),
        ("{{ raise_exception('not for tips') }}", "not for tips"),
        ("{% if %}", "does not render"),
        (
            "{% for part in messages[0].content if part.text %}{{ part.text }}{% endfor %}",
            "0 times",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_missing(config, family, template, reason):
    found = findings(config(f"model.base={family('gemma-2', template)}"))["chat template"]
    assert (found.state, reason in found.text) == ("missing", True)


def test_a_template_that_drops_the_system_prompt_is_missing_where_there_is_one(config, family):
    base = family("gemma-2", "{{ messages[-1].content }}<end_of_turn>")
    assert findings(config(f"model.base={base}"))["chat template"].state == "ok"
    found = findings(config(f"model.base={base}", 'prompt.system="Be brief."'))["chat template"]
    assert (found.state, "leaves prompt.system out" in found.text) == ("missing", True)


def test_a_base_without_a_template_is_missing_unless_the_settings_name_one(
    config, family, tmp_path
):
    base = family("gemma-2")
    (base / "chat_template.jinja").rename(tmp_path / "named.jinja")
    found = findings(config(f"model.base={base}"))["chat template"]
    assert (found.state, "[prompt] template" in found.text) == ("missing", True)
    named = config(f"model.base={base}", f"prompt.template={tmp_path / 'named.jinja'}")
    assert findings(named)["chat template"].state == "ok"


def test_what_is_missing_is_one_error_before_anything_is_done(config, family):
    folder = family("gemma-2")
    settings = config(
        f"model.base={folder}", 'prompt.system="Be brief."', "registry.model_name=a/b"
    )
    base = files.BaseModel(str(folder), folder, None, "", "")
    chat = load_chat(folder, settings.prompt)
    with pytest.raises(ReleaseError) as refused:
        doctor.require_ready(settings, base, chat, trains=True)
    message = str(refused.value)
    assert message.startswith("nothing was started: chat template: ")
    assert "System role not supported" in message
    assert "'a/b' is no name for MLflow" in message
    assert "\n" not in message


def test_a_file_that_is_no_mlflow_store_is_missing(config, tmp_path):
    (tmp_path / "mlflow.db").write_text("no database at all, but long enough to look like one")
    assert findings(config())["MLflow"].state == "missing"


def test_a_trainer_that_is_not_there_is_missing_with_the_command_that_gets_it(config, tmp_path):
    assert findings(config())["trainer"].line() == "ok       trainer       trl for sft, kto, dpo"
    found = findings(config("train.backend=axolotl", f"train.backend_folder={tmp_path}"))
    assert found["trainer"].state == "missing"
    assert "reactune backend install axolotl" in found["trainer"].text


def test_a_model_name_is_not_resolved_on_the_internet(config):
    found = findings(config("model.base=someone/some-model"))
    assert found["base model"].state == "warning"
    assert "memory" not in found


def test_a_folder_that_holds_no_model_is_missing(config, tmp_path):
    found = findings(config(f"model.base={tmp_path}"))
    assert found["base model"].state == "missing"


def test_a_model_too_large_for_the_machine_is_reported_not_to_fit(config, tmp_path):
    # 400 layers instead of 32: some 85 billion weights, 340 GB in float32.
    folder = model_folder(tmp_path / "huge", num_hidden_layers=400)
    found = findings(config(f"model.base={folder}"))
    assert found["base model"].state == "ok"
    assert found["memory"].state == "missing"
    assert "smaller" in found["memory"].text


def test_training_in_four_bits_is_measured_against_the_memory_of_the_gpu(config, tmp_path):
    python = tmp_path / "axolotl" / "bin" / "python"
    python.parent.mkdir(parents=True)
    made = json.dumps({"digest": backends.digest_of("axolotl")})
    (tmp_path / "axolotl" / backends.MADE).write_text(made)
    train = ("train.load_in_4bit=true", "train.backend=axolotl", f"train.backend_folder={tmp_path}")

    def gpu_memory(gib):
        python.write_text(f'#!/bin/sh\ncase "$*" in *mem_get_info*) echo {gib * 2**30};; esac\n')
        python.chmod(0o755)
        return findings(config(*train))

    found = gpu_memory(80)
    # 8.03 billion weights: 5 GiB packed, where float32 takes 30; the CPU holds them for the gate.
    assert found["GPU memory"].state == "ok"
    assert "80.0 GiB free, training in 4 bits takes up to" in found["GPU memory"].text
    assert "training takes" not in found["memory"].text
    assert gpu_memory(8)["GPU memory"].state == "warning"
    assert gpu_memory(4)["GPU memory"].state == "missing"
    python.write_text("#!/bin/sh\nexit 9\n")
    assert "GPU memory" not in findings(config(*train))
    assert "GPU memory" not in findings(config())


def test_the_weights_of_a_known_model_are_counted_right(config):
    found = findings(config())
    assert "8,030 million weights" in found["base model"].text  # 8.03 B, says its card


def test_memory_within_a_container_is_that_of_its_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = files.available_memory()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 350000\ninactive_file 250000\n")
    assert unlimited > 1_000_000
    assert files.available_memory() == 650_000


def test_a_package_of_another_version_is_missing_with_the_one_found(monkeypatch):
    needs = [Requirement("click>=900"), Requirement("no-such-package-of-ours>=1")]
    monkeypatch.setattr(doctor, "_requirements", lambda extra: needs if extra else [])
    found = doctor._extra("train", is_needed=False)
    assert found.state == "missing"
    assert "click>=900 (found" in found.text
    assert "no-such-package-of-ours>=1" in found.text


def test_a_machine_without_the_training_side_is_one_that_only_serves(monkeypatch, config):
    needs = [Requirement("no-such-package-of-ours>=1")]
    real = doctor._requirements
    monkeypatch.setattr(doctor, "_requirements", lambda n: needs if n == "train" else real(n))
    found = findings(config())
    assert found["extra train"].state == "warning"
    assert {"MLflow", "base model", "memory"} & found.keys() == set()


@pytest.mark.parametrize(
    ("present", "state"), [((), "warning"), (("torch",), "missing"), (("peft", "trl"), "missing")]
)
def test_an_extra_is_installed_if_more_of_it_is_there_than_the_core_brings(
    config, monkeypatch, present, state
):
    """Pygments, say, comes with the core, and is in the extra `train`, too."""
    real = doctor._installed
    by_core = doctor._brought_by(doctor._requirements(""))
    kept = {doctor._plain(name) for name in (*by_core, *present)}
    monkeypatch.setattr(
        doctor, "_installed", lambda name: real(name) if doctor._plain(name) in kept else None
    )
    found = findings(config())["extra train"]
    assert found.state == state
    assert "extra ==" not in found.text
    if present:
        assert f"{present[0]}>=" not in found.text
        assert "accelerate>=1.12, " in found.text
    assert "pip install 'reactune[train]'" in found.text


@pytest.mark.slow
def test_the_core_alone_can_be_installed_set_up_fed_and_examined(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    pins = ["-c", REPOSITORY / "constraints.txt"]
    subprocess.run([programs / "pip", "install", "-q", *pins, REPOSITORY], check=True)
    row = {
        "tip_id": "a", "user_id": "u", "kind": "k", "context_json": "{}", "tip_content": "t",
        "created_at": "2026-11-01T08:00:00Z",
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))

    def reactune(*arguments):
        command = [programs / "reactune", "--set", "serve.runtime=ollama", *arguments]
        environ = {**os.environ, "REACTUNE_KEY": KEY}
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )

    assert reactune("init").returncode == 0
    assert reactune("ingest", "rows.jsonl").stdout.startswith("rows: 1 in, 1 kept, 0 rejected\n")
    examined = reactune("doctor")
    assert "warning  extra train   not installed" in examined.stdout
    assert "tips: 1" in examined.stdout
    assert examined.stderr == ""
    refused = reactune("explain")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "reactune[train]" in refused.stderr


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:s3cret@127.0.0.1:1/mlflow",
        "postgresql://127.0.0.1:1/mlflow?user=u&password=s3cret",
        "http://u:s3cret@127.0.0.1:1",
        "databricks://u:s3cret@profile",
    ],
)
def test_no_check_shows_the_password_of_an_mlflow_or_a_database(config, uri):
    settings = config(f"registry.tracking_uri={uri}", f"store.url={uri}", "serve.runtime=ollama")
    found = findings(settings, REACTUNE_KEY=KEY)
    assert found["MLflow"].state != "ok"
    assert found["database"].state == "missing"
    assert "s3cret" not in "".join(finding.line() for finding in found.values())


def test_a_disk_that_is_too_small_names_the_folder_to_free(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "free_disk", lambda folder: 2**30)
    found = doctor._disk("disk of runs", 3 * 2**30, tmp_path / "runs", setting="run.root")
    assert found.line() == (
        f"missing  disk of runs  1.0 GiB free, about 3.0 needed; free {tmp_path / 'runs'} or name "
        "another run.root"
    )
    assert doctor._disk("disk of runs", 2**30, tmp_path, setting="run.root").state == "ok"


@pytest.mark.parametrize(("below", "text"), [("", "written"), ("a/b", "made in")])
@pytest.mark.parametrize("rights", [0o555, 0o000])
def test_a_folder_that_cannot_be_written_is_named_with_its_setting(
    tmp_path, monkeypatch, rights, below, text
):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    closed = Path("closed")  # relative: nobody sees the folders above
    closed.mkdir(rights)
    with nobody():
        found = doctor._disk("disk of runs", 0, closed / below, setting="run.root")
    assert found.state == "missing"
    assert found.text.startswith(f"{closed / below} cannot be {text}")
    assert found.text.endswith("; allow it, or name another run.root")


def test_extras_are_needed_as_the_settings_use_them(config):
    assert doctor._needed_extras(config("serve.runtime=ollama")) == []
    remote = ("store.url=postgresql://h/db", "run.root=s3://b/runs", "serve.runtime=llamacpp")
    lines = [finding.line() for finding in doctor._needed_extras(config(*remote))]
    assert [line.split()[1:3] for line in lines] == [
        ["extra", "postgres"],
        ["extra", "llamacpp"],
        ["extra", "s3"],
    ]


def test_old_keys_are_listed_after_the_current_one(config):
    settings = config('privacy.old_key_envs=["OLD_KEY"]')
    found = findings(settings, REACTUNE_KEY=KEY, OLD_KEY=KEY[::-1])["key"]
    assert found.state == "ok"
    assert found.text.index("REACTUNE_KEY is set") < found.text.index("older one")
    assert findings(settings, REACTUNE_KEY=KEY)["key"].state == "missing"
