"""compose.yaml, Dockerfile and .env.example fit each other and the program; no engine is asked."""

import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from click.testing import CliRunner

from places import REPOSITORY
from reactune.cli import commands
from reactune.cli.session import Session
from reactune.config.settings import load
from server_fixtures import tracking_server

TEXT = (REPOSITORY / "compose.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
SETTINGS = load(REPOSITORY / "deploy" / "reactune.toml")
ENVIRONMENT = (REPOSITORY / ".env.example").read_text(encoding="utf-8")


def stages():
    """Each stage of the Dockerfile, and its text."""
    parts = re.split(r"^FROM \S+ AS (\S+)\n", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def targets():
    return {service["build"]["target"] for service in SERVICES.values() if "build" in service}


def is_one_off(service):
    return service["restart"] == "no"


def test_every_service_has_a_health_check_or_ends_by_itself():
    for name, service in SERVICES.items():
        assert is_one_off(service) != ("healthcheck" in service), name
        assert service["restart"] in ("no", "unless-stopped"), name


def test_a_service_waits_until_those_it_needs_are_healthy_or_done():
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            ends = is_one_off(SERVICES[other])
            condition = "service_completed_successfully" if ends else "service_healthy"
            assert wanted["condition"] == condition, f"{name} waits for {other}"


def test_every_image_is_built_from_a_stage_or_named_with_its_version():
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["target"] in stages(), name
            assert (REPOSITORY / service["build"]["context"] / "Dockerfile").is_file()
            assert service["image"] == f"reactune-{service['build']['target']}"
        else:
            assert re.fullmatch(r"[\w/]+:\d+[\w.-]*", service["image"]), name


def test_every_file_and_volume_that_is_mounted_is_there():
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            used.add(source)
            if source.startswith("."):
                assert (REPOSITORY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert (REPOSITORY / COMPOSE["configs"][config["source"]]["file"]).is_file()
    assert set(COMPOSE["volumes"]) <= used


def test_what_the_images_copy_is_there_and_not_ignored():
    ignore = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[0] == "*"
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        for name in line.split():
            assert (REPOSITORY / name).exists()
            assert f"!{name}" in ignore
    for name in re.findall(r"type=bind,source=(\w\S+?),", DOCKERFILE):
        assert (REPOSITORY / name).is_file()
        assert f"!{name}" in ignore


def test_secrets_come_from_the_environment_and_have_no_default():
    required = set(re.findall(r"\$\{(\w+):\?see \.env\.example\}", TEXT))
    optional = set(re.findall(r"\$\{(\w+):-\}", TEXT))
    assert set(re.findall(r"\$\{?(\w+)", TEXT)) == required | optional
    assert dict(re.findall(r"^(\w+)=(.*)$", ENVIRONMENT, flags=re.MULTILINE)) == dict.fromkeys(
        required, ""
    )
    for name in optional:
        assert f"# {name}=" in ENVIRONMENT
    for name in required:
        assert re.search("KEY|PASSWORD|SECRET", name)


def test_no_process_of_ours_runs_as_root():
    for target in targets():
        users = re.findall(r"^USER (\S+)$", stages()[target], flags=re.MULTILINE)
        assert users[-1] == "10001", target
    assert "useradd --uid 10001" in stages()["python"]


def test_ports_are_published_to_this_machine_only():
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def calls():
    """Every command of reactune that an image or a service runs."""
    for text in stages().values():
        for found in re.findall(r'^CMD \["reactune", (.+)\]$', text, flags=re.MULTILINE):
            yield tuple(re.findall(r'"([^"]+)"', found))
    for service in SERVICES.values():
        name, *arguments = service.get("command", ["image's own"])
        if name == "reactune":
            yield tuple(arguments)


@pytest.mark.parametrize("arguments", sorted(set(calls())))
def test_the_commands_of_the_images_exist(arguments):
    answer = CliRunner().invoke(commands, [*arguments, "--help"], obj=Session())
    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith("Usage: ")


def test_the_settings_name_the_services_by_their_names_and_ports():
    mlflow = dict(re.findall(r"--([\w-]+)=(\S+)", " ".join(SERVICES["mlflow"]["command"])))
    assert mlflow["port"] == str(urlsplit(SETTINGS.registry.tracking_uri).port)
    # MLflow answers 403 to a host that it was not told of.
    assert urlsplit(SETTINGS.registry.tracking_uri).netloc in mlflow["allowed-hosts"].split(",")
    urls = (SETTINGS.store.url, SETTINGS.registry.tracking_uri, SETTINGS.serve.ollama_url)
    assert {urlsplit(url).hostname for url in urls} <= set(SERVICES)
    assert (
        urlsplit(SETTINGS.store.url).username
        == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    )
    assert urlsplit(SETTINGS.store.url).password is None
    for name, service in SERVICES.items():
        if "healthcheck" in service and "ports" in service:
            port = service["ports"][0].rpartition(":")[2]
            assert f"http://127.0.0.1:{port}/" in service["healthcheck"]["test"][-1], name
    assert SERVICES["service"]["ports"][0].endswith(f":{SETTINGS.serve.port}")


def test_every_database_that_a_service_names_is_made():
    made = set(
        re.findall(r"CREATE DATABASE (\w+)", (REPOSITORY / "deploy/databases.sql").read_text())
    )
    made.add(SERVICES["postgres"]["environment"]["POSTGRES_USER"])
    named = set(re.findall(r"@postgres/(\w+)", TEXT + SETTINGS.store.url))
    assert named == made


def test_data_lies_in_volumes_shared_by_all_services_that_need_it():
    for name in ("champion", "trainer", "airflow-scheduler"):
        assert "data:/data" in SERVICES[name]["volumes"]
    assert "data:/data:ro" in SERVICES["service"]["volumes"]
    assert SETTINGS.run_root.is_relative_to("/data")
    assert Path(SETTINGS.model.cache_dir).is_relative_to("/data")


def test_images_and_makefile_pin_the_same_versions():
    makefile = dict(
        re.findall(r"^(\w+) := (\S+)$", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    )
    images = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, flags=re.MULTILINE))
    assert images["TORCH"] == makefile["TORCH"]
    assert images["SMOLLM"] == makefile["SMOLLM"]
    assert f"build=={makefile['BUILD']}" in stages()["wheel"]


def test_the_images_take_extras_that_exist_and_the_service_takes_no_pytorch():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    taken = {
        name: re.search(r'"\$1\[([\w,]+)\]"', text)[1].split(",")
        for name, text in stages().items()
        if "$1[" in text
    }
    assert set(taken) == {"service", "trainer"}
    assert set(taken["trainer"]) <= set(extras)
    assert set(taken["service"]) == {"llamacpp", "pages", "postgres", "reward", "s3"}
    assert "torch" not in stages()["service"]
    trainer = stages()["trainer"]
    assert trainer.index("torch==") < trainer.index("$1[")


def test_shell_commands_of_services_are_complete():
    for service in SERVICES.values():
        if service.get("command", [""])[0] == "sh":
            for part in service["command"][2].split("&&"):
                assert shlex.split(part)[0] in ("airflow", "reactune")


@pytest.mark.slow
@pytest.mark.postgres
def test_mlflow_on_postgresql_answers_by_the_name_it_has_here_and_by_no_other(
    fresh_postgres_url, tmp_path
):
    options = [part for part in SERVICES["mlflow"]["command"] if "allowed-hosts" in part]
    store = fresh_postgres_url.replace("postgresql", "postgresql+psycopg", 1)
    assert SERVICES["mlflow"]["command"][4].startswith("--backend-store-uri=postgresql+psycopg://")
    with tracking_server(tmp_path / "mlflow", store=store, options=options) as (url, _):
        asked = f"{url}/api/2.0/mlflow/experiments/search"
        here = urlsplit(SETTINGS.registry.tracking_uri).netloc
        codes = {
            host: httpx.get(asked, params={"max_results": 1}, headers={"Host": host}).status_code
            for host in (here, "somebody.example:5000")
        }
    assert codes == {here: 200, "somebody.example:5000": 403}
