"""Decides about the challenger on what people did with its tips.

Every hour, and whenever the asset `tip-generator` says that there is a new one. The bounds hold
however often one looks. Of `promote`, `roll_back` and `wait` one is done and the others are
**skipped**; all are skipped while nobody is on trial.
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
        doc="Compares the reactions to challenger and champion; changes nothing. With nobody on"
        " trial it puts the aliases in MLflow and the model server right, and the rest is skipped.",
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
        doc="Gives the challenger a larger share of the tips if nothing speaks against it, and"
        " records why it is too early to decide.",
    )
    compare >> decide >> [promote, roll_back, wait]
