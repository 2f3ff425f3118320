"""Plots: the same bytes for the same numbers, readable labels, SVG and PNG files."""

import xml.etree.ElementTree as ET

import pytest

from reactune.errors import DataError
from reactune.pages import plots


def texts_of(svg):
    return [element.text for element in ET.fromstring(svg).iter() if element.text]


def test_the_same_numbers_give_the_same_plot():
    once, again = (
        plots.bounds([1, 2], [0, 0], [-1, -1], [1, 1], share_steps=[(0, 0.05)]) for _ in range(2)
    )
    assert once == again
    assert once != plots.bounds([1, 2], [0, 0], [-1, -1], [1, 1], share_steps=[(0, 0.1)])


def test_the_shares_of_the_challenger_are_written_into_the_plot_of_bounds():
    svg = plots.bounds([1, 2], [0, 0], [-1, -1], [1, 1], share_steps=[(0, 0.05), (1, 0.25)])
    assert {" 5%", " 25%"} <= {text for text in texts_of(svg) if "%" in text}


def test_rows_of_intervals_are_drawn_in_their_order_from_the_top():
    svg = plots.intervals("accuracy", [("base", 0.5, 0.4, 0.6), ("tuned", 0.7, 0.6, 0.8)])
    names = [text for text in texts_of(svg) if text in ("base", "tuned")]
    assert names == ["tuned", "base"]  # matplotlib draws from the bottom


def test_the_legend_names_each_training_method_that_has_a_curve():
    svg = plots.loss_curves({"sft": [(1, 3.0), (2, 2.0)], "kto": []})
    texts = texts_of(svg)
    assert "sft" in texts
    assert "kto" not in texts
    assert "training loss" in texts


def test_dwell_times_have_one_row_of_the_plot_for_each_kind():
    kinds = {"focus": ([1, 2], [3, 0]), "price in $": ([0, 0], [0, 1])}
    texts = texts_of(plots.dwell_times(kinds, (0.1, 300.0)))
    assert [text for text in texts if text in kinds] == list(kinds)
    assert {"done", "dismissed", "dwell time in seconds"} <= set(texts)


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.PNG", b"\x89PNG\r\n")])
def test_intervals_and_plans_are_written_in_the_format_of_the_ending(tmp_path, name, start):
    file = tmp_path / name
    plots.save_intervals(file, "difference", [("ours", 0.1, 0.0, 0.2)], reference=0.0)
    assert file.read_bytes().startswith(start)
    first = file.read_bytes()
    plots.save_intervals(file, "difference", [("ours", 0.1, 0.0, 0.2)], reference=0.0)
    assert file.read_bytes() == first
    plots.save_plans(file, "days", [("user_day", 3.0, 9.0)])
    assert file.read_bytes().startswith(start)
    assert file.read_bytes() != first


@pytest.mark.parametrize("name", ["plot.jpg", "plot", "svg", "plot.svg.gz"])
def test_a_file_of_another_ending_is_refused_before_anything_is_drawn(tmp_path, name):
    for save in (
        lambda file: plots.save_intervals(file, "x", [("a", 0, 0, 0)]),
        lambda file: plots.save_plans(file, "x", [("a", 0, 0)]),
    ):
        with pytest.raises(DataError, match=rf"{name}: its name must end in .svg or .png"):
            save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
