"""Documents that cannot be trusted are worse than none: what they name must be there."""

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from itertools import chain

import pytest

from places import REPOSITORY
from reactune import __version__
from reactune.cli import commands
from reactune.config.settings import REMOVED, described, sections
from reactune.records import STAGES
from reactune.web.schemas import ReactionBody, TipBody

DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))
SETTINGS = {(section, key) for section, key, *_ in described()}
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), *DECISIONS]


def generator():
    spec = spec_from_file_location("document", REPOSITORY / "scripts" / "document.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(page):
    """The page as it is read: without comments."""
    return re.sub(r"<!-- TODO.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def is_code(package, name):
    """Whether this is a module of a package, or a function of a module in the root."""
    root = REPOSITORY / "src" / "reactune"
    if (root / package / f"{name}.py").is_file() or (root / package / name).is_dir():
        return True
    file = root / f"{package}.py"
    return file.is_file() and re.search(rf"^def {name}\(", text_of(file), flags=re.MULTILINE)


def code_in(text):
    """Inline code and indented or fenced blocks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    .+$", text, flags=re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*fenced, *indented, *re.findall(r"`([^`\n]+)`", rest)]


def test_generated_pages_are_up_to_date():
    for file, expected in generator().pages():
        assert text_of(file) == expected, f"{file.name} is stale: run `make docs`"


def test_every_setting_and_every_command_is_documented():
    settings = text_of(REPOSITORY / "docs" / "settings.md")
    for section, key in SETTINGS:
        assert f"## `[{section}]`" in settings
        assert f"| `{key}` |" in settings
    pages = text_of(REPOSITORY / "docs" / "commands.md")
    assert [name for name in commands.commands if f"## `reactune {name}`" not in pages] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", text_of(page))
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_pages_show_exist(page):
    known = set(commands.commands)
    options = r"(?:--\w[\w-]*(?:[ =]\S+)? |-v )*"
    for code in code_in(text_of(page)):
        shown = re.findall(rf"(?:^|[$(] ?)reactune {options}([a-z]+)", code, flags=re.MULTILINE)
        assert set(shown) <= known, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_pages_show_exist(page):
    makefile = text_of(REPOSITORY / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))
    for code in code_in(text_of(page)):
        for line in re.findall(r"(?:^|\$ )make ([a-z -]+)", code, flags=re.MULTILINE):
            assert set(line.split()) <= targets, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_pages_name_exist(page):
    text = text_of(page)
    named = re.findall(r"`\[(\w+)\] (\w+)", text) + re.findall(r"--set (\w+)\.(\w+)=", text)
    dotted = re.findall(rf"`({'|'.join(sections())})\.(\w+)`", text)
    files = {"py", "toml", "db", "md", "json"}
    wanted = {*named, *(pair for pair in dotted if pair[1] not in files and not is_code(*pair))}
    is_history = page in DECISIONS or page.name == "CHANGELOG.md"
    removed = {tuple(name.split(".")) for name in REMOVED} if is_history else set()
    assert wanted - SETTINGS - removed - {("section", "key"), ("SECTION", "KEY")} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_ours_that_pages_name_exist(page):
    ours = re.findall(r"`((?:src|tests|bench|scripts|docs)/[\w./-]+)`", text_of(page))
    assert [file for file in ours if not (REPOSITORY / file).exists()] == []
    folders = ("src", "tests", "bench", "scripts", "dags")
    known = {file.name for name in folders for file in REPOSITORY.joinpath(name).rglob("*.py")}
    assert set(re.findall(r"`(?:[\w-]+/)*(\w+\.py)`", text_of(page))) - known == set()


def test_the_requests_that_the_readme_shows_are_taken():
    readme = text_of(REPOSITORY / "README.md")
    shown = re.findall(r"(/v1/\w+) -H [^\n]*\n +-d '(.+)'", readme)
    bodies = {"/v1/tips": TipBody, "/v1/reactions": ReactionBody}
    assert {path for path, _ in shown} == set(bodies)
    for path, body in shown:
        bodies[path].model_validate_json(body)


def test_the_map_of_the_readme_has_every_package_with_the_sentence_of_its_docstring():
    readme = text_of(REPOSITORY / "README.md")
    shown = dict(re.findall(r"^\| \[`(.+)`\]\(src/reactune/.+\) \| (.+) \|$", readme, re.MULTILINE))
    root = REPOSITORY / "src" / "reactune"
    packages = {f"{file.parent.name}/" for file in root.glob("*/__init__.py")}
    modules = {file.name for file in root.glob("*.py")} - {"__init__.py"}
    assert shown.keys() == packages | modules
    assert all(len(sentence) > 20 and "TODO" not in sentence for sentence in shown.values())


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_a_decision_says_question_choice_reason_and_price_in_a_few_lines(page):
    text = text_of(page)
    for part in ("**Question.**", "**Choice.**", "**Why.**", "**What we gave up.**"):
        assert text.count(part) == 1
    assert text.startswith(f"# {int(page.name[:4])}. ")
    assert len(text.splitlines()) <= 20


def test_decisions_are_numbered_without_a_gap():
    numbers = [int(page.name[:4]) for page in DECISIONS]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_glossary_has_the_words_of_the_loop_once():
    rows = re.findall(r"^\| \*\*(.+?)\*\*", text_of(REPOSITORY / "docs/glossary.md"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    for word in ("tip", "reaction", "score", "label", "example", "champion", "challenger", "arm"):
        assert word in rows


def test_the_stages_are_named_in_their_order():
    glossary = text_of(REPOSITORY / "docs" / "glossary.md")
    assert ", ".join(STAGES) in glossary


def test_the_changelog_knows_this_version():
    assert f"## [{__version__}]" in text_of(REPOSITORY / "CHANGELOG.md")


def test_pinned_versions_are_those_that_the_makefile_and_the_extras_ask_for():
    lines = text_of(REPOSITORY / "constraints.txt").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    makefile = text_of(REPOSITORY / "Makefile")
    assert f"TORCH := {pins['torch']}\n" in makefile
    project = tomllib.loads(text_of(REPOSITORY / "pyproject.toml"))["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w.-]+", text).group().lower().replace("_", "-") for text in asked}
    assert names - pins.keys() == set()
    assert all("+" not in version and "/" not in version for version in pins.values())
