"""The proof that what is served is what was trained: token by token, and as the server answers."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from reactune.config.sections import ExportConfig
from reactune.errors import ReleaseError
from reactune.model.files import BaseModel
from reactune.model.logprobs import Row, logits_at, open_model, score
from reactune.model.prompt import Chat, assemble, completion_ids, user_text
from reactune.records import Completion, ModelVersion, Prompt, Runtime, Sampling
from reactune.release.gguf import unquantise
from reactune.release.llamacpp import file_logprobs

# Contexts and tips that stand for those of a product while there are none.
PROBES = (
    ("I slept badly and have 3 meetings before 10:45.", "Take a short walk before lunch."),
    ("Buy 12 eggs, and call mum at 18:30.", "Buy the eggs on the way home."),
    ("It is evening, and there are no tasks left.", "Read a book, and go to bed early."),
    ("I want to learn Spanish.", "Learn five new words every day after breakfast."),
)
Scores = Sequence[NDArray[np.float64]]
Ids = Sequence[int]


@dataclass(frozen=True)
class Served:
    """One greedy answer of the server.

    `ids` are the answer's tokens, with the stop token if the server stopped at it; `choices` is
    the token that the trained model ranks first at each of these places.
    """

    prompt: Prompt
    completion: Completion
    ids: tuple[int, ...]
    choices: tuple[int, ...]
    chat_tokens: int | None = None

    @property
    def agreed(self) -> int:
        """Tokens that the trained model would also have written at their places."""
        return sum(given == chosen for given, chosen in zip(self.ids, self.choices, strict=True))


@dataclass(frozen=True)
class ParityReport:
    """How far the served model is from the trained one; no failures: it may be served.

    Gaps are absolute differences of a token's natural log-probability. `learned_kept` is the slope
    of what the file gained over the base against what training gained, token by token (None for
    the base itself), and `kept_error` its standard error. `greedy_agreement` is the share of
    served tokens that the trained model ranks first, `same_tips` that of answers without a
    difference.
    """

    prompts: int
    tokens: int
    logprob_gap: float
    largest_gap: float
    learned_kept: float | None
    kept_error: float | None
    greedy_agreement: float
    same_tips: float
    failures: tuple[str, ...]
    seconds: float

    def line(self) -> str:
        """One line for the person at the terminal."""
        kept = (
            f"{self.learned_kept:.0%} of what was learned is kept, "
            if self.learned_kept is not None
            else ""
        )
        return (
            f"{self.prompts} prompts, {self.tokens} tokens: log-probabilities differ by "
            f"{self.logprob_gap:.4f} on average ({self.largest_gap:.3f} at most), {kept}"
            f"{self.greedy_agreement:.0%} of greedy tokens agree: "
            f"{'; '.join(self.failures) or 'as trained'}"
        )


def check(
    base: BaseModel,
    model: ModelVersion,
    *,
    chat: Chat,
    prompts: Sequence[Prompt],
    completions: Sequence[Ids],
    runtime: Runtime,
    settings: ExportConfig,
    max_tokens: int = 64,
    threads: int = 0,
) -> ParityReport:
    """Compare the exported file and the server with the trained model on held-out prompts.

    Token by token: `completions` (token ids of one tip per prompt, with the stop token) are scored
    in float32 by base plus `model.adapter` as transformers and PEFT run them, by the base alone,
    and by the server, or by llama.cpp on the weights of `model.gguf` where the server does not
    tell. As served: the runtime answers each prompt greedily, and each token of it is compared with
    the trained model's own choice at that place. A chat template of the server must make the same
    prompts. The version is published first, and stays published. Failures are in the report.

    Raises:
        ReleaseError: the server does not answer, the file cannot be loaded, or there is no prompt.
    """
    stops = {completion[-1] for completion in completions}
    if not prompts or len(prompts) != len(completions) or len(stops) != 1:
        raise ReleaseError(
            f"parity needs prompts with a completion each that ends in the stop token; got "
            f"{len(prompts)} and {len(completions)}, ending in tokens {sorted(stops)}"
        )
    started = time.monotonic()
    tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    answers = _answer_greedily(runtime, model, prompts, max_tokens)
    chat_tokens = [runtime.chat_prompt_tokens(model, user_text(chat, each)) for each in prompts]
    answered = [answer_ids(tokenizer, answer, stop=max(stops)) for answer in answers]
    rows = [(prompt.token_ids, ids) for prompt, ids in zip(prompts, completions, strict=True)]
    answer_rows = [(prompt.token_ids, ids) for prompt, ids in zip(prompts, answered, strict=True)]
    trained, choices = _score_trained(base, model, rows, answer_rows, threads=threads)
    untrained = None if model.adapter is None else _score_base(base, rows, threads=threads)
    exported = _ask_scores(runtime, model, rows) or _score_file(model, rows, threads=threads)
    parts = zip(prompts, answers, answered, choices, chat_tokens, strict=True)
    return compare(
        trained,
        exported,
        untrained=untrained,
        served=[Served(*part) for part in parts],
        special_tokens=special_tokens(tokenizer),
        settings=settings,
        max_tokens=max_tokens,
        seconds=time.monotonic() - started,
    )


def check_base(
    base: BaseModel,
    model: ModelVersion,
    *,
    chat: Chat,
    runtime: Runtime,
    settings: ExportConfig,
    threads: int = 0,
) -> ParityReport:
    """`check` of the exported base model, which has no held-out tips yet: on a few of ours.

    What its file or its server does otherwise than transformers is known before anything is
    trained. Greedy answers are not judged: a text of an untuned model need not be cut into the
    tokens that it was drawn from. It is published meanwhile.

    Raises:
        ReleaseError: as `check`.
    """
    key = next(iter(chat.settings.context_keys), "")
    try:
        return check(
            base,
            model,
            chat=chat,
            prompts=[assemble(chat, "any", {key: text}) for text, _ in PROBES],
            completions=[completion_ids(chat, tip) for _, tip in PROBES],
            runtime=runtime,
            settings=settings.model_copy(update={"min_greedy_agreement": 0.0}),
            max_tokens=1,
            threads=threads,
        )
    finally:
        runtime.retire(model)


def _answer_greedily(
    runtime: Runtime, model: ModelVersion, prompts: Sequence[Prompt], max_tokens: int
) -> list[Completion]:
    runtime.publish(model)
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens, seed=0)
    return [runtime.generate(model, prompt.text, sampling) for prompt in prompts]


def _score_trained(
    base: BaseModel,
    model: ModelVersion,
    tips: Sequence[Row],
    answers: Sequence[Row],
    *,
    threads: int,
) -> tuple[Scores, list[tuple[int, ...]]]:
    with open_model(base.folder, model.adapter, dtype="float32", threads=threads) as trained:
        return score(trained, tips), greedy_choices(trained, answers)


def _score_base(base: BaseModel, tips: Sequence[Row], *, threads: int) -> Scores:
    with open_model(base.folder, dtype="float32", threads=threads) as untrained:
        return score(untrained, tips)


def _ask_scores(runtime: Runtime, model: ModelVersion, tips: Sequence[Row]) -> Scores | None:
    """What the server itself computes of the tips; None where it does not tell."""
    scores = []
    for prompt, completion in tips:
        told = runtime.token_logprobs(model, prompt, completion)
        if told is None:
            return None
        scores.append(np.array(told))
    return scores


def _score_file(model: ModelVersion, tips: Sequence[Row], *, threads: int) -> Scores:
    """What llama.cpp computes of the file's weights, without a rounding of its own.

    It multiplies 8-bit weights with numbers that it rounds to 8 bits too, and that noise would hide
    a small fault of the file; so it gets each weight as the 16-bit number that it stands for.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "unquantised.gguf"
        unquantise(model.gguf, file)
        scored = replace(model, gguf=file, name=f"{model.name}-unquantised")
        return [np.array(row) for row in file_logprobs(scored, tips, threads=threads)]


def answer_ids(tokenizer: Tokenizer, answer: Completion, *, stop: int) -> tuple[int, ...]:
    """Token ids of the server's answer, with the stop token if the server stopped at it."""
    ids = tuple(tokenizer.encode(answer.text, add_special_tokens=False).ids)
    return (*ids, stop) if answer.stopped == "stop" else ids


def special_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Texts of the tokenizer's special tokens; none may be in an answer."""
    added = tokenizer.get_added_tokens_decoder().values()
    return tuple(token.content for token in added if token.special)


def greedy_choices(model: Any, rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """At each place of a row's completion, the token that the model ranks first there.

    One pass instead of one per token; up to the first difference from the completion this is what
    the model itself would have written greedily.
    """
    import torch

    choices = []
    with torch.inference_mode():
        for prompt, completion in rows:
            ids = torch.tensor([[*prompt, *completion]])
            places = torch.zeros_like(ids, dtype=torch.bool)
            places[0, len(prompt) - 1 : -1] = True
            logits = logits_at(model, places, input_ids=ids, use_cache=False)
            choices.append(tuple(logits.argmax(dim=-1).tolist()))
    return choices


def compare(
    trained: Scores,
    exported: Scores,
    *,
    untrained: Scores | None,
    served: Sequence[Served],
    special_tokens: Sequence[str],
    settings: ExportConfig,
    max_tokens: int,
    seconds: float,
) -> ParityReport:
    """Judge token log-probabilities of the same tips, and the server's greedy answers.

    `untrained` are the base's log-probabilities of them; None where the base itself is judged.
    """
    gaps = np.abs(np.concatenate(list(trained)) - np.concatenate(list(exported)))
    kept, error = (None, None) if untrained is None else learned_kept(trained, exported, untrained)
    written = sum(len(one.ids) for one in served)
    report = ParityReport(
        prompts=len(served),
        tokens=len(gaps),
        logprob_gap=float(gaps.mean()),
        largest_gap=float(gaps.max()),
        learned_kept=kept,
        kept_error=error,
        greedy_agreement=sum(one.agreed for one in served) / max(written, 1),
        same_tips=sum(one.ids == one.choices for one in served) / len(served),
        failures=(),
        seconds=seconds,
    )
    faults = [fault for one in served for fault in _faults(one, special_tokens, max_tokens)]
    failures = (*_beyond_tolerance(report, settings), *dict.fromkeys(faults))
    return replace(report, failures=failures)


def learned_kept(
    trained: Scores, exported: Scores, untrained: Scores
) -> tuple[float, float] | tuple[None, None]:
    """Slope through zero of the file's gains on training's gains, and its standard error.

    1: the file has all that was learned; 0: nothing. Rounding noise, which a mean absolute gap
    cannot tell from a lost adapter, averages out. Nothing where training changed nothing.
    """
    start = np.concatenate(list(untrained))
    gained = np.concatenate(list(trained)) - start
    reached = np.concatenate(list(exported)) - start
    weight = float(gained @ gained)
    if weight == 0:
        return None, None
    slope = float(reached @ gained) / weight
    return slope, float(np.sqrt(((reached - slope * gained) ** 2).mean() / weight))


def _beyond_tolerance(report: ParityReport, settings: ExportConfig) -> list[str]:
    failures = []
    # Written so that a gap that is not a number fails.
    if not report.logprob_gap <= settings.max_logprob_gap:
        failures.append(
            f"log-probabilities differ by {report.logprob_gap:.4f} per token, above "
            f"{settings.max_logprob_gap}"
        )
    kept, error = report.learned_kept, report.kept_error
    # A small change leaves the slope uncertain: only what is certainly lost fails.
    if kept is not None and error is not None and kept + 2 * error < settings.min_learned_kept:
        failures.append(
            f"{kept:.0%} of what was learned is in the file, below {settings.min_learned_kept:.0%}"
        )
    if kept is not None and error is not None and kept - 2 * error > 2 - settings.min_learned_kept:
        failures.append(
            f"{kept:.0%} of what was learned is in the file: it was merged too strongly"
        )
    if report.greedy_agreement < settings.min_greedy_agreement:
        failures.append(
            f"{report.greedy_agreement:.0%} of greedy tokens agree, below "
            f"{settings.min_greedy_agreement:.0%}"
        )
    return failures


def _faults(served: Served, special_tokens: Sequence[str], max_tokens: int) -> list[str]:
    """What is wrong with how the server handled one prompt; equal faults have equal texts."""
    completion, expected = served.completion, len(served.prompt.token_ids)
    faults = []
    if completion.prompt_tokens != expected:
        faults.append(
            f"the server reads {completion.prompt_tokens} prompt tokens where the template gives "
            f"{expected}"
        )
    if served.chat_tokens not in (None, expected):
        faults.append(
            f"the server's chat endpoint reads {served.chat_tokens} prompt tokens where the "
            f"template gives {expected}"
        )
    shown = [token for token in special_tokens if token in completion.text]
    if shown:
        faults.append(f"the server does not stop at, or shows, {', '.join(shown)}")
    if completion.tokens > max_tokens:
        faults.append(f"the server wrote {completion.tokens} tokens, {max_tokens} were allowed")
    # A token's worth of slack: servers differ in whether they count the stop token.
    if completion.stopped == "length" and completion.tokens < max_tokens - 1:
        faults.append(f"the server broke off after {completion.tokens} of {max_tokens} tokens")
    return faults
