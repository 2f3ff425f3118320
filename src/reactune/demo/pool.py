"""Tips that the base model wrote once, so that the demo need not wait for them again.

`python -m reactune.demo.pool` writes the file anew, with the quantisation and the sampling that the
demo serves. Reactions are never kept: they are drawn when the demo runs.
"""

import gzip
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Literal

import click
from anyio import to_thread
from tqdm import tqdm

from reactune.config.settings import CONFIG_NAME, Config, load
from reactune.demo.situations import CONTEXT_KEYS, INSTRUCTIONS, SYSTEM, Situation, situations
from reactune.errors import DataError
from reactune.model.files import base_model
from reactune.model.prompt import Chat, assemble, load_chat
from reactune.pii.spans import refill
from reactune.records import Completion, ModelVersion, Prompt, Runtime, Sampling, replacing
from reactune.release.gguf import export_release
from reactune.release.runtimes import connect
from reactune.store.database import create_store

STARTED = ".started"  # marks a folder in which a demo was played
MAX_TOKENS = 48
TOKEN_BUDGET = 80_000


def demo_config() -> str:
    """The TOML text. Prompt and length are those the pool was written with; keep them together."""
    instructions = "\n".join(f"{kind} = {json.dumps(text)}" for kind, text in INSTRUCTIONS.items())
    return f"""# The demo: people of src/reactune/demo react to tips of a small base model.

[prompt]
system = {json.dumps(SYSTEM)}
# The tasks come last: a small model writes most about what it read last.
context_keys = {json.dumps(list(CONTEXT_KEYS))}
cut_order = {json.dumps(["free_text", "user_settings", "open_tasks", "time_of_day"])}
max_context_tokens = 128

[prompt.instructions]
{instructions}

[serve]
# Nobody reads on: a tip that is cut here is too long anyway.
max_tokens = {MAX_TOKENS}
parallel = 8
# Nobody waits in a demo, and another program may want the processor.
timeout_seconds = 120
champion_timeout_seconds = 120

[train]
# Two processor cores read some 300 tokens a second this way: five minutes.
method = "kto"
preference_learning_rate = 3e-4
lora_layers = 12
token_budget = {TOKEN_BUDGET}
time_budget_minutes = 8
checkpoint_steps = 20

[dataset]
# A gate needs people: two in ten are held out for it.
split = [0.7, 0.1, 0.2]

[gate]
max_examples = 400

[export]
parity_prompts = 12

[canary]
# Days of the demo stand for weeks: steps are taken, and the rollout ends, early.
min_days = 1
planned_units = 3000
min_units_per_step = 150
max_units = 3000
"""


def unused(folder: Path) -> Path:
    """The folder, or where a demo was played in it before, the first of folder-2, folder-3, ..."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(place for place in chain([folder], numbered) if not (place / STARTED).exists())


def set_up(folder: Path, *, seed: int) -> Config:
    """Settings, key and database of a demo folder; a settings file that is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG_NAME
    if not file.is_file():
        file.write_text(demo_config(), encoding="utf-8")
    config = load(file, (f"train.seed={seed}", f"dataset.seed={seed}"))
    secret = folder / "key"
    if not secret.is_file():
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32), encoding="utf-8")
    os.environ[config.privacy.key_env] = secret.read_text(encoding="utf-8")
    create_store(config.store_url).dispose()
    (folder / STARTED).touch()
    return config


FILE = Path(__file__).with_name("pool.jsonl.gz")
VERSION = 1
SEED = 20
SIZE = 4_000
FIRST_SAMPLING_SEED = 7_000_000


@dataclass(frozen=True)
class PooledTip:
    """One tip, the situation it was written for, and the digest of the prompt that asked for it."""

    digest: str
    situation: Situation
    text: str
    stopped: Literal["stop", "length"]
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class Pool:
    """All tips of one base model, in the order of their situations, and how they were drawn."""

    base: str
    quantisation: str
    temperature: float
    top_p: float
    max_tokens: int
    tips: tuple[PooledTip, ...] = field(repr=False)

    @property
    def situations(self) -> tuple[Situation, ...]:
        """The situations that have a tip."""
        return tuple(tip.situation for tip in self.tips)


@dataclass
class PooledRuntime:
    """A model server that gives the base model's tips from the pool, and asks for all others.

    What the pool does not hold (another prompt, model or sampling) is generated as usual, so the
    pool saves time and changes nothing else. `answered` counts the tips that came from it.
    """

    runtime: Runtime
    pool: Pool
    answered: int = 0
    by_digest: Mapping[str, PooledTip] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.by_digest = {tip.digest: tip for tip in self.pool.tips}

    def publish(self, model: ModelVersion) -> None:
        """As `Runtime.publish`."""
        self.runtime.publish(model)

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """As `Runtime.generate`; a pooled tip takes no time and has no log-probability."""
        tip = self.by_digest.get(digest_of(prompt))
        if tip is None or not _drawn_so(self.pool, model, sampling):
            return self.runtime.generate(model, prompt, sampling)
        self.answered += 1
        return Completion(
            text=tip.text,
            prompt_tokens=tip.prompt_tokens,
            tokens=tip.tokens,
            stopped=tip.stopped,
            seconds=0.0,
        )

    async def write(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """`generate` in a thread: the demo's tips are written in event loops of one tip each."""
        ask = partial(self.generate, model, prompt, sampling)
        return await to_thread.run_sync(ask, abandon_on_cancel=True)

    async def end_writing(self) -> None:
        """Nothing to close: `write` holds no connection."""

    def chat_prompt_tokens(self, model: ModelVersion, user_text: str) -> int | None:
        """As `Runtime.chat_prompt_tokens`."""
        return self.runtime.chat_prompt_tokens(model, user_text)

    def set_aliases(
        self,
        models: Mapping[str, ModelVersion | None],
        *,
        fetch: Callable[[ModelVersion], object],
    ) -> list[str]:
        """As `Runtime.set_aliases`."""
        return self.runtime.set_aliases(models, fetch=fetch)

    def retire(self, model: ModelVersion) -> None:
        """As `Runtime.retire`."""
        self.runtime.retire(model)

    def close(self) -> None:
        """As `Runtime.close`."""
        self.runtime.close()


@cache
def read_pool(file: Path = FILE) -> Pool:
    """The pool of a file.

    Raises:
        DataError: it is missing, broken, or of another version.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            head = json.loads(next(lines))
            tips = tuple(_tip(json.loads(line)) for line in lines)
        if head.pop("v") != VERSION:
            raise ValueError("another version")
        return Pool(tips=tips, **head)
    except (OSError, EOFError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise DataError(
            f"{file} is no pool of tips ({error}); make it anew with `python -m reactune.demo.pool`"
        ) from error


def write_pool(pool: Pool, file: Path = FILE) -> None:
    """Write the pool; the same pool gives the same bytes."""
    head = {name: value for name, value in asdict(replace(pool, tips=())).items() if name != "tips"}
    lines = [{"v": VERSION, **head}, *(asdict(tip) for tip in pool.tips)]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    with replacing(file) as partial:
        partial.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def digest_of(prompt: str) -> str:
    """Names a prompt: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def fit(tip: PooledTip, prompt: Prompt) -> bool:
    """Whether the tip can be shown: there is text, and every placeholder can be filled in again.

    The service draws again where a text is unfit; the pool leaves it out.
    """
    return bool(refill(tip.text, prompt.placeholders))


def _drawn_so(pool: Pool, model: ModelVersion, sampling: Sampling) -> bool:
    return (
        model.adapter is None
        and (model.base, model.quantisation) == (pool.base, pool.quantisation)
        and (sampling.temperature, sampling.top_p, sampling.max_tokens)
        == (pool.temperature, pool.top_p, pool.max_tokens)
    )


def _tip(row: dict[str, object]) -> PooledTip:
    situation = row.pop("situation")
    if not isinstance(situation, dict):
        raise TypeError("a tip without a situation")
    return PooledTip(situation=Situation(**situation), **row)  # type: ignore[arg-type]


def _write_tips(
    config: Config, chat: Chat, model: ModelVersion, jobs: Iterable[tuple[int, Situation]]
) -> Iterator[tuple[int, PooledTip]]:
    """Ask the served base model for a tip for each situation, several at once, in order."""
    serve = config.serve
    runtime = connect(serve)

    def ask(job: tuple[int, Situation]) -> tuple[int, PooledTip]:
        number, situation = job
        prompt = assemble(chat, situation.kind, situation.context)
        seed = FIRST_SAMPLING_SEED + number
        answer = runtime.generate(
            model, prompt.text, Sampling(serve.temperature, serve.top_p, serve.max_tokens, seed)
        )
        return number, PooledTip(
            digest=digest_of(prompt.text),
            situation=situation,
            text=answer.text,
            stopped=answer.stopped,
            tokens=answer.tokens,
            prompt_tokens=answer.prompt_tokens,
        )

    try:
        runtime.publish(model)
        with ThreadPoolExecutor(serve.parallel) as threads:
            yield from threads.map(ask, jobs)
    finally:
        runtime.close()


def make_pool(config: Config, *, count: int, folder: Path) -> Pool:
    """Write tips for that many situations; the tips already in `folder` are kept.

    Raises:
        ReactuneError: the base model cannot be found, exported or served.
    """
    base = base_model(config.model)
    chat = load_chat(base.folder, config.prompt, privacy=config.privacy)
    model = export_release(base, chat, None, folder, run_id="pool", settings=config.export)
    drafts = folder / "drafts.jsonl"
    drafts.touch()
    with drafts.open(encoding="utf-8") as lines:
        tips = {int(row.pop("number")): _tip(row) for row in map(json.loads, lines)}
    jobs = [job for job in enumerate(situations(count, seed=SEED)) if job[0] not in tips]
    with drafts.open("a", encoding="utf-8") as file, tqdm(total=len(jobs), unit="tip") as bar:
        for number, tip in _write_tips(config, chat, model, jobs):
            tips[number] = tip
            file.write(f"{json.dumps({'number': number, **asdict(tip)})}\n")
            file.flush()
            bar.update()
    return Pool(
        base=base.name,
        quantisation=model.quantisation,
        temperature=config.serve.temperature,
        top_p=config.serve.top_p,
        max_tokens=config.serve.max_tokens,
        tips=tuple(
            tip
            for _, tip in sorted(tips.items())
            if fit(tip, assemble(chat, tip.situation.kind, tip.situation.context))
        ),
    )


@click.command()
@click.option("--count", default=SIZE, show_default=True, help="Situations to write a tip for.")
@click.option("--threads", default=0, show_default=True, help="CPU threads; 0: all.")
@click.option("--parallel", default=8, show_default=True, help="Tips written at once.")
@click.option("--folder", type=Path, help="Where drafts are kept, to go on after a break.")
@click.option("--out", type=Path, default=FILE, help="The file to write.")
def main(count: int, threads: int, parallel: int, folder: Path | None, out: Path) -> None:
    """Let the base model write the demo's pool of tips anew (an hour on two cores)."""
    with tempfile.TemporaryDirectory() as temporary:
        home = folder or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        settings = home / "reactune.toml"
        settings.write_text(demo_config(), encoding="utf-8")
        patience = "serve.timeout_seconds=600"
        config = load(
            settings, (f"serve.threads={threads}", f"serve.parallel={parallel}", patience)
        )
        write_pool(make_pool(config, count=count, folder=home), out)


if __name__ == "__main__":
    main()
