"""Commands that analyse and change nothing: which options go together, and exit codes."""

import json

import pytest

from cli_fixtures import write_rows


def reactions(count, *, positives):
    """Rows of two arms of `count` users each, with so many positives in the second."""
    return [
        {"arm": arm, "reaction": "done" if number < done else "dismiss", "user": f"{arm}-{number}"}
        for arm, done in (("champion", count // 2), ("challenger", positives))
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--tips", "n"), "--tips and --positives go together"),
        (("--positives", "n"), "--tips and --positives go together"),
        (("--rows-are-arms", "--arm", "a"), "--rows-are-arms"),
        (("--rows-are-arms", "--unit", "u"), "--rows-are-arms"),
        (("--looks", "twice"), "once"),
        (("--planned", "0"), "--planned"),
    ],
)
def test_options_of_compare_that_do_not_fit_are_named(call, here, arguments, named):
    file = write_rows(here / "rows.jsonl", reactions(4, positives=2))
    code, out, err = call("compare", file, *arguments)
    assert (code, out) == (2, "")
    assert named in err


def test_a_name_in_a_file_cannot_command_the_terminal(call, here):
    odd = "\x1b[2J\u009b31m\u202enew\nbetter"
    rows = [{**row, "arm": odd if row["arm"] == "challenger" else "champion"}
            for row in reactions(400, positives=320)]  # fmt: skip
    file = write_rows(here / "rows.jsonl", rows)
    code, out, _ = call("compare", file, "--unit", "user")
    assert code == 0
    assert "\\u001b[2J\\u009b31m\\u202enew\\u000abetter" in out
    said = [out, call("compare", file, "--unit", "user", "--json")[1]]
    assert repr(odd) in repr(json.loads(said[1]))
    code, _, err = call("compare", file, "--unit", "user", "--champion", "absent")
    assert code == 2
    for text in (*said, err):
        assert [each for each in text if not each.isprintable() and each != "\n"] == []


def test_compare_ends_with_0_whatever_came_out_and_3_if_it_was_refused(call, here):
    file = write_rows(here / "rows.jsonl", reactions(400, positives=320))
    code, out, _ = call("compare", file, "--unit", "user")
    assert (code, "challenger" in out) == (0, True)
    skewed = [each for each in reactions(400, positives=320) if each["user"] < "champion-2"]
    code, out, _ = call("compare", write_rows(here / "skewed.jsonl", skewed), "--unit", "user")
    assert code == 3


def test_a_picture_of_unknown_kind_is_refused_before_the_file_is_read(call, here):
    file = here / "rows.jsonl"
    file.write_text("this is no row\n")
    code, _, err = call("compare", file, "--picture", here / "picture.bmp")
    assert code == 1
    assert ".svg" in err
    assert "rows.jsonl" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--policy", "p", "--target", "t"),
        ("--choice", "c", "--target", "t"),
        ("--policy", "p"),
        ("--policy", "p", "--from", "a", "--to", "b"),
    ],
)
def test_ope_needs_one_new_policy_in_one_way(call, here, arguments):
    file = write_rows(here / "log.jsonl", [{"reward": 1, "propensity": 0.5}])
    code, out, err = call("ope", file, *arguments)
    assert (code, out) == (2, "")
    assert "name the new policy" in err


def test_a_plan_needs_no_database_where_the_traffic_is_given(call, here):
    given = ("--baseline", "0.2", "--units-per-day", "500", "--tips-per-unit", "1.5")
    code, out, _ = call("plan", *given)
    assert code == 0
    assert "50%" in out
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("option", ["--lift", "--power", "--baseline"])
def test_numbers_of_a_plan_are_above_zero(call, option):
    code, _, err = call("plan", option, "0")
    assert (code, option in err) == (2, True)
