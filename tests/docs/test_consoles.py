"""Every console of the documents can be pasted: its commands run, or are parsed by their programs.

Only parsed: `make` and `pip`; `docker compose`, against `compose.yaml`; `ray start`;
`mlflow server`; what installs or takes Unsloth or two processes of torchrun; and all commands of
the pages in `ONLY_PARSED`. The others run in the tests that `EXECUTED` names, or as guides here.
"""

import argparse
import base64
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from cli_fixtures import KEY, row, write_rows
from console_fixtures import blocks_of, calls_of, commands_of, run_in_shell
from places import BENCH, DOCS, REPOSITORY
from reactune.cli import commands, main
from reactune.cli.session import Session
from reactune.config.settings import Config, load

GUIDES = {
    "backends.md",
    "forgotten.md",
    "gpu.md",
    "model-servers.md",
    "own-table.md",
    "pages.md",
    "postgresql.md",
    "privacy.md",
    "runbook.md",
    "thresholds.md",
    "verdict.md",
}
"""Pages whose `reactune` commands run here, in a folder with some rows and a file of notes."""
LARGE = {
    "backend install unsloth",
    "--set train.backend=unsloth doctor",
    "--set train.backend=unsloth run",
    "--set train.launcher=torchrun --set train.processes=2 run",
}
"""Commands of these pages that need gigabytes or minutes; `test_consoles.py` parses them."""
PLACES = {
    "postgresql://reactune@db.example/tips": "fresh_postgres_url",
    "/models/Llama-3.2-1B-Instruct": "tiny",
}
"""Places that pages name, and the fixtures that stand in for them here."""


EXECUTED = {
    "airflow.md": "test_airflow_page.py",
    "cluster.md": "test_cluster_page.py",
    "operations.md": "test_daily_pages.py",
    "ollama.md": "test_serving_pages.py",
    "own-model.md": "test_serving_pages.py",
    "reward.md": "test_daily_pages.py",
    "service.md": "test_serving_pages.py",
    "tutorial.md": "test_tutorial.py",
    "vllm.md": "test_serving_pages.py",
}
ONLY_PARSED = {"demo.md", "deployment.md", "../README.md", "../CONTRIBUTING.md"}
"""Pages that need Docker, an hour or a checkout of their own; what prepares Docker runs below."""
PAGES = sorted(
    page
    for page in (
        "../README.md",
        "../CONTRIBUTING.md",
        *(file.name for file in DOCS.glob("*.md") if file.name != "commands.md"),
    )
    if commands_of(page)
)
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
FILES = (".jsonl", ".gz", ".parquet")


def reactune_commands_of(page):
    """What stands behind `$ reactune` in the consoles of a page, in their order."""
    return [
        command.removeprefix("reactune ")
        for command in commands_of(page)
        if command.startswith("reactune ")
    ]


@pytest.mark.parametrize("page", sorted(GUIDES))
def test_the_commands_of_a_guide_run_in_their_order(page, request, tmp_path, monkeypatch, capsys):
    names = {
        name: str(request.getfixturevalue(fixture))
        for name, fixture in PLACES.items()
        if name in (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", KEY)
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)
    write_rows(tmp_path / "rows.jsonl", [row(number, user_id=f"u-{number}") for number in range(9)])
    (tmp_path / "notes.jsonl").write_text('{"note": "Call Anna Keller."}\n', encoding="utf-8")
    commands = [each for each in reactune_commands_of(page) if each not in LARGE]
    assert commands
    for command in ("init", "ingest rows.jsonl", *commands):
        for name, ours in names.items():
            command = command.replace(name, ours)
        arguments = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', command)]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, (command, capsys.readouterr())


def reactune(words, folder):
    """Parse as far as the command would be called, with files of these names in the folder."""
    for word in words:
        if word.endswith(FILES):
            (folder / word.rpartition("/")[2]).touch()
    words = [word.rpartition("/")[2] if word.endswith(FILES) else word for word in words]
    words = [re.sub(r"^ID$|^[A-Z]+_ID$", "20261123-101500-3f2a", word) for word in words]
    command, context = commands, commands.make_context("reactune", list(words), obj=Session())
    load(None, tuple(words[at + 1] for at, word in enumerate(words) if word == "--set"))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, rest, parent=context)


def make(words, _folder):
    """Targets are there, and what a benchmark is given are its options."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    targets = [word for word in words if "=" not in word]
    assert set(targets) <= set(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))
    if "NAME" in given:
        file = REPOSITORY / "bench" / f"{given['NAME']}.py"
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(BENCH)
            spec.loader.exec_module(module)
            patch.setattr(sys, "argv", [str(file), *shlex.split(given.get("ARGS", ""))])
            module.arguments()


def pip(words, _folder):
    """Extras are ours."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def docker(words, folder):
    """Options are Compose's, services those of `compose.yaml`, and what runs in them is ours."""
    parser = argparse.ArgumentParser(prog="docker", exit_on_error=False)
    calls = parser.add_subparsers(required=True).add_parser("compose").add_subparsers(dest="call")
    up, build = calls.add_parser("up"), calls.add_parser("build")
    calls.add_parser("ps")
    for option in ("--build", "--detach", "--force-recreate"):
        up.add_argument(option, action="store_true")
    build.add_argument("--pull", action="store_true")
    run = calls.add_parser("run")
    run.add_argument("--rm", action="store_true")
    run.add_argument("--volume", action="append", default=[])
    run.add_argument("service", choices=COMPOSE["services"])
    run.add_argument("program", choices=["reactune"])
    given, rest = parser.parse_known_args(words)
    assert not rest or given.call == "run"
    if given.call == "run":
        at = words.index("reactune")
        reactune(words[at + 1 :], folder)


def click_program(module, name):
    def parse(words, _folder):
        program = getattr(pytest.importorskip(module), name)
        assert words[0] in program.commands
        program.commands[words[0]].make_context(words[0], list(words[1:]))

    return parse


PARSERS = {
    "reactune": reactune,
    "make": make,
    "pip": pip,
    "docker": docker,
    "ray": click_program("ray.scripts.scripts", "cli"),
    "mlflow": click_program("mlflow.cli", "cli"),
}
SHELL = {
    "cat", "cd", "cp", "curl", "do", "done", "echo", "export", "for", "git", "jq", "kill", "mkdir",
    "openssl", "sed", "sleep", "tr", "wait",
}  # fmt: skip
"""Programs of the system. Others that a page calls, such as Airflow's, run in its test."""


def test_every_page_with_a_console_runs_or_is_known_to_be_parsed_only():
    assert set(PAGES) == GUIDES | EXECUTED.keys() | ONLY_PARSED
    for file in EXECUTED.values():
        assert (REPOSITORY / "tests" / "docs" / file).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_console_is_one_of_its_program(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = SHELL if page in ONLY_PARSED else SHELL | {"airflow", "ollama", "python", "vllm"}
    for command in commands_of(page):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        for program, *words in calls_of(command):
            assert program in known | PARSERS.keys(), command
            if program in PARSERS:
                PARSERS[program](words, tmp_path)


@pytest.mark.parametrize("page", sorted(file.name for file in DOCS.glob("*.md")))
def test_the_settings_of_a_page_are_taken(page):
    for block in blocks_of(page, "toml"):
        Config.model_validate({**tomllib.loads(block), "folder": "."})


def test_the_secrets_of_the_page_fill_every_line(tmp_path):
    shutil.copy(REPOSITORY / ".env.example", tmp_path)
    first, *others = commands_of("deployment.md")[:3]
    run_in_shell([first, *others], tmp_path)
    text = (tmp_path / ".env").read_text(encoding="utf-8")
    secrets = dict(re.findall(r"^(\w+)=(.*)$", text, flags=re.MULTILINE))
    assert len(secrets) == len(set(secrets.values())) == 5
    assert len(base64.urlsafe_b64decode(secrets.pop("AIRFLOW_FERNET_KEY"))) == 32
    assert {len(value) for value in secrets.values()} == {64}


def test_the_override_for_vllm_extends_services_and_volumes_that_are_there():
    (block,) = blocks_of("deployment.md", "yaml")
    services = yaml.safe_load(block)["services"]
    vllm = services.pop("vllm")
    assert services.keys() <= COMPOSE["services"].keys()
    assert {each.partition(":")[0] for each in vllm["volumes"]} <= COMPOSE["volumes"].keys()
    options = dict(each.removeprefix("--").partition("=")[::2] for each in vllm["command"])
    settings = load(REPOSITORY / "deploy" / "reactune.toml")
    assert int(options["max-lora-rank"]) >= settings.train.lora_rank
    assert options["model"].rpartition("/")[2].lower() == settings.model.base
