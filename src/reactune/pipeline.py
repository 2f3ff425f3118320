"""The loop: from reactions to a model that reactions keep or remove.

Eight stages make a run. This is the only place where one package's output becomes the next
package's input. Each stage keeps its files in the run folder, writes its manifest last, and is
not done again while all that it `READS` is unchanged. `review.py` decides about the new model.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from reactune import deployment, doctor
from reactune.config.settings import Config, deciding
from reactune.data.dataset import build
from reactune.data.dataset.exports import pairs, read_examples
from reactune.data.deidentify import batches
from reactune.data.labelled import LABELLED, read_batches
from reactune.data.labels.scores import (
    admission,
    after_consent,
    consent_note,
    label_counts,
    read_scores,
)
from reactune.data.labels.sources import open_scores
from reactune.erasure.erase import Say, finish_open
from reactune.evaluate.gate import (
    GateReport,
    Generator,
    ask_judge,
    best_method,
    gate_report,
    judge_line,
    rows_of,
    sample,
    score_rows,
    validation_reports,
    with_judge,
)
from reactune.generation.on_policy import train_on_own_tips
from reactune.model.files import BaseModel, base_model
from reactune.model.logprobs import best_dtype
from reactune.model.prompt import Chat, completion_ids, load_chat, rebuild
from reactune.pages.reward import write_reward_report
from reactune.privacy.hashing import load_hashing_keys
from reactune.progress import progress_bar
from reactune.records import STAGES, Counts, Example, ModelVersion, Part, write_atomically
from reactune.release import parity, runtimes
from reactune.release.gguf import export_release, read_release, write_release
from reactune.reward.cache import cached_features, keep_features, reward_rows
from reactune.reward.comparisons import Reactions
from reactune.reward.export import Exported, export_reward
from reactune.reward.features import Floats as Features
from reactune.reward.features import layers_of, reward_layers
from reactune.reward.learn import Learned, Read, learn
from reactune.reward.model import FACTS, TEACHER, RewardModel, rewards
from reactune.reward.model import load as load_reward
from reactune.reward.quality import Accuracy, accuracy_of_folds
from reactune.runs.folders import (
    StageResult,
    all_runs,
    find_run,
    prompt_of_run,
    run_stage,
    unfinished_run,
)
from reactune.runs.manifest import Manifest, ending, generator_run, recorded_manifests
from reactune.runs.remote import fetch_adapter, pull, run_root
from reactune.runs.summaries import summarise
from reactune.store.labels import label_rule
from reactune.store.summaries import recount
from reactune.tracking import (
    consent_stated,
    dataset_fingerprint,
    earlier_counts,
    features_before,
    gate_picture,
    last_trained,
    record_of,
    start_run,
    write_reward,
    write_training,
)
from reactune.train.trainer import keep_adapter, progress_bars, rows_by_method, train_methods

ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
HELD_OUT_TIPS = 120  # on which the reward stands beside the generator's own ranking
TRAINED = tuple(f"train/{name}" for name in ADAPTER)
QUALITY = "reward/quality.json"  # says whether there is a reward, and is written in any case


@dataclass(frozen=True)
class Reads:
    """All that can change what a stage makes: files of earlier stages, sections of the settings.

    The sections `store` and `run` say where rows and runs are kept, `data` how fast rows are
    de-identified: they change no result, and every stage may read them. What is checked before
    the first stage, by `doctor`, and before training, of the base, changes none either.
    """

    files: tuple[str, ...]
    settings: tuple[str, ...]

    def stages(self) -> list[str]:
        """The stages that the files are of."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self.files))


READS = {
    "extract": Reads((), ("source", "labels", "privacy", "prompt", "model")),
    "dataset": Reads(("extract/labelled.parquet",), ("dataset",)),
    "reward": Reads(("dataset/examples.parquet",), ("prompt", "privacy", "model")),
    "train": Reads(
        ("dataset/examples.parquet", QUALITY),
        ("train", "gate", "serve", "prompt", "privacy", "model"),
    ),
    "evaluate": Reads(
        ("dataset/examples.parquet", QUALITY, *TRAINED),
        ("gate", "serve", "prompt", "privacy", "model"),
    ),
    "export": Reads(
        ("dataset/examples.parquet", QUALITY, *TRAINED, "evaluate/gate.json"),
        ("export", "serve", "prompt", "privacy", "model"),
    ),
    "register": Reads(
        (
            "dataset/README.md",
            QUALITY,
            "train/training.json",
            "evaluate/gate.json",
            "export/model.gguf",
            "export/parity.json",
        ),
        ("registry", "canary", "serve", "prompt", "privacy", "model"),
    ),
    "deploy": Reads(("register/version.json",), ("registry", "canary", "serve")),
}


def run(config: Config, *, run_id: str | None = None, say: Say) -> Manifest:
    """Do all stages of the interrupted run, or of a new one, or of the one that is named.

    Ends early, and without error, where there is too little to learn from ("waiting") or where
    the tuned model is not good enough ("refused"). The last stage's manifest is returned.
    """
    _prepare(config, say=say)
    if run_id is None:
        run_id = (unfinished_run(config.run_root) or start_run(config)).name
    folder = find_run(config.run_root, run_id)
    say(f"run       {run_id}")
    for stage in STAGES:
        manifest = _do(config, stage, folder, say=say)
        if manifest.outcome != "done":
            break
    return manifest


def run_one_stage(config: Config, stage: str, run_id: str, *, say: Say) -> Manifest:
    """Do one stage, unless it is done; report in one line what came in, went out, was refused.

    The first stage of a run that is not there yet starts it under this name. A stage after the
    one that ended the run is not done, and that one's manifest is returned.
    """
    _prepare(config, say=say)
    if stage == STAGES[0] and not (config.run_root / run_id / "config.json").exists():
        start_run(config, run_id)
    folder = find_run(config.run_root, run_id)
    end = ending(folder)
    if end is not None and STAGES.index(end.stage) < STAGES.index(stage):
        say(f"{stage:9} not done: the run ended at {end.stage}: {end.summary}")
        return end
    return _do(config, stage, folder, say=say)


def extract(config: Config, run: Path, folder: Path) -> StageResult:
    """Reactions -> labelled rows without personal data; only these leave the database."""
    rollout = deployment.current(config)
    if rollout is not None and rollout.phase in ("shadow", "canary", "ramp"):
        summary = f"waiting: version {rollout.challenger} is on trial; `reactune review` decides it"
        return StageResult(summary, outcome="waiting")
    base = base_model(config.model)
    chat = _chat(config, run, base)
    doctor.require_ready(config, base, chat, trains=True)
    hashing_keys = load_hashing_keys(config.privacy, os.environ)
    left_out: Counter[str] = Counter()
    admits = admission(deployment.user_statuses(config, hashing_keys), config.source, left_out)
    with open_scores(config.source, store_url=config.store_url, folder=config.folder) as scores:
        evidence, note = (
            label_counts(scores, config.labels),
            consent_note(scores.scores, config.labels),
        )
        rows = read_scores(
            scores, config.labels, source=config.source, key=hashing_keys.current, admits=admits
        )
        extracted = batches.extract(
            rows, chat=chat, privacy=config.privacy, settings=config.data, folder=folder
        )
    labelled = after_consent(evidence, left_out, read=extracted.counts.came_in)
    refused = {**labelled.refused, **extracted.counts.refused}
    counts = Counts(labelled.came_in, extracted.counts.went_out, refused)
    return StageResult(
        summary=f"{counts.line()}; {note}" if note else counts.line(),
        outputs=batches.FILES,
        counts={
            "consent": note,
            "labels": asdict(labelled),
            "de-identification": asdict(extracted.counts),
            "withheld": extracted.withheld,
            "context keys left out": extracted.dropped,
        },
    )


def build_dataset(config: Config, run: Path, folder: Path) -> StageResult:
    """Labelled rows -> examples in three parts, as Alpaca, KTO and DPO files and Parquet."""
    result = build.build(
        read_batches(run / "extract" / LABELLED),
        config.dataset,
        folder=folder,
        previous=last_trained(config, run),
        steps=earlier_counts(run),
        note=consent_stated(run),
        memory_gb=config.data.memory_gb,
    )
    sizes = (f"{part} {n.positives:,} + {n.negatives:,}" for part, n in result.parts.items())
    return StageResult(
        summary=result.waiting or f"{result.counts.line()}; {', '.join(sizes)}",
        outputs=result.files,
        counts=asdict(result),
        outcome="waiting" if result.waiting else "done",
    )


def learn_reward(config: Config, run: Path, folder: Path) -> StageResult:
    """Examples -> a reward model of what people like, or why there is none; the run goes on."""
    base = base_model(config.model)
    chat = _chat(config, run, base)
    examples = read_examples(run / "dataset")
    earlier = features_before(config, run)
    layers = reward_layers(layers_of(base.folder))

    def read(some: Sequence[Example]) -> Features:
        with ExitStack() as stack:

            def bar(total: int) -> Callable[[int], object]:
                shown = progress_bar("features", total=total, unit="tip")
                return stack.enter_context(shown).update

            return cached_features(
                base, chat, some, layers, folder=folder, earlier=earlier, progress=bar
            )

    learned = learn(
        examples["train"],
        read,
        layers,
        held_out=[*examples["validation"], *examples["test"]],
        base_digest=base.digest,
        fingerprint=dataset_fingerprint(run),
    )
    validation = sample(examples["validation"], limit=HELD_OUT_TIPS)
    beside = beside_generator(config, base, chat, validation, learned, read)
    keep_features(base, chat, learned, layers, folder=folder)
    outputs = write_reward(folder, learned, beside)
    write_reward_report(folder / "report.html", learned, beside)
    return StageResult(
        summary=learned.line(),
        outputs=(*outputs, "report.html"),
        counts={
            "learned": learned.model is not None,
            "reactions": learned.quality.reactions,
            "of": learned.quality.available,
        },
    )


def beside_generator(
    config: Config,
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    learned: Learned,
    read: Read,
) -> dict[str, Accuracy]:
    """The live generator's own ranking of held-out tips, and that of the reward without them."""
    champion = deployment.champion(config)
    adapter = champion.adapter if champion else None
    if champion and adapter:
        fetch_adapter(run_root(config), champion)
    kinds = [each.kind for each in examples]
    (tokens,) = score_rows(base, adapter, [rows_of(chat, examples)], name="generator", kinds=kinds)
    scores = {"generator": np.array([each.mean() for each in tokens])}
    if learned.teacher:
        scores["reward"] = rewards(learned.teacher, read(examples))[0]
    reactions, together = Reactions(examples), np.zeros(len(examples), np.int64)
    found = {
        name: accuracy_of_folds(reactions, each, together, is_fitted=False)
        for name, each in scores.items()
    }
    return {name: each for name, each in found.items() if each}


def train(config: Config, run: Path, folder: Path) -> StageResult:
    """Examples -> one adapter: by a method and then on own tips, or by the best of methods."""
    base = base_model(config.model)
    chat = _chat(config, run, base)
    deployment.prove_base(config, base)
    examples = read_examples(run / "dataset")
    rows = rows_by_method(chat, examples["train"], pairs(examples["train"]))
    goes_on = config.train.method == "auto" and config.train.backend == "trl" and has_reward(run)
    reward = teacher_of(run) if goes_on else None
    with progress_bars() as bar:
        trained = train_methods(
            folder,
            rows,
            base_folder=base.folder,
            settings=config.train,
            dtype=best_dtype(),
            progress=bar,
            only_first=reward is not None,
        )
        own = train_on_own_tips(
            folder,
            trained[0],
            base,
            chat,
            examples["train"],
            reward,
            serve=config.serve,
            settings=config.train,
            progress=bar,
        )
    trained += [own] if own else []
    adapters: dict[str, Path] = {each.method: each.adapter for each in trained}
    validation = sample(examples["validation"], limit=config.gate.max_examples)
    reports = validation_reports(base, chat, validation, adapters, config.gate)
    best = next(each for each in trained if each.method == best_method(reports, config.gate))
    keep_adapter(best.adapter, folder / "adapter")
    write_training(folder, best, trained, reports)
    return StageResult(
        summary=f"{len(examples['train']):,} tips in; {best.tokens:,} tokens in {best.steps:,} "
        f"steps of {best.method} (tried {', '.join(adapters)})",
        outputs=(*ADAPTER, "training.json", "trainer.log", "loss.svg"),
        counts={each.method: {"steps": each.steps, "tokens": each.tokens} for each in trained},
    )


def evaluate(config: Config, run: Path, folder: Path) -> StageResult:
    """Adapter -> how it does on held-out users, beside base, few-shot base and champion.

    A champion that is to be replaced is no bar for what replaces it. Where the adapter is refused,
    the run may go on with an earlier generator and its new reward.
    """
    base = base_model(config.model)
    chat = _chat(config, run, base)
    examples = read_examples(run / "dataset")
    adapters = {"tuned": run / "train" / "adapter"}
    champion = deployment.champion(config)
    is_erased = _is_to_be_replaced(config, champion)
    if champion is not None and champion.adapter is not None and not is_erased:
        fetch_adapter(run_root(config), champion)
        adapters["champion"] = champion.adapter
    report = ask_gate(config, run, base, chat, examples, adapters)
    tuned = Generator("tuned", run.name)
    generator = earlier_generator(config, run) if report.refusals else tuned
    gate = {**asdict(report), "generator": asdict(generator) if generator else None}
    write_atomically(folder / "gate.json", json.dumps(gate, indent=2))
    write_atomically(folder / "gate.svg", gate_picture(report))
    accuracies = (f"{row.model} {row.accuracy}" for row in report.rows)
    refused = "refused: " + "; ".join(report.refusals) if report.refusals else "passed"
    if is_erased:
        refused += "; not compared with the champion, which is to be replaced"
    if generator and generator != tuned:
        refused = f"tuned model {refused}; generator: {generator}, with the new reward"
    return StageResult(
        summary=f"{report.examples:,} held-out tips in, {report.pairs:,} pairs; {refused}; "
        f"preference accuracy: {', '.join(accuracies)}; {judge_line(report)}",
        outputs=("gate.json", "gate.svg"),
        counts={
            "examples": report.examples,
            "pairs": report.pairs,
            **({"generator_run": generator.run_id} if generator else {}),
        },
        outcome="done" if generator else "refused",
    )


def ask_gate(
    config: Config,
    run: Path,
    base: BaseModel,
    chat: Chat,
    examples: Mapping[Part, Sequence[Example]],
    adapters: Mapping[str, Path],
) -> GateReport:
    """The gate's report on the adapter "tuned" of a run, with its judge where there is a reward."""
    chosen = sample(examples["test"], limit=config.gate.max_examples)
    report = gate_report(base, chat, chosen, examples["train"], adapters, config.gate)
    if not has_reward(run):
        return report
    judged = ask_judge(
        base,
        chat,
        [*examples["validation"], *examples["test"]],
        examples["train"],
        adapters,
        teacher_of(run),
        serve=config.serve,
        settings=config.gate,
    )
    return with_judge(report, judged, config.gate)


def earlier_generator(config: Config, run: Path) -> Generator | None:
    """What the new reward can choose from where the tuned model was refused.

    The champion's generator, or the base where that is the base or has to be replaced. None where
    no reward was learned, or services ask for one text only.
    """
    if config.serve.candidates == 1 or not has_reward(run):
        return None
    champion = deployment.champion(config)
    if champion is None or champion.adapter is None or _is_to_be_replaced(config, champion):
        return Generator("base", deployment.BASE_RUN)
    trained_by = generator_run(config.run_root / champion.run_id)
    return Generator("champion", trained_by, champion.version)


def _is_to_be_replaced(config: Config, champion: ModelVersion | None) -> bool:
    return champion is not None and champion.version in deployment.to_replace(config)


def has_reward(run: Path) -> bool:
    """Whether the run learned a reward, which certainly ranks better than chance."""
    done = recorded_manifests(run)
    return "reward" in done and FACTS in done["reward"].outputs


def teacher_of(run: Path) -> RewardModel:
    """The reward of those alone who may train a generator; earlier versions learned no other."""
    teacher = run / "reward" / TEACHER
    return load_reward(teacher if teacher.is_dir() else run / "reward")


def export(config: Config, run: Path, folder: Path) -> StageResult:
    """Adapter -> GGUF, and the proof that it answers as the trained model does; with the reward.

    Refused where the file is not the generator, or where an earlier generator gets no reward.
    """
    base = base_model(config.model)
    chat = _chat(config, run, base)
    generator = generator_of(run)
    for name in ("adapter", "reward"):  # of this stage when it was done before
        shutil.rmtree(folder / name, ignore_errors=True)
    adapter = adapter_of(config, run, generator, folder)
    release = export_release(base, chat, adapter, folder, run_id=run.name, settings=config.export)
    test = read_examples(run / "dataset")["test"]
    examples = sample(test, limit=config.export.parity_prompts)
    with closing(runtimes.connect(config.serve)) as runtime:
        report = parity.check(
            base,
            release,
            chat=chat,
            prompts=[rebuild(chat, e.kind, e.context_json) for e in examples],
            completions=[completion_ids(chat, e.tip) for e in examples],
            runtime=runtime,
            settings=config.export,
            max_tokens=config.serve.max_tokens,
        )
        runtime.retire(release)
    reward = Exported(None, reason="none was learned")
    if has_reward(run):
        rows, cache = reward_rows(chat, examples), config.model.cache_folder
        reward = export_reward(run / "reward", base, rows, folder / "reward", cache=cache)
    files = write_release(replace(release, reward=reward.folder))
    values = {**asdict(report), "reward": reward.agreement and asdict(reward.agreement)}
    write_atomically(folder / "parity.json", json.dumps(values, indent=2))
    is_nothing_new = generator.name != "tuned" and reward.folder is None
    return StageResult(
        summary=f"{release.gguf.stat().st_size / 1e6:,.0f} MB of {release.quantisation} out "
        f"(generator: {generator}); {report.line()}; {reward.line()}",
        outputs=(*files, "parity.json"),
        outcome="refused" if report.failures or is_nothing_new else "done",
    )


def generator_of(run: Path) -> Generator:
    """The generator that the gate chose; runs of earlier versions released what they tuned."""
    gate = json.loads((run / "evaluate" / "gate.json").read_text(encoding="utf-8"))
    return Generator(**gate["generator"]) if "generator" in gate else Generator("tuned", run.name)


def adapter_of(config: Config, run: Path, generator: Generator, folder: Path) -> Path | None:
    """The adapter of a generator; the champion's is copied, as its run may be removed earlier."""
    if generator.version is None:
        return run / "train" / "adapter" if generator.name == "tuned" else None
    champion = deployment.version(config, generator.version)
    fetch_adapter(run_root(config), champion)
    assert champion.adapter is not None, champion.name  # as `earlier_generator` found it
    return Path(shutil.copytree(champion.adapter, folder / "adapter"))


def register(config: Config, run: Path, folder: Path) -> StageResult:
    """GGUF -> a version of the registered model, with everything that tells where it is from."""
    deployment.ensure_champion(config)
    generator = generator_of(run)
    record = record_of(run, generator=str(generator))
    model = deployment.register(config, read_release(run), record)
    if generator.version is not None:
        deployment.replace_together(config, generator.version, model.version)
    write_atomically(folder / "version.json", json.dumps({"version": model.version}))
    return StageResult(
        summary=f"version {model.version} of {config.registry.model_name}",
        outputs=("version.json",),
        counts={"version": model.version},
    )


def deploy(config: Config, run: Path, folder: Path) -> StageResult:
    """Version -> challenger: it may answer the first share of the tips.

    A run puts its version on trial once, however often its settings change afterwards.
    """
    number = json.loads((run / "register" / "version.json").read_text())["version"]
    ended = deployment.ended_trial(config, number)
    opened = ended or deployment.open_rollout(config, number, now=datetime.now(UTC))
    write_atomically(folder / "rollout.json", json.dumps(asdict(opened), default=str))
    summary = f"version {number} answers {opened.share:.0%} of tips, {opened.champion} the rest"
    return StageResult(
        summary=f"the trial of version {number} has ended" if ended else summary,
        outputs=("rollout.json",),
        counts={"challenger": number, "champion": opened.champion},
    )


WORK: dict[str, Callable[[Config, Path, Path], StageResult]] = {
    "extract": extract,
    "dataset": build_dataset,
    "reward": learn_reward,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "register": register,
    "deploy": deploy,
}


def _prepare(config: Config, *, say: Say) -> None:
    """Finish the erasures that were asked for, and fetch the manifests that others wrote.

    What the pages read is brought up to date.
    """
    finish_open(config, say=say)
    root = run_root(config)
    pull(root)
    with deployment.database(config) as engine:
        summarise(engine, root, all_runs(root.folder))


def _chat(config: Config, run: Path, base: BaseModel) -> Chat:
    """The base model's chat template, told the same day in all stages of a run."""
    settings = prompt_of_run(run, config.prompt)
    return load_chat(base.folder, settings, privacy=config.privacy)


def _do(config: Config, stage: str, run: Path, *, say: Say) -> Manifest:
    """The stage's manifest; its work is done unless it was done before. Reports one line."""
    is_old = _is_from_before_rewards(run)
    if stage == "reward" and is_old:
        summary = "none: the run was trained without this stage, by an earlier version"
        say(f"{stage:9} {summary}")
        return Manifest(stage, "done", summary, {}, {}, {}, {}, {}, 0.0, "")
    reads = READS[stage]
    if is_old:
        files = tuple(name for name in reads.files if not name.startswith("reward/"))
        reads = Reads(files, reads.settings)
    manifest, is_new = run_stage(
        run,
        stage,
        lambda folder: WORK[stage](config, run, folder),
        inputs={name: run / name for name in reads.files},
        settings=deciding(config, reads.settings),
        reads=reads.stages(),
        root=run_root(config),
    )
    with deployment.database(config) as engine:
        summarise(engine, run_root(config), [run])
        if stage == STAGES[0] and is_new:
            recount(engine, label_rule(config.labels), now=datetime.now(UTC))
    say(
        f"{stage:9} {manifest.summary} ({f'{manifest.seconds:.0f} s' if is_new else 'done before'})"
    )
    return manifest


def _is_from_before_rewards(run: Path) -> bool:
    """Whether a version without this stage did the stage after it."""
    done = recorded_manifests(run)
    return "train" in done and "reward" not in done
