#!/usr/bin/env bash
# Start Airflow on this machine, with the DAGs and the demo's reactions. Everybody is admin there,
# so it listens on this machine alone. REACTUNE_CONFIG names other settings than the demo's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

port=${AIRFLOW_PORT:-8080}
demo=$PWD/.airflow/demo
export PATH=$PWD/.airflow/venv/bin:$PATH
export AIRFLOW_HOME=$PWD/.airflow/home
export AIRFLOW__CORE__DAGS_FOLDER=$PWD/dags
export AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION=False
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS=True
export AIRFLOW__CORE__PARALLELISM=2
export AIRFLOW__CORE__EXECUTION_API_SERVER_URL=http://127.0.0.1:$port/execution/
export AIRFLOW__API__HOST=127.0.0.1
export AIRFLOW__API__PORT=$port
export AIRFLOW__API__WORKERS=1
# Its default, five seconds, is too short for a busy machine of two cores.
export AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT=60
export AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES=1
export REACTUNE_BIN=${REACTUNE_BIN:-$PWD/.venv/bin/reactune}

if [ -z "${REACTUNE_CONFIG:-}" ]; then
  if [ ! -f "$demo/complete" ]; then
    rm -rf "$demo"
    "$REACTUNE_BIN" demo --cycles 0 --folder "$demo"
    touch "$demo/complete"
  fi
  export REACTUNE_CONFIG=$demo/reactune.toml
  REACTUNE_KEY=$(cat "$demo/key")
  export REACTUNE_KEY
fi

airflow db migrate >"$PWD/.airflow/migrate.log" 2>&1 || { cat "$PWD/.airflow/migrate.log" >&2; exit 1; }
airflow pools set gpu 1 "trainings at a time" >/dev/null

cat <<TEXT

Airflow comes up at http://localhost:$port in half a minute: open the DAG finetune_tip_generator and
trigger it. Everybody who reaches that page is admin; this is for a look, not for production.
Settings: $REACTUNE_CONFIG. Ctrl-C ends it, after the task that runs.

TEXT
exec airflow standalone
