"""Tips that the base model wrote once: the demo takes them from a file instead of generating them.

`python -m reactune.demo.pool` writes the file anew, with the quantisation and the sampling that the
demo serves. Reactions are never kept: they are drawn when the demo runs.
"""

import gzip
import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import click
from anyio import to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from reactune.config.settings import Config, load
from reactune.demo.situations import Situation, demo_settings, situations
from reactune.errors import DataError
from reactune.model.files import base_model
from reactune.model.prompt import Chat, assemble, load_chat
from reactune.pii.spans import refill
from reactune.progress import progress_bar
from reactune.records import Completion, ModelVersion, Prompt, Runtime, Sampling, replacing
from reactune.release.gguf import export_release
from reactune.release.runtimes import connect

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
    """A model server in front of another one: the base model's tips come from the pool.

    What the pool does not hold (another prompt, model or sampling) is generated as usual, so the
    pool saves time and changes nothing else. `answered` counts the tips that came from it.
    """

    runtime: Runtime
    pool: Pool
    answered: int = 0
    by_digest: Mapping[str, PooledTip] = field(init=False, repr=False)
    loop: BlockingPortal | None = field(default=None, repr=False)  # in which several are written
    opened: ExitStack = field(default_factory=ExitStack, repr=False)
    opening: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.by_digest = {tip.digest: tip for tip in self.pool.tips}

    def check(self, *, versions: int = 1, base: str = "") -> str:
        """As `Runtime.check`."""
        return self.runtime.check(versions=versions, base=base)

    def publish(self, model: ModelVersion) -> None:
        """As `Runtime.publish`."""
        self.runtime.publish(model)

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """As `Runtime.generate`; a pooled tip takes no time and has no log-probability."""
        tip = self.by_digest.get(digest_of(prompt))
        if tip is None or not _is_pooled(self.pool, model, sampling):
            return self.runtime.generate(model, prompt, sampling)
        self.answered += 1
        return Completion(
            text=tip.text,
            prompt_tokens=tip.prompt_tokens,
            tokens=tip.tokens,
            stopped=tip.stopped,
            seconds=0.0,
        )

    async def write(
        self, model: ModelVersion, prompt: str, sampling: Sampling, *, count: int = 1
    ) -> tuple[Completion, ...]:
        """As `Runtime.write`, from any event loop; the pool has one tip of a prompt.

        The demo's tips are written in event loops of one tip each, in several threads. A server's
        connections belong to one loop, so several texts are asked for in one that stays.
        """
        if count > 1:
            several = partial(self.runtime.write, model, prompt, sampling, count=count)
            asked = partial(self._one_loop().call, several)
            return await to_thread.run_sync(asked, abandon_on_cancel=True)
        ask = partial(self.generate, model, prompt, sampling)
        return (await to_thread.run_sync(ask, abandon_on_cancel=True),)

    async def end_writing(self) -> None:
        """Nothing: the connections are not those of the caller's event loop."""

    def token_logprobs(
        self, model: ModelVersion, prompt: Sequence[int], completion: Sequence[int]
    ) -> tuple[float, ...] | None:
        """As `Runtime.token_logprobs`."""
        return self.runtime.token_logprobs(model, prompt, completion)

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
        if self.loop is not None:
            self.loop.call(self.runtime.end_writing)
        self.opened.close()
        self.runtime.close()

    def _one_loop(self) -> BlockingPortal:
        with self.opening:
            if self.loop is None:
                self.loop = self.opened.enter_context(start_blocking_portal())
            return self.loop


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
            f"{file} is no pool of tips ({error}); write it with `python -m reactune.demo.pool`"
        ) from error


def write_pool(pool: Pool, file: Path = FILE) -> None:
    """Write the pool; the same pool gives the same bytes."""
    head = {name: value for name, value in asdict(replace(pool, tips=())).items() if name != "tips"}
    lines = [{"v": VERSION, **head}, *(asdict(tip) for tip in pool.tips)]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    with replacing(file) as partial:
        partial.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def digest_of(prompt: str) -> str:
    """The first 16 hexadecimal digits of the prompt's SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def is_showable(tip: PooledTip, prompt: Prompt) -> bool:
    """Whether there is text and every placeholder in it can be filled in; others are left out."""
    return bool(refill(tip.text, prompt.placeholders))


def _is_pooled(pool: Pool, model: ModelVersion, sampling: Sampling) -> bool:
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
    with (
        drafts.open("a", encoding="utf-8") as file,
        progress_bar("pool", total=len(jobs), unit="tip", is_kept=True) as bar,
    ):
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
            if is_showable(tip, assemble(chat, tip.situation.kind, tip.situation.context))
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
        drafts = folder or Path(temporary)
        drafts.mkdir(parents=True, exist_ok=True)
        settings = drafts / "reactune.toml"
        settings.write_text(demo_settings(), encoding="utf-8")
        patience = "serve.timeout_seconds=600"
        config = load(
            settings, (f"serve.threads={threads}", f"serve.parallel={parallel}", patience)
        )
        write_pool(make_pool(config, count=count, folder=drafts), out)


if __name__ == "__main__":
    main()
