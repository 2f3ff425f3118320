"""Rows of runs: written by the run itself, filled in for earlier ones, changed by an erasure."""

import json
from dataclasses import replace

import sqlalchemy as sa

from loop_fixtures import copy_of_trained
from reactune.records import STAGES
from reactune.runs.folders import StageResult, all_runs, new_run, run_stage
from reactune.runs.manifest import recorded_manifest, recorded_manifests, write_manifest
from reactune.runs.remote import RunRoot, pull, push, run_root
from reactune.runs.summaries import MOST_POINTS, _thinned, summarise
from reactune.store.database import create_store, opened_store, reading, writing
from reactune.store.schema import stage_summaries, tip_scores
from reactune.store.summaries import summaries_of


def rows_of(config):
    (run,) = all_runs(config.run_root)
    with opened_store(config.store_url) as engine, reading(engine) as connection:
        return run, summaries_of(connection, [run.name])


def fill_in(config):
    with opened_store(config.store_url) as engine:
        return summarise(engine, run_root(config), all_runs(config.run_root))


def test_a_run_writes_a_row_for_each_stage(tmp_path):
    config = copy_of_trained(tmp_path)
    run, rows = rows_of(config)
    assert [each.stage for each in rows] == list(STAGES)
    for each in rows:
        manifest = recorded_manifest(run / each.stage)
        assert each.line == manifest.summary
        assert each.counts == json.loads(json.dumps(manifest.counts))
        assert each.lineage["outputs"] == manifest.outputs
    figures = {each.stage: each.figures for each in rows}
    gate = json.loads((run / "evaluate" / "gate.json").read_text())
    assert figures["evaluate"]["rows"] == gate["rows"]
    curves = json.loads((run / "train" / "training.json").read_text())["curves"]
    assert figures["train"]["curves"]["sft"][-1] == curves["sft"][-1]


def test_no_row_of_a_run_holds_a_text_of_its_tips(tmp_path):
    config = copy_of_trained(tmp_path)
    with opened_store(config.store_url) as engine, reading(engine) as connection:
        tips = connection.execute(sa.select(tip_scores.c.tip_content, tip_scores.c.tip_id)).all()
        texts = [str(row) for row in connection.execute(sa.select(stage_summaries)).all()]
    assert len(tips) > 100
    assert [text for tip, tip_id in tips for text in texts if tip in text or tip_id in text] == []


def test_a_run_of_an_earlier_version_is_filled_in_once(tmp_path):
    config = copy_of_trained(tmp_path)
    _, before = rows_of(config)
    with opened_store(config.store_url) as engine, writing(engine) as connection:
        connection.execute(stage_summaries.delete())
    assert fill_in(config) == len(STAGES)
    assert fill_in(config) == 0
    assert rows_of(config)[1] == before


def test_a_stage_that_an_erasure_changed_is_written_anew(tmp_path):
    config = copy_of_trained(tmp_path)
    run, _ = rows_of(config)
    manifest = recorded_manifest(run / "dataset")
    note = {"erasure": "20260304-120000-abcd", "rows": 3}
    write_manifest(run / "dataset", replace(manifest, erased=[note]))
    assert fill_in(config) == 1
    changed = [each for each in rows_of(config)[1] if each.lineage["erased"]]
    assert [(each.stage, each.lineage["erased"]) for each in changed] == [
        ("dataset", ["20260304-120000-abcd"])
    ]


def test_a_stage_that_is_undone_has_no_row(tmp_path):
    config = copy_of_trained(tmp_path)
    run, _ = rows_of(config)
    (run / "deploy" / "manifest.json").unlink()
    fill_in(config)
    assert [each.stage for each in rows_of(config)[1]] == list(STAGES[:-1])
    assert "deploy" not in recorded_manifests(run)


def test_figures_that_cannot_be_read_are_left_out_with_a_warning(tmp_path, caplog):
    config = copy_of_trained(tmp_path)
    run, _ = rows_of(config)
    with opened_store(config.store_url) as engine, writing(engine) as connection:
        connection.execute(stage_summaries.delete())
    (run / "evaluate" / "gate.json").write_text("{")
    fill_in(config)
    rows = {each.stage: each for each in rows_of(config)[1]}
    assert rows["evaluate"].figures == {}
    assert rows["train"].figures["curves"]
    assert "the pages show no figures of it" in caplog.text


def test_a_long_curve_is_thinned_to_its_limit_and_keeps_its_end():
    curve = [[step, 1.0] for step in range(1_234)]
    thin = _thinned(curve)
    assert len(thin) <= MOST_POINTS
    assert thin[-1] == curve[-1]
    assert _thinned(curve[:7]) == curve[:7]
    assert _thinned([]) == []


def test_the_figures_of_another_worker_s_run_are_fetched(tmp_path, store_url):
    shared = (tmp_path / "shared").as_uri()
    there, here = (RunRoot(tmp_path / name, url=shared) for name in ("there", "here"))
    gate = {"rows": [{"model": "tuned"}], "pairs": 3, "examples": 2, "refusals": []}

    def work(folder):
        (folder / "gate.json").write_text(json.dumps(gate))
        return StageResult("2 held-out tips in", outputs=("gate.json",))

    run = new_run(there.folder, {}, run_id="20260102-030405-0000")
    push(there, run, ["config.json"])
    run_stage(run, "evaluate", work, inputs={}, settings={}, root=there)
    pull(here)
    (other,) = all_runs(here.folder)
    assert not (other / "evaluate" / "gate.json").exists()
    engine = create_store(store_url)
    assert summarise(engine, here, [other]) == 1
    with reading(engine) as connection:
        (row,) = summaries_of(connection, [other.name])
    engine.dispose()
    assert (row.line, row.figures) == ("2 held-out tips in", gate)
