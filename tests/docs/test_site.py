"""The documentation site builds without a warning, needs no other address, and its commands run."""

import json
import os
import re
import subprocess
import sys

import pytest

from cli_fixtures import KEY, row, write_rows
from places import REPOSITORY
from reactune.cli import main

GUIDES = {
    "forgotten.md": 4,
    "own-model.md": 1,
    "own-table.md": 3,
    "pages.md": 2,
    "postgresql.md": 2,
    "runbook.md": 2,
    "thresholds.md": 4,
    "verdict.md": 1,
}
"""Pages whose consoles run here, and how many commands they show at least."""
PLACES = {
    "postgresql://reactune@db.example/tips": "fresh_postgres_url",
    "/models/Llama-3.2-1B-Instruct": "tiny",
}
"""Places that pages name, and the fixtures that stand in for them here."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def commands_of(page):
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [
        line.removeprefix("$ reactune ")
        for block in blocks
        for line in block.splitlines()
        if line.startswith("$ reactune ")
    ]


def test_every_page_of_the_site_needs_no_other_address(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 70
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]*)"', text)
        loaded += re.findall(
            r'<link[^>]* rel="(?:stylesheet|preload|icon)"[^>]* href="([^"]*)"', text
        )
        assert [each for each in loaded if each.startswith(("http", "//"))] == [], page


def test_the_readme_is_the_first_page_and_its_pictures_are_there(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img[^>]* src="([^"]+)"', text)
    assert pictures
    assert all((site / name).is_file() for name in pictures)
    assert 'href="docs/' not in text
    assert 'href="pages.html"' in text


def test_every_page_is_found_by_the_search(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {each["location"].partition("#")[0] for each in index["docs"]}
    names = {str(page.relative_to(site)) for page in site.rglob("*.html")} - {"404.html"}
    assert names - found == set()


def test_every_decision_is_listed(site):
    listed = (site / "decisions" / "index.html").read_text(encoding="utf-8")
    for file in (REPOSITORY / "docs" / "decisions").glob("*.md"):
        assert f'href="{file.stem}.html"' in listed


@pytest.mark.parametrize("page", GUIDES)
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
    commands = commands_of(page)
    assert len(commands) >= GUIDES[page] - 1
    for command in ("init", "ingest rows.jsonl", *commands):
        for name, ours in names.items():
            command = command.replace(name, ours)
        arguments = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', command)]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, (command, capsys.readouterr())
