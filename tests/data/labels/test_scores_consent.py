"""Who refuses training, or was erased, is in no dataset, whatever source the rows come from."""

from collections import Counter
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from people_fixtures import ANNA, KEY, NOW, OLD_KEY, RING, START
from reactune.config.sections import LabelConfig, SourceConfig
from reactune.data.labels.scores import admission, after_consent, read_scores
from reactune.data.labels.sources import open_scores
from reactune.erasure.requests import request_erasure
from reactune.errors import DataError
from reactune.privacy.consent import refuse_training, user_statuses
from reactune.privacy.hashing import HashingKeys, user_key
from reactune.records import Counts
from reactune.store.database import create_store, reading, writing
from reactune.store.queries import upsert_scores

# Ibis asks DuckDB for its results by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated, use to_arrow:DeprecationWarning")
BOTH, BEFORE = HashingKeys(KEY, (OLD_KEY,)), HashingKeys(OLD_KEY)


def row(number, user, *, key=KEY, created_at=START):
    return {
        "tip_id": f"t{number}",
        "user_key": user_key(key, user),
        "key_id": key.key_id,
        "kind": "focus",
        "source": "llm",
        "context_json": "{}",
        "tip_content": f"tip {number}",
        "created_at": created_at,
        "shown_at": created_at,
        "reaction": "done",
        "dwell_ms": 20_000,
        "training_allowed": True,
    }


@pytest.fixture
def engine(sqlite_url):
    engine = create_store(sqlite_url)
    yield engine
    engine.dispose()


def learned(engine, source, folder, *, ring=RING):
    """The tips that a run would learn from, and who was left out for what."""
    left_out = Counter()
    with reading(engine) as connection:
        admits = admission(user_statuses(connection, ring), source, left_out)
    store = engine.url.render_as_string()
    with open_scores(source, store_url=store, folder=folder) as table:
        batches = read_scores(table, LabelConfig(), source=source, key=ring.current, admits=admits)
        tips = [tip for batch in batches for tip in batch.column("tip_id").to_pylist()]
    return sorted(tips), dict(left_out)


def test_rows_of_our_own_store(engine, tmp_path):
    with writing(engine) as connection:
        rows = [row(number, user) for number, user in enumerate((ANNA, "ben", "eve"))]
        upsert_scores(connection, rows)
    assert learned(engine, SourceConfig(), tmp_path) == (["t0", "t1", "t2"], {})
    refuse_training(engine, RING, ANNA, now=NOW)
    assert learned(engine, SourceConfig(), tmp_path) == (["t1", "t2"], {"opted out": 1})


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw ids", "hashed ids"])
def test_rows_of_another_source(engine, tmp_path, is_raw):
    late = NOW + timedelta(days=1)
    users = (ANNA, "ben", "eve", "ben", "joe")
    times = (START, START, START, late, START)
    named = [
        {**row(number, user, created_at=at), "who": user}
        for number, (user, at) in enumerate(zip(users, times, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(named), tmp_path / "x.parquet")
    source = SourceConfig(url="parquet://x.parquet", columns={"user_id": "who"} if is_raw else {})
    refuse_training(engine, RING, ANNA, now=NOW)
    request_erasure(engine, RING, ["ben"], actor="hand", reason="asked", now=NOW)
    # The row that came after the erasure is not learned from either, until they allow it.
    assert learned(engine, source, tmp_path) == (["t2", "t4"], {"opted out": 2, "erased": 1})


def test_raw_ids_are_known_by_what_was_noted_under_an_older_key(engine, tmp_path):
    named = [{**row(0, ANNA), "who": ANNA}, {**row(1, "ben"), "who": "ben"}]
    pq.write_table(pa.Table.from_pylist(named), tmp_path / "x.parquet")
    source = SourceConfig(url="parquet://x.parquet", columns={"user_id": "who"})
    request_erasure(engine, BEFORE, [ANNA], actor="hand", reason="asked", now=NOW)
    assert learned(engine, source, tmp_path, ring=BOTH) == (["t1"], {"erased": 1})


def test_who_is_left_out_is_counted_with_the_labels():
    evidence = Counts(10, 8, {"no evidence": 2})
    now = after_consent(evidence, Counter({"opted out": 2, "erased": 1}), read=4)
    assert now == Counts(10, 4, {"opted out": 3, "no evidence": 2, "erased": 1})
    everybody = after_consent(evidence, Counter(), read=8)
    assert everybody == Counts(10, 8, {"no evidence": 2, "opted out": 0})


def test_an_engine_that_quotes_a_value_is_not_quoted(tmp_path):
    named = {**row(0, ANNA), "kind": "a secret of Anna's"}
    pq.write_table(pa.Table.from_pylist([named]), tmp_path / "x.parquet")
    source = SourceConfig(url="parquet://x.parquet", where="CAST(kind AS INTEGER) > 1")
    with (
        pytest.raises(DataError, match="not of the type that its column must have") as caught,
        open_scores(source, store_url="", folder=tmp_path) as table,
    ):
        list(read_scores(table, LabelConfig(), source=source, key=KEY))
    assert "secret" not in str(caught.value)
