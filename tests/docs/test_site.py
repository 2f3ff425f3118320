"""The documentation site builds without a warning and needs no other address."""

import json
import os
import re
import subprocess
import sys

import pytest

from places import REPOSITORY


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
