"""MLflow: each run with all that explains a model, its registered version, and the aliases.

The operational database decides what is live; the aliases follow it. All errors of MLflow arrive
as one `ReleaseError` without passwords, and within seconds.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reactune.config.sections import RegistryConfig
from reactune.errors import ReleaseError, hide_passwords

RUN_TAG = "reactune.run_id"
ALIASES = ("champion", "challenger")
DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")
SERVERS = ("http:", "https:")
ANSWER_SECONDS = 10  # in which a server must answer at all
WEIGHTS = (".gguf", ".safetensors", ".onnx", ".bin")
PARAM_CHARS = 6000  # MLflow's limit
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class Record:
    """All that is logged of a run.

    Curves hold (step, value); `texts` maps names of files to their content; `artifacts` maps files
    and folders to the artifact folder they go into.
    """

    run_id: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[Path, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def register(settings: RegistryConfig, uri: str, record: Record, *, artifact_root: Path) -> int:
    """Log the run and register a version of the model with it; the version's number.

    Repeating it for the same run finds the version that is there; what a kill left half done is
    completed, or marked as failed and repeated where it was logged with other parameters.
    `artifact_root` is where a new experiment keeps its files if the store is a database.

    Raises:
        ReleaseError: the tracking server is away or refuses.
    """
    with _client(uri) as client:
        _ensure_model(client, settings.model_name)
        known = _numbers(client, settings.model_name).get(record.run_id)
        if known is not None:
            return known
        experiment = _experiment(client, settings.experiment, uri, artifact_root)
        tags = {**_plain(record.tags), RUN_TAG: record.run_id}
        run = _unfinished(client, experiment, record) or client.create_run(
            experiment, run_name=record.run_id, tags=tags
        )
        _log(client, run, record)
        client.set_terminated(run.info.run_id, "FINISHED")
        version = client.create_model_version(
            settings.model_name, source=run.info.artifact_uri, run_id=run.info.run_id, tags=tags
        )
        return int(version.version)


def check(settings: RegistryConfig, uri: str) -> str:
    """A few words on the experiment, if runs can be logged in it; nothing is made or changed.

    Raises:
        ReleaseError: MLflow is away, something else answers in its place, or the experiment was
            deleted there.
    """
    name = settings.experiment
    found = _in_database(name, uri) if uri.startswith(DATABASES) else _on_server(name, uri)
    if found is None:
        return f"experiment {name} is made by the first version"
    number, stage = found
    if stage != "active":
        raise ReleaseError(
            f"the experiment {name} was deleted in MLflow at {uri}; restore it (`mlflow "
            f"experiments restore --experiment-id {number}`), or name another registry.experiment"
        )
    return f"experiment {name} is active"


def _in_database(name: str, uri: str) -> tuple[str, str] | None:
    """Number and stage of an experiment, read without MLflow, which would make the tables."""
    query = "SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = :name"
    engine = sa.create_engine(uri, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            row = connection.execute(sa.text(query), {"name": name}).first()
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        raise _refusal(uri, error) from error
    return None if row is None else (str(row[0]), str(row[1]))


def _on_server(name: str, uri: str) -> tuple[str, str] | None:
    with _client(uri) as client:
        found = client.get_experiment_by_name(name)
    if found is not None and found.name != name:  # MLflow reads any JSON as an empty experiment
        raise ReleaseError(
            f"what answers at {uri} is no MLflow; correct [registry] tracking_uri, or start "
            "`mlflow server` there"
        )
    return None if found is None else (str(found.experiment_id), str(found.lifecycle_stage))


def set_aliases(
    settings: RegistryConfig, uri: str, *, champion: int, challenger: int | None
) -> list[str]:
    """Make the aliases follow what is live; a line per change is returned.

    Raises:
        ReleaseError: the tracking server is away, or a version is not registered there.
    """
    wanted = {"champion": champion, "challenger": challenger}
    with _client(uri) as client:
        aliases = client.get_registered_model(settings.model_name).aliases
        changed = []
        for alias in ALIASES:
            current = int(aliases[alias]) if alias in aliases else None
            if current == wanted[alias]:
                continue
            if wanted[alias] is None:
                client.delete_registered_model_alias(settings.model_name, alias)
            else:
                client.set_registered_model_alias(settings.model_name, alias, str(wanted[alias]))
            changed.append(f"registry alias {alias}: {current} -> {wanted[alias]}")
        return changed


def tag_versions(settings: RegistryConfig, uri: str, tags: Mapping[int, Mapping[str, str]]) -> None:
    """Put tags on versions of the model; those that are not registered there are left out.

    Raises:
        ReleaseError: the tracking server is away.
    """
    with _client(uri) as client:
        known = set(_numbers(client, settings.model_name).values())
        for number, values in tags.items():
            for name, value in values.items() if number in known else ():
                client.set_model_version_tag(
                    settings.model_name, str(number), name, hide_passwords(value)
                )


def remove_files(settings: RegistryConfig, uri: str, number: int) -> None:
    """Remove the files that were logged with a version; its numbers and curves stay.

    Raises:
        ReleaseError: the tracking server is away, or refuses.
    """
    with _client(uri) as client:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        for version in client.search_model_versions(f"name = '{settings.model_name}'"):
            if int(version.version) == number and version.run_id:
                place = client.get_run(version.run_id).info.artifact_uri
                get_artifact_repository(place, tracking_uri=uri).delete_artifacts()


def contents(settings: RegistryConfig, uri: str, scratch: Path) -> Iterator[tuple[str, str | Path]]:
    """All that MLflow holds of our model but weights: texts, and files.

    A file is deleted when the next item is taken.

    Raises:
        ReleaseError: the tracking server is away.
    """
    with _client(uri) as client:
        for version in client.search_model_versions(f"name = '{settings.model_name}'"):
            yield f"version {version.version}", str(dict(version))
        experiment = client.get_experiment_by_name(settings.experiment)
        token = None
        while experiment and token != "":
            runs = client.search_runs([experiment.experiment_id], run_view_type=3, page_token=token)
            for run in runs:
                yield f"run {run.info.run_name}", str(run.to_dictionary())
                for name in _files(client, run.info.run_id):
                    place = Path(client.download_artifacts(run.info.run_id, name, str(scratch)))
                    yield f"run {run.info.run_name}: {name}", place
                    place.unlink()
            token = runs.token or ""


def _log(client: Any, entry: Any, record: Record) -> None:
    """Log all of a record; what is there already is not logged twice."""
    from mlflow.entities import Metric, Param

    # The same time when a killed attempt is completed: then a metric is the same row.
    run, moment = entry.info.run_id, entry.info.start_time
    params = [Param(name, value) for name, value in _params(record).items()]
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])
    metrics = [Metric(name, value, moment, 0) for name, value in record.metrics.items()]
    for name, curve in record.curves.items():
        metrics += [Metric(name, value, moment, step) for step, value in curve]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[start : start + 1000])
    for name, text in record.texts.items():
        client.log_text(run, hide_passwords(text), name)
    for path, folder in record.artifacts.items():
        log = client.log_artifacts if path.is_dir() else client.log_artifact
        log(run, str(path), folder or None)


def _params(record: Record) -> dict[str, str]:
    return {name: text[:PARAM_CHARS] for name, text in _plain(record.params).items()}


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: hide_passwords(str(value)) for name, value in values.items()}


def _unfinished(client: Any, experiment: str, record: Record) -> Any | None:
    """A killed attempt that can be completed; all others are marked as failed.

    A parameter that is logged cannot be changed, so an attempt with others cannot be completed.
    """
    wanted = _params(record)
    unfinished = None
    for run in client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{record.run_id}'"):
        if unfinished is None and run.data.params.items() <= wanted.items():
            unfinished = run
        else:
            client.set_terminated(run.info.run_id, "FAILED")
    return unfinished


def _experiment(client: Any, name: str, uri: str, artifact_root: Path) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # A server has its own place for files; a database would take ./mlruns.
    local = artifact_root.absolute().as_uri() if uri.startswith(DATABASES) else None
    return str(client.create_experiment(name, artifact_location=local))


def _ensure_model(client: Any, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Written by reactune.")


def _numbers(client: Any, name: str) -> dict[str, int]:
    versions = client.search_model_versions(f"name = '{name}'")
    tagged = [(each.tags.get(RUN_TAG), int(each.version)) for each in versions]
    return {run: number for run, number in sorted(tagged, key=lambda each: -each[1]) if run}


def _files(client: Any, run: str, folder: str | None = None) -> Iterator[str]:
    for each in client.list_artifacts(run, folder):
        if each.is_dir:
            yield from _files(client, run, each.path)
        elif not each.path.endswith(WEIGHTS):
            yield each.path


@contextmanager
def _client(uri: str) -> Iterator[Any]:
    """A client of the store; its log lines are hidden, its errors become `ReleaseError`."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # MLflow's own use of what SQLAlchemy will drop.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\.")
        try:
            if uri.startswith(DATABASES):
                _require_database(uri)
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from requests import RequestException
        except ImportError as error:
            raise ReleaseError(
                f"{error.name} is not installed, which the registry needs; "
                "run `pip install 'reactune[train,postgres]'`"
            ) from error
        except sa.exc.SQLAlchemyError as error:
            raise _refusal(uri, error) from error
        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            if uri.startswith(SERVERS):
                _require_server(uri)
            yield MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, RequestException, sa.exc.SQLAlchemyError) as error:
            raise _refusal(uri, error) from error


def _require_database(uri: str) -> None:
    """Try the database once; MLflow itself would try for minutes, in silence."""
    engine = sa.create_engine(uri, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))


def _require_server(uri: str) -> None:
    """Ask the server for its health; MLflow itself would wait for minutes, in silence."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    credentials = get_default_host_creds(uri)
    http_request(credentials, "/health", "GET", timeout=ANSWER_SECONDS, raise_on_status=False)


def _refusal(uri: str, error: Exception) -> ReleaseError:
    return ReleaseError(
        f"MLflow at {uri} failed: {_first_line(error)}; see [registry] tracking_uri, and repeat"
    )


def _first_line(error: Exception) -> str:
    lines = hide_passwords(str(error)).strip().splitlines()
    return (lines or [type(error).__name__])[0][:300]
