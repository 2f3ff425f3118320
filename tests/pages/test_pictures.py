"""Pictures: the same bytes for the same numbers, drawn without a browser or a network."""

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta

import pytest

from reactune.errors import DataError
from reactune.pages import pictures

AT = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=each) for each in range(40)]
SPECS = {
    "loss": pictures.loss_curves({"sft": [(step, 3 / step) for step in range(1, 30)], "kto": []}),
    "intervals": pictures.intervals(
        "accuracy", [("base", 0.5, 0.4, 0.6), ("tuned", 0.7, 0.6, 0.8)], reference=0.5
    ),
    "plans": pictures.plans("days", [("user_day", 3.0, 9.0)]),
    "bounds": pictures.bounds(
        [1, 2, 3], [0, 0, 0], [-1, -0.5, -0.2], [1, 0.5, 0.2], share_steps=[(1, 0.05), (2, 0.25)]
    ),
    "over time": pictures.bounds(
        AT, [0.1] * 40, [None] * 10 + [-0.1] * 30, [None] * 10 + [0.3] * 30
    ),
    "arms": pictures.arms({"champion": [(1, 0.2), (2, 0.3)], "challenger": [(1, 0.3)]}),
    "bars": pictures.bars("minutes", {"train": 4.0, "export": 1.0}),
    "dwell times": pictures.dwell_times(
        {"focus": ([1, 2], [3, 0]), "price in $": ([0, 0], [0, 1])}, (0.1, 300.0)
    ),
    "days": pictures.days([{"day": "2026-03-01", "what": "done", "tips": 3}]),
    "dwell bins": pictures.dwell_bins(
        [{"bin": "0\N{EN DASH}1", "what": "dismissed", "tips": 3}],
        ["0\N{EN DASH}1", "15\N{EN DASH}20"],
        {"liked": ["15\N{EN DASH}20"], "disliked": ["0\N{EN DASH}1"]},
    ),
    "curve": pictures.curve("accuracy", "reactions", [(500, 0.6, 0.5, 0.7), (900, 0.7, 0.6, 0.8)]),
}


def texts_of(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.text]


@pytest.mark.parametrize("name", SPECS)
def test_every_picture_is_drawn_the_same_again_and_stands_in_a_page(name):
    svg = pictures.draw(SPECS[name])
    pictures._drawn.cache_clear()
    assert pictures.draw(SPECS[name]) == svg
    ET.fromstring(svg)
    inline = str(pictures.inline(SPECS[name]))
    assert inline.startswith('<svg aria-hidden="true"')
    assert not re.search(r"<script|\sstyle=|href=|NaN|undefined", inline)
    assert "var(--" in inline


def test_the_shares_of_the_challenger_are_written_into_the_picture_of_bounds():
    assert {"5%", "25%"} <= set(texts_of(pictures.draw(SPECS["bounds"])))


def test_rows_of_intervals_are_drawn_in_their_order_from_the_top():
    texts = texts_of(pictures.draw(SPECS["intervals"]))
    assert [text for text in texts if text in ("base", "tuned")] == ["base", "tuned"]


def test_the_legend_names_each_training_method_that_has_a_curve():
    texts = texts_of(pictures.draw(SPECS["loss"]))
    assert "sft" in texts
    assert "training loss" in texts


def test_dwell_times_have_a_row_for_each_kind():
    texts = texts_of(pictures.draw(SPECS["dwell times"]))
    assert [text for text in texts if text in ("focus", "price in $")] == ["focus", "price in $"]
    assert {"done", "dismissed", "dwell time in seconds"} <= set(texts)


def test_bounds_are_cut_off_where_they_say_nothing():
    spec = SPECS["over time"]
    values = spec["data"]["values"]
    limit = max(each["high"] for each in values)
    assert limit == pytest.approx(0.33)
    assert {(each["low"], each["high"]) for each in values} == {(-limit, limit), (-0.1, 0.3)}


def test_a_text_in_a_picture_is_no_markup():
    spec = pictures.intervals("x", [("<script>alert(1)</script>", 0.5, 0.4, 0.6)])
    assert "<script" not in pictures.draw(spec)
    assert "<script>alert(1)</script>" in texts_of(pictures.draw(spec))


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<svg"), ("a.PNG", b"\x89PNG\r\n")])
def test_a_picture_is_written_in_the_format_of_the_ending(tmp_path, name, start):
    file = tmp_path / name
    for _ in range(2):
        pictures.save(SPECS["intervals"], file)
        assert file.read_bytes().startswith(start)
    first = file.read_bytes()
    pictures.save(SPECS["plans"], file)
    assert file.read_bytes() != first


@pytest.mark.parametrize("name", ["plot.jpg", "plot", "svg", "plot.svg.gz"])
def test_a_file_of_another_ending_is_refused_before_anything_is_drawn(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: its name must end in .svg or .png"):
        pictures.save(SPECS["plans"], tmp_path / name)
    assert list(tmp_path.iterdir()) == []
