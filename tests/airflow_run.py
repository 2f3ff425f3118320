"""Run by Airflow's own Python: DAG runs in this process, one after another, by `dag.test()`.

Arguments: the folder of the DAGs, a file for the results, and pairs of settings file and DAG.
"""

import json
import os
import sys
from pathlib import Path

from airflow.dag_processing.dagbag import BundleDagBag

folder, results, *pairs = map(str, sys.argv[1:])
bag = BundleDagBag(dag_folder=folder, bundle_path=Path(folder), bundle_name="dags-folder")
if bag.import_errors:
    sys.exit(str(bag.import_errors))
found = []
for settings, name in zip(pairs[::2], pairs[1::2], strict=True):
    os.environ["REACTUNE_CONFIG"] = settings
    run = bag.get_dag(name).test()
    states = {task.task_id: task.state for task in run.get_task_instances()}
    found.append({"state": run.state, "tasks": states})
    Path(results).write_text(json.dumps(found))
