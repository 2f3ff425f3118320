"""The page of the architecture against the code: floors, picture and walks."""

import json
import re
import tomllib
import xml.etree.ElementTree as ET

import pytest

from places import BENCH, REPOSITORY

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = REPOSITORY / "src" / "reactune"
HEADINGS = {"tip row": "Walk 1", "request": "Walk 2", "erasure": "Walk 3"}


def floors():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    return [floor.split(" | ") for floor in contract["layers"]]


def modules():
    files = [file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py")]
    return {".".join(file.parts).removesuffix(".__init__") for file in files}


def entered():
    (*_, last) = json.loads((BENCH / "results" / "walks.json").read_text(encoding="utf-8"))
    return last["figures"]["entered"]


def section(heading):
    (text,) = re.findall(rf"^## {heading}:.*?(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    return text


def test_every_package_and_module_stands_on_a_floor():
    placed = [name for floor in floors() for name in floor]
    assert len(placed) == len(set(placed))
    tops = {name.partition(".")[0] for name in modules()} - {"__init__", "openfeature_provider"}
    assert {name.partition(".")[0] for name in placed} >= tops


def test_the_picture_shows_each_floor_as_a_row_from_the_top_down():
    root = ET.parse(REPOSITORY / "docs" / "images" / "architecture.svg").getroot()
    rows = {}
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        rows.setdefault(int(text.attrib["y"]), []).append(text.text)
    expected = [
        [str(number), *names]
        for number, names in zip(range(len(floors()), 0, -1), floors(), strict=True)
    ]
    assert [rows[top] for top in sorted(rows)] == expected


@pytest.mark.parametrize("walk", HEADINGS)
def test_a_walk_names_the_modules_that_were_measured(walk):
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)*)`", section(HEADINGS[walk])))
    assert named & modules() == set(entered()[walk])


def test_the_measured_modules_are_still_there():
    for names in entered().values():
        assert set(names) <= modules(), "run `python bench/walks.py`"
