"""The guide to several machines: its commands on two nodes of Ray, and on a real S3 server.

Only parsed, in `test_consoles.py`: `ray start`. The two nodes are started here, so that no other
Ray on this machine is joined.
"""

import os

import pytest

from cli_fixtures import KEY
from console_fixtures import commands_of, run_in_shell
from loop_fixtures import install, reactions, read_rows
from places import REPOSITORY
from reactune.privacy.hashing import HashingKey
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests

COMMANDS = commands_of("cluster.md")
RAY = COMMANDS.index("export RAY_ADDRESS=head.example:6379")
BUCKET = next(place for place, each in enumerate(COMMANDS) if "AWS_ACCESS" in each)

pytestmark = pytest.mark.slow


@pytest.fixture
def tips(tmp_path):
    """Settings and a few reactions."""
    config = install(tmp_path)
    read_rows(config, reactions(24), key=HashingKey(KEY.encode()))
    return config


def waits(config):
    (folder,) = all_runs(config.run_root)
    return manifests(folder)["dataset"].summary.startswith("waiting: 12 of 40 positives")


@pytest.mark.filterwarnings("ignore")
def test_rows_are_made_safe_by_the_cluster_that_the_page_names(tips, tmp_path):
    cluster = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1}
    )
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        commands = [
            each.replace("head.example:6379", cluster.address) for each in COMMANDS[RAY : RAY + 2]
        ]
        paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
        run_in_shell(
            commands, tmp_path, REACTUNE_KEY=KEY, PYTHONPATH=os.pathsep.join(paths),
            RAY_worker_niceness="0",
        )  # fmt: skip
    finally:
        cluster.shutdown()
    assert waits(tips)


def test_rows_are_made_safe_by_several_processes(tips, tmp_path):
    run_in_shell(COMMANDS[:1], tmp_path, REACTUNE_KEY=KEY)
    assert waits(tips)


def test_the_stages_of_a_run_are_kept_in_a_bucket(tips, tmp_path, s3_url):
    s3fs = pytest.importorskip("s3fs")
    credentials = {"AKIAEXAMPLE": "tests", "=example": "=tests", "s3://bucket/runs": s3_url}
    status, *stages = COMMANDS[BUCKET + 2 :]
    exports = COMMANDS[BUCKET : BUCKET + 2]
    for name, ours in credentials.items():
        exports = [each.replace(name, ours) for each in exports]
        status = status.replace(name, ours)
    with (tips.folder / "reactune.toml").open("a", encoding="utf-8") as file:
        file.write(f'[run]\nroot = "{s3_url}"\n')
    run_in_shell([*exports, status, *stages], tmp_path, REACTUNE_KEY=KEY)
    kept = s3fs.S3FileSystem().find(s3_url)
    manifests_there = {
        name.rpartition("/runs/")[2] for name in kept if name.endswith("manifest.json")
    }
    run = stages[0].split()[-1]
    assert manifests_there == {f"{run}/extract/manifest.json", f"{run}/dataset/manifest.json"}
