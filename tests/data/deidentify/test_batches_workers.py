"""The same rows come out whoever makes them safe: this process, a pool, or a Ray cluster."""

import json
import os
import pickle
import random
import signal
import time
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_fixtures import SMALL, START, WORDS
from places import REPOSITORY
from reactune.config.sections import DataConfig, ModelConfig, PrivacyConfig, PromptConfig
from reactune.data.dataset.build import build
from reactune.data.deidentify.batches import FILES, each_batch, extract, work_of
from reactune.data.labelled import read_batches
from reactune.errors import DataError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat

PRIVACY = PrivacyConfig(min_users_per_value=3, rare_keys=("user_settings.city",))


@pytest.fixture(scope="session")
def chat():
    return load_chat(base_model(ModelConfig()).folder, PromptConfig())


def labelled_rows(count, *, seed=7):
    """Rows as the source gives them: some repeat, some hold personal data or rare values."""
    draw = random.Random(seed)
    return [
        {
            "tip_id": f"t{number:05}",
            "user_key": f"u{draw.randrange(40)}",
            "kind": draw.choice(["focus", "sleep"]),
            "context_json": json.dumps({
                "time_of_day": draw.choice(["morning", "noon"]),
                "user_settings": {"city": draw.choice(["Berlin", "Rome", f"Ort {number}"])},
                "open_tasks": [f"mail p{draw.randrange(9)}@x.org"],
            }),
            "tip_content": " ".join(draw.choices(WORDS, k=draw.randrange(2, 12)))
            + draw.choice(["", "", f" Write to q{number}@x.org."]),
            "source": "llm",
            "reaction": "done" if label else "dismiss",
            "dwell_ms": draw.randrange(15_000, 99_000) if label else draw.randrange(300, 4_900),
            "created_at": START + timedelta(minutes=7 * number),
            "reacted_at": START + timedelta(minutes=7 * number),
            "label": label,
        }
        for number in range(count)
        for label in [draw.random() < 0.5]
    ]  # fmt: skip


def batches_of(rows, size):
    return [pa.RecordBatch.from_pylist(rows[at : at + size]) for at in range(0, len(rows), size)]


def made(rows, folder, chat, *, size=40, **data):
    """What extraction and dataset make of rows: the bytes of the files, and the fingerprint."""
    extracted = extract(
        batches_of(rows, size), chat=chat, privacy=PRIVACY, settings=DataConfig(**data),
        folder=folder / "extract",
    )  # fmt: skip
    built = build(read_batches(folder / "extract" / FILES[0]), SMALL, folder=folder / "dataset")
    contents = {name: (folder / "extract" / name).read_bytes() for name in FILES}
    return contents, extracted, built.fingerprint


@pytest.mark.slow
@settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(7, 90))
def test_a_pool_of_any_size_gives_the_same_files_and_fingerprint(
    tmp_path_factory, chat, seed, workers, size
):
    rows = labelled_rows(150, seed=seed)
    shuffled = random.Random(seed).sample(rows, len(rows))
    folder = tmp_path_factory.mktemp("made")
    here = made(rows, folder / "here", chat)
    pool = made(shuffled, folder / "pool", chat, size=size, engine="processes", workers=workers)
    assert pool == here
    _, extracted, _ = here
    assert extracted.withheld > 0
    assert len(extracted.counts.refused) == 1
    listed = pq.read_table(folder / "here" / "extract" / FILES[1]).to_pylist()
    assert len(listed) == sum(extracted.counts.refused.values())
    by_tip = {row["tip_id"]: row for row in rows}
    for each in listed:
        assert each["user_key"] == by_tip[each["tip_id"]]["user_key"]
        assert each["reason"] in extracted.counts.refused


def test_nothing_is_left_beside_the_files(tmp_path, chat):
    made(labelled_rows(30), tmp_path, chat)
    assert {file.name for file in (tmp_path / "extract").iterdir()} == set(FILES)
    assert not list((tmp_path / "dataset").glob(".work-*"))


def test_what_a_killed_process_left_is_removed(tmp_path, chat):
    (tmp_path / "extract" / ".work-killed").mkdir(parents=True)
    (tmp_path / "extract" / ".work-killed" / "safe-0.arrow").touch()
    made(labelled_rows(30), tmp_path, chat)
    assert not (tmp_path / "extract" / ".work-killed").exists()


def end_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_error_that_says_what_to_do():
    over = each_batch(DataConfig(engine="processes", workers=1))
    batch = pa.RecordBatch.from_pylist([{"a": 1}])
    with pytest.raises(DataError, match=r"data\.workers"):
        list(over(dying, [batch, batch]))


def dying():
    return lambda batch: end_this_process()


def test_batches_are_taken_no_faster_than_they_are_worked_on():
    taken = []

    def batches():
        for number in range(50):
            taken.append(number)
            yield pa.RecordBatch.from_pylist([{"a": number}])

    done = each_batch(DataConfig(engine="processes", workers=1))(numbered, batches())
    assert next(iter(done)).to_pylist() == [{"a": 0, "made": 1}]
    assert len(taken) <= 4
    # The work is made once in a process, however many batches it does.
    assert next(iter(done)).to_pylist() == [{"a": 1, "made": 1}]
    done.close()


made_here = []


def numbered():
    made_here.append(None)
    number = len(made_here)
    return lambda batch: batch.append_column("made", pa.array([number] * len(batch)))


def test_a_process_of_ray_makes_its_work_once():
    made = pickle.dumps(numbered)
    assert work_of(made) is work_of(pickle.dumps(numbered))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_a_node_in_the_middle_gives_the_same_fingerprint(
    tmp_path, chat, monkeypatch
):
    import ray
    from ray.cluster_utils import Cluster

    source = str(REPOSITORY / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    rows = labelled_rows(6_000)
    here = made(rows, tmp_path / "here", chat, size=100)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    lost = []
    try:
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2

        def lose(done):
            if not lost and done >= 1_000:
                cluster.remove_node(second, allow_graceful=False)
                lost.append(done)

        settings = DataConfig(engine="ray", workers=2)
        extracted = extract(
            batches_of(rows, 100), chat=chat, privacy=PRIVACY, settings=settings,
            folder=tmp_path / "ray" / "extract", progress=lose,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len([node for node in ray.nodes() if node["Alive"]]) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        ray.shutdown()
        cluster.shutdown()
    file = tmp_path / "ray" / "extract" / FILES[0]
    built = build(read_batches(file), SMALL, folder=tmp_path / "ray" / "dataset")
    assert 1_000 <= lost[0] < 6_000
    assert (file.read_bytes(), extracted, built.fingerprint) == (here[0][FILES[0]], *here[1:])
