"""Decides about the challenger by the reactions to its tips.

Runs every hour, and whenever the asset `tip-generator` reports a new one. The bounds hold for any
number of reviews. Of `promote`, `roll_back` and `wait` one is done and the others are **skipped**;
all are skipped while there is no challenger.
"""

from airflow.sdk import DAG
from reactune_tasks import DEFAULTS, TIP_GENERATOR, review, schedule

with DAG(
    dag_id="review_tip_generator",
    schedule=schedule("REACTUNE_AIRFLOW_REVIEW_CRON", "30 * * * *", TIP_GENERATOR),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["reactune"],
) as dag:
    compare = review(
        "compare",
        minutes=60,
        doc="Compares the reactions to challenger and champion; changes nothing. Without a"
        " challenger it repairs the aliases in MLflow and the model server, and skips the rest.",
    )
    decide = review(
        "decide",
        minutes=10,
        doc="Draws the verdict from the comparison; `decide/decision.json` in the review's folder"
        " has it with its reason and numbers.",
    )
    promote = review(
        "promote",
        minutes=30,
        doc="Makes the challenger champion, if that was decided and it is still on trial.",
    )
    roll_back = review(
        "rollback",
        task_id="roll_back",
        minutes=30,
        doc="Withdraws the challenger, if that was decided and it is still on trial.",
    )
    wait = review(
        "wait",
        minutes=30,
        doc="Raises the challenger's share of the tips if the bounds allow it, and"
        " records why it is too early to decide.",
    )
    compare >> decide >> [promote, roll_back, wait]
