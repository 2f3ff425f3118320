"""Run by Airflow's own Python: reads the DAG files and writes down what is in them, as JSON."""

import json
import sys

import airflow.sdk  # noqa: F401  what Airflow itself brings does not count as ours

before = set(sys.modules)
sys.path.insert(0, sys.argv[1])

import finetune_tip_generator  # noqa: E402
import review_tip_generator  # noqa: E402


def described(task):
    """What a task is and does."""
    parts = ("bash_command", "command", "cmds", "arguments", "image", "name", "namespace", "mounts")
    return {
        "operator": type(task).__name__,
        "upstream": sorted(task.upstream_task_ids),
        "retries": task.retries,
        "backoff": task.retry_exponential_backoff,
        "seconds": task.execution_timeout.total_seconds(),
        "pool": task.pool,
        "doc": task.doc_md,
        "outlets": [asset.name for asset in task.outlets],
        "skips_on": list(task.skip_on_exit_code),
        "on_failure": [callback.__name__ for callback in task.on_failure_callback],
        **{name: getattr(task, name) for name in parts if hasattr(task, name)},
    }


DAGS = (finetune_tip_generator.dag, review_tip_generator.dag)
found = {
    "modules": sorted(set(sys.modules) - before),
    "dags": {
        dag.dag_id: {
            "max_active_runs": dag.max_active_runs,
            "catchup": dag.catchup,
            "doc": dag.doc_md,
            "cron": dag.timetable.timetable.expression,
            "assets": [asset.name for asset in dag.timetable.asset_condition.objects],
            "tasks": {task.task_id: described(task) for task in dag.topological_sort()},
        }
        for dag in DAGS
    },
}
sys.stdout.write("\n" + json.dumps(found) + "\n")
