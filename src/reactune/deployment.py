"""What is live, and what follows it: champion and challenger, their files, aliases and tags.

One row of `rollouts` says what is live. MLflow's aliases and the model server's tags follow it
and are repaired from it. The base model is version 1 and the first champion.
"""

import secrets
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from reactune import __version__
from reactune.canary import rollout as rollouts
from reactune.config.settings import Config, deciding
from reactune.errors import CanaryError, ReleaseError
from reactune.model.files import BaseModel, base_model
from reactune.model.prompt import load_chat
from reactune.privacy import consent
from reactune.privacy.hashing import HashingKeys
from reactune.records import ModelVersion, Rollout
from reactune.release import parity, registry, runtimes
from reactune.release.gguf import export_release, read_release, write_release
from reactune.release.registry import Record
from reactune.runs.folders import StageResult, run_stage
from reactune.runs.remote import as_local, as_stored, fetch, fetch_release, run_root
from reactune.store import queries
from reactune.store.database import opened_store, reading, writing

BASE_RUN = "base"
BASE_SECTIONS = ("export", "serve", "prompt", "privacy", "model")


def database(config: Config) -> AbstractContextManager[sa.Engine]:
    """The operational database, closed at the end."""
    return opened_store(config.store_url)


def current(config: Config) -> Rollout | None:
    """The rollout that is live, or None before the first champion."""
    with database(config) as engine, reading(engine) as connection:
        return queries.current_rollout(connection)


def live(config: Config) -> Rollout:
    """The rollout that is live.

    Raises:
        CanaryError: nothing is live yet.
    """
    with database(config) as engine, reading(engine) as connection:
        return queries.live_rollout(connection)


def versions(config: Config) -> tuple[ModelVersion, ...]:
    """Every registered version, oldest first, with its files where they lie or will be fetched."""
    root = run_root(config)
    with database(config) as engine, reading(engine) as connection:
        return tuple(as_local(root, model) for model in queries.all_model_versions(connection))


def version(config: Config, number: int) -> ModelVersion:
    """One registered version.

    Raises:
        DataError: there is none of that number.
    """
    with database(config) as engine, reading(engine) as connection:
        return as_local(run_root(config), queries.model_version(connection, number))


def champion(config: Config) -> ModelVersion | None:
    """The version that answers by default, or None before the first."""
    rollout = current(config)
    return version(config, rollout.champion) if rollout else None


def ended_trial(config: Config, number: int) -> Rollout | None:
    """The last rollout in which this version was the challenger, if it has ended."""
    with database(config) as engine, reading(engine) as connection:
        return queries.ended_trial(connection, number)


def to_replace(config: Config) -> dict[int, datetime]:
    """Versions trained on data of users who were erased since, and the date of each for removal."""
    with database(config) as engine, reading(engine) as connection:
        return queries.versions_to_replace(connection)


def user_statuses(config: Config, hashing_keys: HashingKeys) -> consent.UserStatuses:
    """Everybody who may not be learned from."""
    with database(config) as engine, reading(engine) as connection:
        return consent.user_statuses(connection, hashing_keys)


def must_retrain(config: Config) -> bool:
    """Whether what is live, or on trial, is to be replaced whether or not people liked it."""
    rollout = current(config)
    return rollout is not None and not to_replace(config).keys().isdisjoint(
        {rollout.champion, rollout.challenger}
    )


def ensure_champion(config: Config) -> ModelVersion:
    """The champion; where there is none yet, the base model becomes it, exported and registered.

    Raises:
        ReleaseError: the base cannot be exported or registered, or the model server is away or
            answers otherwise than transformers.
    """
    found = champion(config)
    if found is not None:
        return found
    base = base_model(config.model)
    release = export_base_model(config, base)
    model = register(config, release, Record(run_id=BASE_RUN, tags={"base_digest": base.digest}))
    with database(config) as engine:
        rollouts.bootstrap_champion(
            engine, model.version, settings=config.canary, now=datetime.now(UTC)
        )
    repair_projections(config)
    return model


def prove_base(config: Config, base: BaseModel) -> None:
    """Return if the base is served as transformers computes it, or something is live already.

    Nothing is trained before that; the export is the one that becomes the first champion.

    Raises:
        ReleaseError: as `ensure_champion`.
    """
    if current(config) is None:
        export_base_model(config, base)


def export_base_model(config: Config, base: BaseModel) -> ModelVersion:
    """The base model as a release, exported as every later version is, unless it is already.

    Raises:
        ReleaseError: it cannot be exported, or the model server is away or answers otherwise than
            transformers.
    """
    chat = load_chat(base.folder, config.prompt, privacy=config.privacy)
    root = run_root(config)

    def work(folder: Path) -> StageResult:
        made = export_release(base, chat, None, folder, run_id=BASE_RUN, settings=config.export)
        report = _proof_of_base(config, base, made)
        return StageResult(
            f"{made.quantisation} of the base model; {report.line()}", write_release(made)
        )

    settings = deciding(config, BASE_SECTIONS)
    run_stage(root.folder / BASE_RUN, "export", work, inputs={}, settings=settings, root=root)
    fetch(root, BASE_RUN, "export")
    return read_release(root.folder / BASE_RUN)


def _proof_of_base(config: Config, base: BaseModel, release: ModelVersion) -> parity.ParityReport:
    chat = load_chat(release.prompt_folder, config.prompt, privacy=config.privacy)
    with closing(runtimes.connect(config.serve)) as runtime:
        report = parity.check_base(
            base, release, chat=chat, runtime=runtime, settings=config.export
        )
    if report.failures:
        raise ReleaseError(
            f"the base model {release.base} cannot be served as it was trained: "
            f"{'; '.join(report.failures)}; take another [model] base, [prompt] template or "
            "[export] quantisation"
        )
    return report


def register(config: Config, release: ModelVersion, record: Record) -> ModelVersion:
    """Give a release its number and name, in the registry and in the operational database.

    What is in `record` is logged with it, and the release's own files and facts. Repeating it
    for the same run finds the version that is there.
    """
    facts = {
        "base_model": release.base,
        "quantisation": release.quantisation,
        "gguf_sha256": release.sha256,
        "code_version": __version__,
    }
    files = {release.gguf: "", release.prompt_folder: release.prompt_folder.name}
    if release.adapter is not None:
        files[release.adapter] = "adapter"
    if release.reward is not None:
        files[release.reward] = "reward"
    number = registry.register(
        config.registry,
        config.tracking_uri,
        replace(record, tags={**record.tags, **facts}, artifacts={**record.artifacts, **files}),
        artifact_root=config.folder / "mlflow-artifacts",
    )
    model = replace(release, version=number, name=f"{config.registry.model_name}:v{number}")
    with database(config) as engine, writing(engine) as connection:
        queries.add_model_version(connection, as_stored(run_root(config), model), datetime.now(UTC))
    return model


def replace_together(config: Config, number: int, follower: int) -> None:
    """Replace a version by the date of another, where that learned from a user erased meanwhile.

    For a version with another's generator, which was registered after that erasure.
    """
    dates = to_replace(config)
    if number in dates:
        with database(config) as engine, writing(engine) as connection:
            queries.schedule_replacement(connection, follower, dates[number])


def open_rollout(config: Config, number: int, *, now: datetime) -> Rollout:
    """Publish a version on the model server and let it answer the first share of tips.

    Raises:
        CanaryError: another challenger is on trial, or the version is not registered or trained
            on data of an erased user.
        ReleaseError: the model server does not take it.
    """
    if number in to_replace(config):
        raise CanaryError(
            f"version {number} was trained on data of an erased user; `reactune run` trains "
            "one that was not"
        )
    model = version(config, number)
    fetch_release(run_root(config), model)
    with closing(runtimes.connect(config.serve)) as runtime:
        runtime.publish(model)
    with database(config) as engine:
        opened = rollouts.open_rollout(
            engine, number, settings=config.canary, salt=secrets.token_hex(8), now=now
        )
    repair_projections(config)
    return opened


def repair_projections(config: Config) -> list[str]:
    """Make the registry's aliases and the server's tags follow what is live; say what moved."""
    rollout = current(config)
    if rollout is None:
        return []
    moved = registry.set_aliases(
        config.registry,
        config.tracking_uri,
        champion=rollout.champion,
        challenger=rollout.challenger,
    )
    models = {model.version: model for model in versions(config)}
    family = config.registry.model_name
    aliases = {
        f"{family}:champion": models[rollout.champion],
        f"{family}:challenger": None if rollout.challenger is None else models[rollout.challenger],
    }
    with closing(runtimes.connect(config.serve)) as runtime:
        fetch = partial(fetch_release, run_root(config))
        return moved + runtime.set_aliases(aliases, fetch=fetch)


def deploy(config: Config, number: int | None, *, now: datetime) -> str:
    """Open a rollout for a registered version, without a number for the newest; a line says so.

    Where nothing is live yet, the base model becomes champion first. Repeating it changes nothing.

    Raises:
        CanaryError: another challenger is on trial, or the version is the champion.
        DataError: there is no such version.
        ReleaseError: the base cannot be exported, or the model server is away.
    """
    champion = ensure_champion(config)
    if number is None:
        number = versions(config)[-1].version
        if number == champion.version:
            return f"version {number} is champion, and there is no newer one to put on trial"
    opened = open_rollout(config, number, now=now)
    return f"version {number} answers {opened.share:.0%} of the tips beside {opened.champion}"


def deploy_base(config: Config) -> str:
    """See to it that something is live; a line says what. Repeating it changes nothing.

    Raises:
        ReleaseError: the base cannot be exported or registered, or the model server is away.
    """
    return f"version {ensure_champion(config).version} is champion"
