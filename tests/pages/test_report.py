"""The report: one file without links, in which every text is escaped."""

from html.parser import HTMLParser

import pytest

from reactune.pages.pictures import arms, bars, bounds, intervals, loss_curves
from reactune.pages.report import Report, write
from reactune.pages.tables import Figure, Picture, Section, Table

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


def picture(spec, title="Numbers"):
    return Picture(spec, f"Picture of {title}", Table("numbers", title, ("a", "b"), ((1, 2),)))


@pytest.fixture(scope="module")
def drawings():
    specs = (
        loss_curves({"sft": [(step, 3 / step) for step in range(1, 30)]}),
        intervals("accuracy", [("base", 0.5, 0.4, 0.6), ("tuned", 0.7, 0.6, 0.8)]),
        bounds([1, 2, 3], [0, 0.1, 0.1], [-1, -0.2, 0], [1, 0.4, 0.2]),
        arms({"champion": [(1, 0.2)], "challenger": [(1, 0.3)]}),
        bars("minutes", {"train": 4.0, "export": 1.0}),
    )
    return tuple(map(picture, specs))


def read(file):
    elements = Elements()
    elements.feed(file.read_text(encoding="utf-8"))
    return elements


def report(*sections, lead="promote"):
    return Report("reactune demo", lead, sections)


def test_a_report_is_one_file_without_links(tmp_path, drawings):
    file = tmp_path / "report.html"
    write(report(Section("Gate", "Held-out users.", pictures=drawings)), file)
    elements = read(file)
    assert elements.names.count("svg") == len(drawings)
    assert elements.names.count("html") == 1
    assert elements.links == []
    assert not {"img", "script", "link", "iframe"} & set(elements.names)
    text = file.read_text(encoding="utf-8")
    assert "<?xml" not in text
    assert "@import" not in text
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_every_text_of_a_report_is_escaped(tmp_path):
    file = tmp_path / "report.html"
    table = Table("evil", EVIL, (EVIL,), ((EVIL,),), note=EVIL, is_verbatim=True)
    section = Section(EVIL, EVIL, figures=(Figure(EVIL, EVIL, EVIL),), tables=(table,))
    write(Report(EVIL, EVIL, (section,), note=EVIL), file)
    elements = read(file)
    assert "script" not in elements.names
    # Title twice, lead, headline and text of the section, three of the figure, caption, head, cell
    # and note of the table, and the note at the end.
    assert "".join(elements.texts).count(EVIL) == 13


def test_names_in_a_plot_are_escaped(tmp_path):
    file = tmp_path / "report.html"
    drawing = picture(bars("minutes", {EVIL: 1.0}))
    write(report(Section("Time", "Minutes.", pictures=(drawing,))), file)
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
    write(report(Section("Nothing", "Yet.", pictures=tuple(map(picture, empty)))), file)
    assert read(file).names.count("svg") == len(empty)


def test_a_report_that_is_written_again_replaces_the_old_one(tmp_path):
    file = tmp_path / "report.html"
    for lead in ("wait", "promote"):
        write(report(Section("Time", "Minutes."), lead=lead), file)
    text = file.read_text(encoding="utf-8")
    assert ('"lead">promote' in text, '"lead">wait' in text) == (True, False)


def test_the_same_numbers_give_the_same_bytes(tmp_path, drawings):
    for name in ("one", "two"):
        write(report(Section("Gate", pictures=drawings)), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
