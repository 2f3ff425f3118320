"""Turns new reactions into a better tip generator, and opens its trial with the first users.

Runs every night, and whenever the asset `tip_scores` reports new reactions. One run of reactune per
DAG run, one stage per task; only the run's name is passed on. A **skipped** task is no fault: there
was too little to learn from, the trained model was not better, or the challenger before it is still
on trial; the log of the first skipped task has the reason. A retry goes on where the try before it
stopped.
"""

from airflow.sdk import DAG
from reactune_tasks import DEFAULTS, TIP_GENERATOR, TIP_SCORES, schedule, stage

with DAG(
    dag_id="finetune_tip_generator",
    schedule=schedule("REACTUNE_AIRFLOW_FINETUNE_CRON", "0 3 * * *", TIP_SCORES),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["reactune"],
) as dag:
    extract = stage(
        "extract",
        minutes=120,
        doc="Reads reactions, labels them, and replaces personal data by placeholders; only what"
        " comes out of here leaves the database. Skipped while a challenger is on trial.",
    )
    dataset = stage(
        "dataset",
        minutes=60,
        doc="Makes examples of them, split by user, without duplicates. Skipped where there are"
        " too few, or too few new ones; `dataset/README.md` in the run folder has the details.",
    )
    reward = stage(
        "reward",
        minutes=120,
        doc="Learns from the examples what people like, as a linear reward on the base model's"
        " hidden states. Where that is no better than chance, it says so and the run goes on.",
    )
    train = stage(
        "train",
        minutes=720,
        pool="gpu",
        doc="Fine-tunes the base model in a process of its own. Killed, it goes on at its last"
        " checkpoint. Takes a slot of the pool `gpu`.",
    )
    evaluate = stage(
        "evaluate",
        minutes=240,
        doc="Compares the tuned model on held-out users with the base model, a few-shot prompt and"
        " the champion. A model that is not better goes no further: the tasks after are skipped.",
    )
    export = stage(
        "export",
        minutes=120,
        doc="Merges base and adapter into one GGUF file, and proves that it answers as the trained"
        " model does, token by token.",
    )
    register = stage(
        "register",
        minutes=30,
        doc="Registers the file as a version in MLflow, with the data and settings it is from.",
    )
    shadow_deploy = stage(
        "deploy",
        task_id="shadow_deploy",
        minutes=30,
        outlets=[TIP_GENERATOR],
        doc="Makes the version challenger: it writes the first few per cent of the tips that are"
        " shown. Updates the asset `tip-generator`, which starts a review.",
    )
    extract >> dataset >> reward >> train >> evaluate >> export >> register >> shadow_deploy
