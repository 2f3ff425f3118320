import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reactune.service.tips import KIND, TIP_ID
from reactune.web.schemas import ReactionBody, TipBody, TrainingBody


@pytest.mark.parametrize(
    ("field", "too_large"),
    [
        ({"user": "u" * 512}, {"user": "u" * 513}),
        ({"kind": "k" * 100}, {"kind": "k" * 101}),
        ({"names": ["n"] * 50}, {"names": ["n"] * 51}),
        ({"names": ["n" * 200]}, {"names": ["n" * 201]}),
        ({"tip_id": "t" * 64}, {"tip_id": "t" * 65}),
        ({"tip_id": "t" * 16}, {"tip_id": "t" * 15}),
        ({"context": {"a": "x" * 20_000}}, {"context": {"a": "x" * 20_001}}),
        ({"context": {"a": ["x"] * 200}}, {"context": {"a": ["x"] * 201}}),
        ({"context": {f"{n}": n for n in range(50)}}, {"context": {f"{n}": n for n in range(51)}}),
    ],
)
def test_the_limits_of_a_request_for_a_tip(field, too_large):
    TipBody.model_validate_json(json.dumps({"user": "u", "kind": "k", **field}))
    with pytest.raises(ValidationError):
        TipBody.model_validate_json(json.dumps({"user": "u", "kind": "k", **too_large}))


@pytest.mark.parametrize("value", [True, False, 0, 1, 1.5, "1"])
def test_a_scalar_keeps_its_type(value):
    kept = TipBody(user="u", kind="k", context={"a": value, "b": {"c": value}}).context
    assert type(kept["a"]) is type(kept["b"]["c"]) is type(value)
    assert kept["a"] == value


ASCII = st.characters(codec="ascii")


# Beyond ASCII two libraries differ in what a letter is, such as a raised digit.
@given(kind=st.text(ASCII, max_size=8), tip_id=st.text(ASCII, max_size=20))
def test_body_and_service_agree_on_kinds_and_tip_ids(kind, tip_id):
    for pattern, field in ((KIND, {"kind": kind}), (TIP_ID, {"tip_id": tip_id})):
        try:
            TipBody(**{"user": "u", "kind": "k", **field})
            is_valid = True
        except ValidationError:
            is_valid = False
        (value,) = field.values()
        assert is_valid == bool(pattern.fullmatch(value))


@pytest.mark.parametrize(("dwell_ms", "is_valid"), [(-1, 0), (0, 1), (2**31 - 1, 1), (2**31, 0)])
def test_a_dwell_time_fits_the_column(dwell_ms, is_valid):
    body = {"tip_id": "t", "reaction": "done", "dwell_ms": dwell_ms}
    if is_valid:
        assert ReactionBody(**body).dwell_ms == dwell_ms
    else:
        with pytest.raises(ValidationError):
            ReactionBody(**body)


@pytest.mark.parametrize(
    ("text", "dwell_ms"),
    [
        ("20999.6", 21_000),
        ("21000.0", 21_000),
        ("0.4", 0),
        ("1e3", 1_000),
        ("2147483647.0", 2**31 - 1),
    ],
)
def test_a_dwell_time_may_be_a_fraction_as_browsers_count_it(text, dwell_ms):
    body = f'{{"tip_id": "t", "reaction": "done", "dwell_ms": {text}}}'
    assert ReactionBody.model_validate_json(body).dwell_ms == dwell_ms
    assert ReactionBody(tip_id="t", reaction="done", dwell_ms=float(text)).dwell_ms == dwell_ms


@pytest.mark.parametrize("value", [True, "20999.6", float("nan"), float("inf"), -1.0, 1e300, None])
def test_what_is_no_dwell_time_is_refused(value):
    with pytest.raises(ValidationError):
        ReactionBody(tip_id="t", reaction="done", dwell_ms=value)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (TipBody, {"user": "u", "kind": "k"}),
        (ReactionBody, {"tip_id": "t", "reaction": "done", "dwell_ms": 1}),
        (TrainingBody, {"allowed": True}),
    ],
)
def test_every_body_refuses_unknown_fields(body, fields):
    body(**fields)
    with pytest.raises(ValidationError, match="Extra inputs"):
        body(**fields, extra=1)
