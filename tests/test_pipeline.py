"""The loop on a tiny real model: real trainer, MLflow, SQLite and llama.cpp; killed, it goes on."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from loop_fixtures import SECRET, copy_of_trained, install, reactions, take_in, trained
from reactune import deployment, pipeline, review
from reactune.cli import main
from reactune.data.dataset.exports import read_examples
from reactune.errors import DataError, PrivacyError
from reactune.evaluate.gate import Generator
from reactune.records import STAGES, sha256_of
from reactune.release import registry
from reactune.reward.model import load as load_reward
from reactune.reward.scorer import Scorer
from reactune.runs.folders import all_runs
from reactune.runs.manifest import (
    ending,
    generator_run,
    manifests,
    recorded_manifest,
    write_manifest,
)
from reactune.store.database import writing
from reactune.store.queries import schedule_replacement
from registry_fixtures import aliases_of

NOW = datetime(2026, 4, 1, tzinfo=UTC)


# They say where rows and runs are kept and how fast rows are de-identified, not what comes out.
UNDECIDING = {"store", "run", "data"}
# The check before the first stage reads them; they decide whether it is done, not what it makes.
CHECKED = {"extract": {"train", "export", "registry", "serve"}}
# Where runs are kept at a URL, the model server decides which of their files are fetched.
FETCHED = {stage: {"serve"} for stage in ("dataset", "reward")}
# Before the first training, the base is exported and proved.
PROVED = {"train": {"export"}}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)


@pytest.fixture
def went_through(tmp_path):
    """A copy of an installation in which one run went through."""
    return copy_of_trained(tmp_path)


def run(config, **changes):
    """Do a run; its last manifest and what it said."""
    said = []
    return pipeline.run(config, say=said.append, **changes), said


def mlflow_client(config):
    with registry._client(config.tracking_uri) as client:
        return client


def stored(config, query):
    with closing(sqlite3.connect(config.folder / "reactune.db")) as connection:
        return connection.execute(query).fetchall()


def test_a_run_leaves_the_manifest_of_every_stage_and_says_a_line_for_each(went_through):
    (folder,) = all_runs(went_through.run_root)
    found = manifests(folder)
    assert tuple(found) == STAGES
    assert {each.outcome for each in found.values()} == {"done"}
    said = trained()[1]
    assert [line.split()[0] for line in said] == ["run", *STAGES]
    for line, manifest in zip(said[1:], found.values(), strict=True):
        assert manifest.summary in line
    assert found["extract"].counts["labels"]["came_in"] == 200


def test_each_stage_names_the_files_it_read_by_what_is_in_them(went_through):
    (folder,) = all_runs(went_through.run_root)
    weights = ("train/adapter/adapter_model.safetensors", "train/adapter/adapter_config.json")
    quality = "reward/quality.json"
    expected = {
        "extract": (),
        "dataset": ("extract/labelled.parquet",),
        "reward": ("dataset/examples.parquet",),
        "train": ("dataset/examples.parquet", quality),
        "evaluate": ("dataset/examples.parquet", quality, *weights),
        "export": ("dataset/examples.parquet", quality, *weights, "evaluate/gate.json"),
        "register": (
            "dataset/README.md",
            quality,
            "train/training.json",
            "evaluate/gate.json",
            "export/model.gguf",
            "export/parity.json",
        ),
        "deploy": ("register/version.json",),
    }
    found = manifests(folder)
    assert {stage: tuple(manifest.inputs) for stage, manifest in found.items()} == expected
    for manifest in found.values():
        for name, digest in manifest.inputs.items():
            assert sha256_of(folder / name) == digest


def test_each_stage_states_the_settings_that_it_reads(went_through):
    (folder,) = all_runs(went_through.run_root)
    read = trained()[2]
    stated = {stage: set(manifest.settings) for stage, manifest in manifests(folder).items()}
    others = CHECKED | FETCHED | PROVED
    assert {each: read[each] - UNDECIDING - others.get(each, set()) for each in STAGES} == stated


def test_a_changed_gate_makes_the_choice_of_the_method_again_without_training_again(tmp_path):
    config = copy_of_trained(tmp_path, gate={"tolerance": 0.03})
    (folder,) = all_runs(config.run_root)
    before, log = written_manifests(folder), (folder / "train" / "sft" / "trainer.log").read_bytes()
    said = []
    for stage in STAGES[:5]:
        pipeline.run_one_stage(config, stage, folder.name, say=said.append)
    done_before = [line.endswith("(done before)") for line in said]
    assert done_before == [True, True, True, False, False]
    after = written_manifests(folder)
    assert after["extract"] == before["extract"]
    assert after["train"] != before["train"]
    assert (folder / "train" / "sft" / "trainer.log").read_bytes() == log


def test_a_run_puts_its_version_on_trial_once(tmp_path):
    config = copy_of_trained(tmp_path, canary={"share": 0.06})
    review.roll_back(config, now=NOW)
    (folder,) = all_runs(config.run_root)
    manifest = pipeline.run_one_stage(config, "deploy", folder.name, say=print)
    assert manifest.summary == "the trial of version 2 has ended"
    assert deployment.current(config).challenger is None


def test_a_run_ends_with_the_base_as_champion_and_its_model_at_five_percent(went_through):
    rollout = deployment.current(went_through)
    assert (rollout.champion, rollout.challenger) == (1, 2)
    assert (rollout.phase, rollout.share) == ("canary", 0.05)
    base, tuned = deployment.versions(went_through)
    assert (base.version, base.run_id, base.adapter) == (1, "base", None)
    assert (tuned.version, tuned.run_id) == (2, all_runs(went_through.run_root)[0].name)
    assert sha256_of(tuned.gguf) == tuned.sha256 != base.sha256
    assert tuned.adapter.is_dir()


def test_a_version_is_generator_and_reward(went_through):
    """As served the reward is the one that was learned: parity compared all of its tips."""
    (folder,) = all_runs(went_through.run_root)
    base, tuned = deployment.versions(went_through)
    assert base.reward is None
    assert tuned.reward.parts[-3:] == (folder.name, "export", "reward")
    outputs = manifests(folder)["export"].outputs
    assert {f"reward/{path.name}" for path in tuned.reward.iterdir()} <= set(outputs)
    rewards, bounds = Scorer(tuned.reward).score((1, 2, 3), [(97, 98, 99), (119, 120, 121)])
    assert rewards[0] > rewards[1]  # letters that people like, and others
    assert (bounds <= rewards).all()
    proof = json.loads((folder / "export" / "parity.json").read_text())["reward"]
    assert proof["largest"] < 0.2
    client, name = mlflow_client(went_through), went_through.registry.model_name
    version = client.get_model_version(name, "2")
    logged = {file.path for file in client.list_artifacts(version.run_id, "reward")}
    assert logged == {f"reward/{path.name}" for path in tuned.reward.iterdir()}
    metrics = client.get_run(version.run_id).data.metrics
    assert metrics["parity/reward_largest"] == proof["largest"]
    assert version.tags["generator"] == "tuned"


def test_the_teacher_learned_from_the_training_part_alone_and_what_is_served_from_all(went_through):
    (folder,) = all_runs(went_through.run_root)
    examples = read_examples(folder / "dataset")
    teacher, served = pipeline.teacher_of(folder), load_reward(folder / "reward")
    everyone = sum(map(len, examples.values()))
    assert teacher.facts["reactions"] == len(examples["train"]) < everyone
    assert served.facts["reactions"] == everyone
    read = pq.read_table(folder / "reward" / "features.parquet")["user_key"].to_pylist()
    assert set(read) == {each.user_key for some in examples.values() for each in some}


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_training_and_gate_ask_the_teacher(tmp_path, monkeypatch, stage):
    """What was served would be judged by the people whom it learned from."""
    config = copy_of_trained(tmp_path, train={"method": "auto"})
    (folder,) = all_runs(config.run_root)
    (folder / stage / "manifest.json").unlink()
    asked = []

    def load(place):
        asked.append(place.name)
        raise DataError("asked")

    monkeypatch.setattr(pipeline, "load_reward", load)
    with pytest.raises(DataError, match="asked"):
        pipeline.run_one_stage(config, stage, folder.name, say=print)
    assert asked == ["teacher"]


def test_a_run_of_a_version_with_one_reward_is_taught_by_it(went_through, tmp_path):
    (folder,) = all_runs(went_through.run_root)
    shutil.copytree(folder / "reward", tmp_path / "reward")
    shutil.rmtree(tmp_path / "reward" / "teacher")
    assert pipeline.teacher_of(tmp_path).facts == load_reward(folder / "reward").facts


def test_where_the_tuned_model_is_refused_the_new_reward_gets_an_earlier_generator(tmp_path):
    one = copy_of_trained(tmp_path)
    (folder,) = all_runs(one.run_root)
    assert pipeline.earlier_generator(one, folder) is None
    config = one.model_copy(update={"serve": one.serve.model_copy(update={"candidates": 4})})
    assert pipeline.earlier_generator(config, folder) == Generator("base", "base")
    review.promote(config, now=NOW)
    champion = deployment.champion(config)
    expected = Generator("champion", folder.name, 2)
    assert pipeline.earlier_generator(config, folder) == expected
    own = pipeline.adapter_of(config, folder, expected, tmp_path / "export")
    assert files_in(own) == files_in(champion.adapter)
    with deployment.database(config) as engine, writing(engine) as connection:
        schedule_replacement(connection, 2, NOW)
    assert pipeline.earlier_generator(config, folder) == Generator("base", "base")
    (folder / "reward" / "manifest.json").unlink()
    assert pipeline.earlier_generator(config, folder) is None


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_base_and_then_a_champion_go_on_with_a_new_reward(tmp_path):
    # It learns nothing at this rate, so the gate must refuse what it trained.
    changes = {
        "train": {"learning_rate": 1e-12, "epochs": 1},
        "serve": {"candidates": 4, "max_tokens": 8, "threads": 1, "parallel": 1},
        "export": {"parity_prompts": 4, "max_logprob_gap": 1.0, "min_greedy_agreement": 0},
    }
    (tmp_path / "base").mkdir()
    config = install(tmp_path / "base", **changes)
    take_in(config, reactions(200))
    manifest, said = run(config)
    assert manifest.stage == "deploy"
    assert "tuned model refused: not certainly better than base" in said[5]
    assert "generator: base, with the new reward" in said[5]
    first, second = deployment.versions(config)
    assert (second.adapter, second.reward.is_dir()) == (None, True)
    assert second.sha256 == first.sha256

    config = copy_of_trained(tmp_path / "champion", **changes)
    (trained_in,) = all_runs(config.run_root)
    review.promote(config, now=NOW)
    take_in(config, reactions(40, first=1_000, day=1))
    manifest, said = run(config)
    assert manifest.stage == "deploy"
    assert "generator: champion (version 2), with the new reward" in said[5]
    _, second, third = deployment.versions(config)
    assert third.sha256 == second.sha256
    assert files_in(third.adapter) == files_in(second.adapter)
    assert third.adapter.parent.parent.name == third.run_id != second.run_id
    assert files_in(third.reward) != files_in(second.reward)
    assert generator_run(config.run_root / third.run_id) == trained_in.name
    tags = mlflow_client(config).get_model_version(config.registry.model_name, "3").tags
    assert tags["generator"] == "champion (version 2)"


@pytest.mark.slow
def test_a_run_that_was_evaluated_before_versions_had_rewards_is_released(tmp_path):
    """It read neither the reward nor the gate's choice of a generator, and stays as it was done."""
    config = copy_of_trained(tmp_path)
    (folder,) = all_runs(config.run_root)
    gate = folder / "evaluate" / "gate.json"
    values = json.loads(gate.read_text())
    del values["generator"]
    gate.write_text(json.dumps(values))
    shutil.rmtree(folder / "reward")
    evaluated = recorded_manifest(folder / "evaluate")
    inputs = {k: v for k, v in evaluated.inputs.items() if not k.startswith("reward/")}
    outputs = {**evaluated.outputs, "gate.json": sha256_of(gate)}
    counts = {"examples": 20, "pairs": 50}
    old = replace(evaluated, inputs=inputs, outputs=outputs, counts=counts)
    write_manifest(folder / "evaluate", old)
    manifest = pipeline.run_one_stage(config, "evaluate", folder.name, say=print)
    assert manifest == old
    manifest = pipeline.run_one_stage(config, "export", folder.name, say=print)
    assert "(generator: tuned)" in manifest.summary
    assert manifest.summary.endswith("no reward: none was learned")
    assert not (folder / "export" / "reward").exists()


def test_the_registry_tells_where_the_model_is_from(went_through):
    (folder,) = all_runs(went_through.run_root)
    client, name = mlflow_client(went_through), went_through.registry.model_name
    assert {
        alias: int(client.get_model_version_by_alias(name, alias).version)
        for alias in ("champion", "challenger")
    } == {"champion": 1, "challenger": 2}
    tags = client.get_model_version(name, "2").tags
    assert tags["dataset"] == manifests(folder)["dataset"].counts["fingerprint"]
    assert len(tags["dataset"]) == 64
    assert tags["base_model"] == went_through.model.base
    assert tags["code_version"] == manifests(folder)["train"].versions["reactune"]
    assert tags["gguf_sha256"] == sha256_of(folder / "export" / "model.gguf")
    assert tags["method"] == "sft"


def test_the_registry_holds_curve_pictures_and_files_of_the_run(went_through):
    (folder,) = all_runs(went_through.run_root)
    client = mlflow_client(went_through)
    logged = client.get_model_version(went_through.registry.model_name, "2").run_id
    curve = client.get_metric_history(logged, "loss/sft")
    lines = (folder / "train" / "sft" / "progress.jsonl").read_text().splitlines()
    written = [(line["step"], line["loss"]) for line in map(json.loads, lines)]
    assert [(point.step, point.value) for point in curve] == written
    assert written[-1][1] < written[0][1]
    assert client.get_run(logged).data.params["train.learning_rate"] == "0.02"
    metrics = client.get_run(logged).data.metrics
    assert metrics["reward/reward_accuracy"] == 1.0
    assert 0.5 < metrics["reward/reward_accuracy_low"] < 1.0
    assert metrics["reward/reactions"] == 118
    files = {file.path for file in client.list_artifacts(logged)}
    assert {
        "reward",
        "reward.svg",
        "reward-quality.json",
        "loss.svg",
        "trainer.log",
        "gate.svg",
        "gate.json",
        "model.gguf",
        "prompt",
        "adapter",
    } <= files


def test_the_tuned_model_writes_as_people_like_it(went_through):
    (folder,) = all_runs(went_through.run_root)
    gate = json.loads((folder / "evaluate" / "gate.json").read_text())
    loss = {row["model"]: row["loss"]["value"] for row in gate["rows"]}
    accuracy = {row["model"]: row["accuracy"]["value"] for row in gate["rows"]}
    assert loss["tuned"] < min(loss["base"], loss["few-shot"]) - 1
    assert accuracy["tuned"] > 0.9 > max(accuracy["base"], accuracy["few-shot"])


def test_a_finished_run_that_is_named_again_does_nothing(went_through):
    (folder,) = all_runs(went_through.run_root)
    before = written_manifests(folder)
    manifest, said = run(went_through, run_id=folder.name)
    assert manifest.stage == "deploy"
    assert all(line.endswith("(done before)") for line in said[1:])
    assert written_manifests(folder) == before
    assert len(deployment.versions(went_through)) == 2


def test_a_run_waits_while_a_challenger_is_on_trial(went_through):
    manifest, said = run(went_through)
    assert (manifest.stage, manifest.outcome) == ("extract", "waiting")
    assert manifest.summary.startswith("waiting: version 2 is on trial")
    assert said[-1].startswith("extract   waiting: version 2 is on trial")
    assert len(said) == 2


@pytest.mark.slow
def test_after_a_rollback_a_run_waits_for_new_examples_and_then_trains_on_all(tmp_path):
    # It learns nothing at this rate, so the gate must refuse what it trained.
    config = copy_of_trained(tmp_path, train={"learning_rate": 1e-12, "epochs": 1})
    review.roll_back(config, now=NOW)
    manifest, _ = run(config)
    assert (manifest.stage, manifest.outcome) == ("dataset", "waiting")
    assert manifest.summary == "waiting: 0 of 30 new examples"
    take_in(config, reactions(40, first=1_000, day=1))
    refused, said = run(config)
    last = all_runs(config.run_root)[-1]
    assert manifests(last)["dataset"].counts["counts"]["came_in"] == 240
    assert manifests(last)["dataset"].counts["new"] == 40
    assert (refused.stage, refused.outcome) == ("evaluate", "refused")
    assert "refused: not certainly better than base" in said[-1]
    assert ending(last) == refused
    later = []
    for stage in STAGES[STAGES.index("evaluate") + 1 :]:
        end = pipeline.run_one_stage(config, stage, last.name, say=later.append)
        assert end == refused
    assert all("not done: the run ended at evaluate: " in line for line in later)
    assert not (last / "export").exists()
    assert len(mlflow_versions(config)) == 2
    assert [model.version for model in deployment.versions(config)] == [1, 2]
    assert deployment.current(config).challenger is None


def test_too_few_rows_are_an_end_and_no_error(tmp_path, monkeypatch, capsys):
    config = install(tmp_path)
    take_in(config, reactions(24))
    manifest, said = run(config)
    assert (manifest.stage, manifest.outcome) == ("dataset", "waiting")
    assert manifest.summary == "waiting: 12 of 40 positives, 12 of 40 negatives"
    assert len(said) == 3
    assert deployment.current(config) is None
    monkeypatch.chdir(tmp_path)
    for arguments, code in ((["run"], 0), (["run", "--waiting-exit-code", "99"], 99)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
        assert "dataset   waiting: 12 of 40 positives" in capsys.readouterr().out


def test_without_a_key_nothing_leaves_the_database(tmp_path, monkeypatch):
    config = install(tmp_path)
    take_in(config, reactions(24))
    monkeypatch.delenv("REACTUNE_KEY")
    with pytest.raises(PrivacyError, match="REACTUNE_KEY"):
        run(config)
    (folder,) = all_runs(config.run_root)
    assert manifests(folder) == {}
    assert not list(folder.rglob("*.parquet"))


def test_a_stage_of_a_run_that_is_not_there_is_refused_by_name(tmp_path):
    config = install(tmp_path)
    with pytest.raises(DataError, match="no run '2026-nope'"):
        pipeline.run_one_stage(config, "train", "2026-nope", say=print)


def written_manifests(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/manifest.json")}


def mlflow_versions(config):
    client = mlflow_client(config)
    return client.search_model_versions(f"name = '{config.registry.model_name}'")


def start(config):
    """`reactune run` as a process of its own."""
    return subprocess.Popen(
        [Path(sys.executable).with_name("reactune"), "run"],
        cwd=config.folder,
        env={**os.environ, "REACTUNE_KEY": SECRET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_when(process, condition, *, seconds=180):
    """Kill -9 once the condition holds; False if the process ended before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.01)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return was_running


def left_over(folder):
    """Processes that work in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        seen = process.info
        if seen["status"] == psutil.STATUS_ZOMBIE:
            continue
        if str(folder) in " ".join([seen["cwd"] or "", *(seen["cmdline"] or ())]):
            found.append(process)
    return found


def wait_until_nothing_runs(folder, seconds=10):
    deadline = time.monotonic() + seconds
    while left_over(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_over(folder) == []


def finished(config, before):
    """Run to the end, and check that the end is what one undisturbed run leaves."""
    assert start(config).wait(300) == 0
    (folder,) = all_runs(config.run_root)
    assert ending(folder).stage == "deploy"
    now = written_manifests(folder)
    assert set(now) == set(STAGES)
    assert {stage: now[stage] for stage in before} == before
    versions = mlflow_versions(config)
    assert sorted(int(each.version) for each in versions) == [1, 2]
    assert [model.version for model in deployment.versions(config)] == [1, 2]
    assert stored(
        config, "SELECT champion, challenger, share FROM rollouts WHERE closed_at IS NULL"
    ) == [(1, 2, 0.05)]
    assert aliases_of(config.registry, config.tracking_uri) == {
        "champion": 1,
        "challenger": 2,
    }
    wait_until_nothing_runs(config.folder)


@pytest.mark.slow
def test_killed_at_the_registration_a_run_registers_one_version(tmp_path):
    shutil.copytree(trained()[0] / "runs", tmp_path / "runs")
    config = install(tmp_path)
    take_in(config, reactions(200))
    (folder,) = all_runs(config.run_root)
    for stage in ("register", "deploy"):
        shutil.rmtree(folder / stage)
    before = written_manifests(folder)
    assert set(before) == set(STAGES[:-2])
    process = start(config)
    assert kill_when(process, (folder / "register" / ".lock").exists)
    wait_until_nothing_runs(tmp_path)
    assert written_manifests(folder) == before
    finished(config, before)


@pytest.mark.slow
def test_killed_in_two_stages_a_run_goes_on_and_leaves_what_one_run_leaves(tmp_path):
    config = install(tmp_path)
    take_in(config, reactions(200))
    before = {}
    for sign in ("train/sft/progress.jsonl", "register/.lock"):
        process = start(config)
        assert kill_when(process, lambda sign=sign: any(config.run_root.glob(f"2*/{sign}")))
        wait_until_nothing_runs(tmp_path)
        (folder,) = all_runs(config.run_root)
        now = written_manifests(folder)
        assert {stage: now[stage] for stage in before} == before
        assert sign.partition("/")[0] not in now
        before = now
    assert set(before) == {"extract", "dataset", "reward", "train", "evaluate", "export"}
    finished(config, before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_a_run_goes_on_and_leaves_what_one_run_leaves(tmp_path, seed):
    config = install(tmp_path)
    take_in(config, reactions(200))
    draw = random.Random(seed)
    before = {}
    for _ in range(6):
        until = time.monotonic() + draw.uniform(2, 14)
        was_running = kill_when(start(config), lambda until=until: time.monotonic() > until)
        wait_until_nothing_runs(tmp_path)
        runs = all_runs(config.run_root)
        if not was_running:
            break
        if runs:
            now = written_manifests(runs[0])
            assert {stage: now[stage] for stage in before} == before
            before = now
    if was_running:
        finished(config, before)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_as_a_stage_begins_a_run_goes_on(tmp_path, stage):
    config = install(tmp_path)
    take_in(config, reactions(200))
    kill_when(start(config), lambda: any(config.run_root.glob(f"2*/{stage}/.lock")))
    wait_until_nothing_runs(tmp_path)
    (folder,) = all_runs(config.run_root)
    finished(config, written_manifests(folder))
