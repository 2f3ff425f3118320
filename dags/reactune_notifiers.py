"""Notifications of a task that has failed for good, after its last try.

`REACTUNE_AIRFLOW_NOTIFIER=module:name` names a function of one argument, Airflow's context, or an
instance of one of Airflow's notifiers; both are called the same way.
"""

import json
import logging
import os
import urllib.request
from importlib import import_module
from typing import Any


def notify(context: dict[str, Any]) -> None:
    """Call the notifier of the setting; imported only now, so that parsing does not need it."""
    setting = os.environ.get("REACTUNE_AIRFLOW_NOTIFIER") or "reactune_notifiers:log"
    module, _, name = setting.partition(":")
    getattr(import_module(module), name)(context)


def log(context: dict[str, Any]) -> None:
    """Write an error to the log of the task."""
    logging.getLogger("reactune").error(message(context))


def webhook(context: dict[str, Any]) -> None:
    """Post `{"text": ...}`, which chat programs understand, to REACTUNE_AIRFLOW_WEBHOOK."""
    request = urllib.request.Request(
        os.environ["REACTUNE_AIRFLOW_WEBHOOK"],
        data=json.dumps({"text": message(context)}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


def message(context: dict[str, Any]) -> str:
    """One line: what failed, in which run, why, and where its log is."""
    failed = context["ti"]
    why = context.get("exception") or context.get("reason") or "see its log"
    return (
        f"{failed.dag_id}.{failed.task_id} failed in {failed.run_id}, try {failed.try_number}: "
        f"{why} {getattr(failed, 'log_url', '')}".rstrip()
    )
