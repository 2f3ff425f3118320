"""A command of reactune as an Airflow task: in bash, Docker or Kubernetes, by a setting.

Nothing of reactune is imported here: it has an environment, or an image, of its own.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, BaseOperator, CronTriggerTimetable
from reactune_notifiers import notify

# The same for all tasks of a DAG run and all their tries, and sorts by time.
RUN_ID = "{{ dag_run.run_after.strftime('%Y%m%d-%H%M%S-%f') }}"
SKIP = 99
PR_SET_PDEATHSIG = 1  # linux/prctl.h
TIP_SCORES = Asset("tip_scores")
TIP_GENERATOR = Asset("tip-generator")
DEFAULTS: dict[str, Any] = {
    "retries": int(os.environ.get("REACTUNE_AIRFLOW_RETRIES") or "3"),
    "retry_delay": timedelta(seconds=int(os.environ.get("REACTUNE_AIRFLOW_RETRY_SECONDS") or "60")),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(hours=1),
    "on_failure_callback": notify,
    "do_xcom_push": False,
}


def schedule(name: str, cron: str, asset: Asset) -> AssetOrTimeSchedule:
    """At the times of the named variable's cron expression (UTC), and at updates of an asset."""
    times = CronTriggerTimetable(os.environ.get(name) or cron, timezone="UTC")
    return AssetOrTimeSchedule(timetable=times, assets=[asset])


def stage(name: str, *, minutes: int, doc: str, task_id: str = "", **more: Any) -> BaseOperator:
    """The task that does one stage of the DAG run's run."""
    return task(["stage", name, "--run", RUN_ID], task_id or name, minutes=minutes, doc=doc, **more)


def review(step: str, *, minutes: int, doc: str, task_id: str = "", **more: Any) -> BaseOperator:
    """The task that does one step of the DAG run's review."""
    return task(["review", step, "--id", RUN_ID], task_id or step, minutes=minutes, doc=doc, **more)


def task(command: list[str], task_id: str, *, minutes: int, doc: str, **more: Any) -> BaseOperator:
    """The task that runs a command of reactune; it is skipped where there is nothing to do."""
    operator = OPERATORS[os.environ.get("REACTUNE_AIRFLOW_OPERATOR") or "bash"]
    return operator(
        [*command, "--waiting-exit-code", str(SKIP)],
        task_id=task_id,
        doc_md=doc,
        execution_timeout=timedelta(minutes=minutes),
        **more,
    )


def by_bash(command: list[str], **more: Any) -> BaseOperator:
    """In reactune's own environment on the worker; it ends with the process that started it."""
    from airflow.providers.standard.operators.bash import BashOperator

    start = 'REACTUNE_PARENT=$PPID exec "${REACTUNE_BIN:-reactune}"'
    return BashOperator(
        bash_command=" ".join([start, *command]),
        skip_on_exit_code=SKIP,
        on_execute_callback=end_with_supervisor,
        **more,
    )


def end_with_supervisor(context: dict[str, Any]) -> None:
    """Let Linux end the process of a task when its supervisor ends, for whatever reason.

    Else the command would go on unobserved while Airflow tries the task again.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def by_docker(command: list[str], **more: Any) -> BaseOperator:
    """In a container on the worker's Docker server."""
    from airflow.providers.docker.operators.docker import DockerOperator

    settings = {
        "image": os.environ["REACTUNE_AIRFLOW_IMAGE"],
        "auto_remove": "force",
        "mount_tmp_dir": False,
        "skip_on_exit_code": SKIP,
    }
    return DockerOperator(command=["reactune", *command], **settings | arguments(), **more)


def by_kubernetes(command: list[str], **more: Any) -> BaseOperator:
    """In a pod; a try that follows a lost worker attaches to the pod that is still running."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    settings = {
        "image": os.environ["REACTUNE_AIRFLOW_IMAGE"],
        "name": f"reactune-{more['task_id'].replace('_', '-')}",
        "skip_on_exit_code": SKIP,
    }
    return KubernetesPodOperator(
        cmds=["reactune"], arguments=command, **settings | arguments(), **more
    )


def arguments() -> dict[str, Any]:
    """What a site adds to the operator: mounts, namespace, pod template, resources."""
    return dict(json.loads(os.environ.get("REACTUNE_AIRFLOW_ARGUMENTS") or "{}"))


OPERATORS: dict[str, Callable[..., BaseOperator]] = {
    "bash": by_bash,
    "docker": by_docker,
    "kubernetes": by_kubernetes,
}
