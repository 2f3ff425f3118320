"""MLflow: the run with all that tells how a model came about, and the registered version.

The only importer of mlflow. What is live is decided elsewhere; aliases here only follow it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reactune.config import RegistryConfig
from reactune.errors import ReleaseError

RUN_TAG = "reactune.run_id"
ALIASES = ("champion", "challenger")


@dataclass(frozen=True)
class Record:
    """All that is logged of a run. Curves hold (step, value); `artifacts` maps files and folders
    to the artifact folder they go into; `tables` and `pictures` map file names to text."""

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
    marked as failed and made anew. `artifact_root` is where a new experiment of a local store
    keeps its files.

    Raises:
        ReleaseError: the tracking server is away or refuses.
    """
    with _client(uri) as client:
        _ensure_model(client, settings.model_name)
        known = _versions_of(client, settings.model_name, record.run_id)
        if known:
            return min(known)
        experiment = _experiment(client, settings.experiment, uri, artifact_root)
        _fail_unfinished(client, experiment, record.run_id)
        tags = {**record.tags, RUN_TAG: record.run_id}
        run = client.create_run(experiment, run_name=record.run_id, tags=tags).info.run_id
        _log(client, run, record)
        client.set_terminated(run, "FINISHED")
        source = client.get_run(run).info.artifact_uri
        version = client.create_model_version(
            settings.model_name, source=source, run_id=run, tags=tags
        )
        return int(version.version)


def set_aliases(
    settings: RegistryConfig, uri: str, *, champion: int, challenger: int | None
) -> list[str]:
    """Make the aliases follow what is live; what had to be changed is returned, in words.

    Raises:
        ReleaseError: the tracking server is away, or a version is not registered there.
    """
    wanted = {"champion": champion, "challenger": challenger}
    with _client(uri) as client:
        aliases = client.get_registered_model(settings.model_name).aliases
        changed = []
        for alias in ALIASES:
            found = int(aliases[alias]) if alias in aliases else None
            if found == wanted[alias]:
                continue
            if wanted[alias] is None:
                client.delete_registered_model_alias(settings.model_name, alias)
            else:
                client.set_registered_model_alias(settings.model_name, alias, str(wanted[alias]))
            changed.append(f"registry alias {alias}: {found} -> {wanted[alias]}")
        return changed


def aliases(settings: RegistryConfig, uri: str) -> dict[str, int]:
    """The aliases of the registered model; empty before the first version.

    Raises:
        ReleaseError: the tracking server is away.
    """
    with _client(uri) as client:
        models = client.search_registered_models(f"name = '{settings.model_name}'")
        return {name: int(number) for name, number in models[0].aliases.items()} if models else {}


@contextmanager
def _client(uri: str) -> Iterator[Any]:
    """A client of the store; its chatter is kept from the terminal, its errors become ours."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        try:
            yield mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        except MlflowException as error:
            raise ReleaseError(
                f"MLflow at {uri} did not do it: {str(error).splitlines()[0][:300]}; "
                "see [registry] tracking_uri, and repeat"
            ) from error


def _ensure_model(client: Any, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Written by reactune.")


def _versions_of(client: Any, name: str, run_id: str) -> list[int]:
    versions = client.search_model_versions(f"name = '{name}'")
    return [int(each.version) for each in versions if each.tags.get(RUN_TAG) == run_id]


def _experiment(client: Any, name: str, uri: str, artifact_root: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A server has its own place for files; a local store would take ./mlruns.
    local = None if uri.startswith(("http:", "https:")) else artifact_root.absolute().as_uri()
    return str(client.create_experiment(name, artifact_location=local))


def _fail_unfinished(client: Any, experiment: str, run_id: str) -> None:
    """Mark what a killed attempt left, so that nobody takes it for a whole run."""
    for run in client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run_id}'"):
        client.set_terminated(run.info.run_id, "FAILED")


def _log(client: Any, run: str, record: Record) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(name, str(value)[:6000]) for name, value in record.params.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])
    metrics = [Metric(name, value, 0, 0) for name, value in record.metrics.items()]
    for name, curve in record.curves.items():
        metrics += [Metric(name, value, 0, step) for step, value in curve]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[start : start + 1000])
    for name, text in record.texts.items():
        client.log_text(run, text, name)
    for path, folder in record.artifacts.items():
        log = client.log_artifacts if path.is_dir() else client.log_artifact
        log(run, str(path), folder or None)
