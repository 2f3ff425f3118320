"""The report: one file without links, in which every text is escaped."""

from html.parser import HTMLParser

import pytest

from reactune.pages.pictures import arms, bars, bounds, draw, intervals, loss_curves
from reactune.pages.report import Page, Section, inline_svg, write_report

EVIL = "<script>alert('tip')</script> & <b>bold</b>"


class Elements(HTMLParser):
    """Names of all elements, the attributes that point elsewhere, and the texts of the page."""

    def __init__(self):
        super().__init__()
        self.names, self.links, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.links.append(value)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def svgs():
    specs = (
        loss_curves({"sft": [(step, 3 / step) for step in range(1, 30)]}),
        intervals("accuracy", [("base", 0.5, 0.4, 0.6), ("tuned", 0.7, 0.6, 0.8)]),
        bounds([1, 2, 3], [0, 0.1, 0.1], [-1, -0.2, 0], [1, 0.4, 0.2]),
        arms({"champion": [(1, 0.2)], "challenger": [(1, 0.3)]}),
        bars("minutes", {"train": 4.0, "export": 1.0}),
    )
    return tuple(map(draw, specs))


def read(file):
    elements = Elements()
    elements.feed(file.read_text(encoding="utf-8"))
    return elements


def page(*sections, verdict="promote"):
    return Page("reactune demo", verdict, {"tips": "1,234"}, sections)


def test_a_report_is_one_file_without_links(tmp_path, svgs):
    file = tmp_path / "report.html"
    write_report(page(Section("Gate", "Held-out users.", pictures=svgs)), file)
    elements = read(file)
    assert elements.names.count("svg") == len(svgs)
    assert elements.names.count("html") == 1
    assert elements.links == []
    assert not {"img", "script", "link", "iframe"} & set(elements.names)
    text = file.read_text(encoding="utf-8")
    assert "<?xml" not in text
    assert "@import" not in text
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_every_text_of_a_report_is_escaped(tmp_path):
    file = tmp_path / "report.html"
    section = Section(EVIL, EVIL, head=(EVIL,), rows=((EVIL,),))
    write_report(Page(EVIL, EVIL, {EVIL: EVIL}, (section,)), file)
    elements = read(file)
    assert "script" not in elements.names
    # Title twice, verdict, two of the figure, and headline, sentence, head and cell of the section.
    assert "".join(elements.texts).count(EVIL) == 9


def test_names_in_a_plot_are_escaped(tmp_path):
    file = tmp_path / "report.html"
    picture = draw(bars("minutes", {EVIL: 1.0}))
    write_report(page(Section("Time", "Minutes.", pictures=(picture,))), file)
    elements = read(file)
    assert "script" not in elements.names
    assert EVIL in "".join(elements.texts)


def test_plots_without_data_can_be_drawn(tmp_path):
    empty = (
        loss_curves({"sft": []}),
        bounds([], [], [], []),
        arms({"champion": [], "challenger": []}),
        bars("minutes", {}),
        intervals("accuracy", []),
    )
    file = tmp_path / "report.html"
    write_report(page(Section("Nothing", "Yet.", pictures=tuple(map(draw, empty)))), file)
    assert read(file).names.count("svg") == len(empty)


def test_a_report_that_is_written_again_replaces_the_old_one(tmp_path):
    file = tmp_path / "report.html"
    for verdict in ("wait", "promote"):
        write_report(page(Section("Time", "Minutes."), verdict=verdict), file)
    text = file.read_text(encoding="utf-8")
    assert ('"verdict">promote' in text, '"verdict">wait' in text) == (True, False)


def test_an_svg_in_a_page_begins_at_its_root_element():
    document = "<?xml version='1.0'?>\n<!DOCTYPE svg>\n<svg><text>a &lt; b</text></svg>"
    assert inline_svg(document) == "<svg><text>a &lt; b</text></svg>"
