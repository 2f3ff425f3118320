"""The rule of what is a positive, in its three forms: Python, SQLAlchemy and Ibis."""

from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reactune.config.sections import LabelConfig, SourceConfig
from reactune.data.labels.scores import label
from reactune.data.labels.sources import open_scores
from reactune.records import REACTIONS
from reactune.store.database import create_store, writing
from reactune.store.labels import Evidence, label_rule
from reactune.store.queries import upsert_scores
from reactune.store.schema import tip_scores
from score_fixtures import row

# Ibis 12 calls DuckDB 2 by names that will go.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated, use to_arrow:DeprecationWarning")

BOUNDARIES = (None, 0, 1, 4_999, 5_000, 14_999, 15_000, 60_000, 120_000, 120_001, 2**31 - 1)
SOURCES = ("llm", "rule", "coach", "stored")
ALL_COMBINATIONS = list(product(SOURCES, (*REACTIONS, None), BOUNDARIES))

dwell_times = st.integers(0, 200_000)
label_configs = st.builds(
    LabelConfig,
    source=st.sampled_from(SOURCES),
    positive_dwell_ms=st.tuples(dwell_times, dwell_times).map(lambda pair: tuple(sorted(pair))),
    negative_dwell_below_ms=st.integers(1, 50_000),
)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A row for every source, reaction and boundary, in SQLite and, for DuckDB, in Parquet."""
    rows = [
        row(f"tip-{number}", source=source, reaction=reaction, dwell_ms=dwell_ms)
        for number, (source, reaction, dwell_ms) in enumerate(ALL_COMBINATIONS)
    ]
    folder = tmp_path_factory.mktemp("labels")
    engine = create_store(f"sqlite:///{folder / 'scores.db'}")
    with writing(engine) as connection:
        upsert_scores(connection, rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    source = SourceConfig(url=f"parquet://{folder}/scores.parquet")
    with open_scores(source, store_url="", folder=folder) as opened:
        yield rows, engine, opened
    engine.dispose()


def expected(rows, labels):
    """The rule as the documentation states it, written out a second time."""
    low, high = labels.positive_dwell_ms
    result = {}
    for each in rows:
        dwell_ms = each["dwell_ms"]
        if each["source"] != labels.source or dwell_ms is None:
            continue
        if each["reaction"] == "done" and low <= dwell_ms <= high:
            result[each["tip_id"]] = True
        elif each["reaction"] == "dismiss" and dwell_ms < labels.negative_dwell_below_ms:
            result[each["tip_id"]] = False
    return result


def by_python(rows, rule):
    found = {}
    for each in rows:
        reaction = each["source"], each["reaction"], each["dwell_ms"]
        if rule.is_positive(*reaction):
            found[each["tip_id"]] = True
        if rule.is_negative(*reaction):
            found[each["tip_id"]] = False
    return found


def by_sqlalchemy(engine, rule):
    conditions = {True: rule.positive_condition(), False: rule.negative_condition()}
    with engine.connect() as connection:
        return {
            tip_id: is_positive
            for is_positive, condition in conditions.items()
            for tip_id in connection.execute(sa.select(tip_scores.c.tip_id).where(condition))
            .scalars()
            .all()
        }


def by_ibis(opened, labels):
    labelled = label(opened.scores, labels).select("tip_id", "label")
    return {each["tip_id"]: each["label"] for each in opened.answers.rows(labelled)}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(labels=label_configs)
def test_python_sqlalchemy_and_ibis_label_every_row_alike_under_any_settings(scores, labels):
    rows, engine, opened = scores
    rule = label_rule(labels)
    result = expected(rows, labels)
    assert by_python(rows, rule) == result
    assert by_sqlalchemy(engine, rule) == result
    assert by_ibis(opened, labels) == result


def test_the_defaults_label_each_boundary_as_documented(scores):
    rows, engine, opened = scores
    positives = {("llm", "done", dwell_ms) for dwell_ms in (15_000, 60_000, 120_000)}
    negatives = {("llm", "dismiss", dwell_ms) for dwell_ms in (0, 1, 4_999)}
    for labels in (
        by_python(rows, label_rule(LabelConfig())),
        by_sqlalchemy(engine, label_rule(LabelConfig())),
        by_ibis(opened, LabelConfig()),
    ):
        found = {True: set(), False: set()}
        for tip_id, is_positive in labels.items():
            found[is_positive].add(ALL_COMBINATIONS[int(tip_id.removeprefix("tip-"))])
        assert found == {True: positives, False: negatives}


@given(labels=label_configs, reaction=st.sampled_from([*REACTIONS, None]), dwell=dwell_times)
def test_no_reaction_is_both_a_positive_and_a_negative(labels, reaction, dwell):
    rule = label_rule(labels)
    both = [rule.is_positive(labels.source, reaction, dwell)]
    both.append(rule.is_negative(labels.source, reaction, dwell))
    assert not all(both)


@pytest.mark.parametrize("reaction", [*REACTIONS, None])
def test_a_reaction_without_a_dwell_time_is_no_evidence(reaction):
    rule = label_rule(LabelConfig())
    assert not rule.is_positive("llm", reaction, None)
    assert not rule.is_negative("llm", reaction, None)


def test_evidence_of_no_reaction_includes_nothing():
    assert not Evidence(frozenset(), 0, 10).includes("done", 5)
