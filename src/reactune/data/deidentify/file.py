"""Personal data out of the texts of a file: each chunk of rows by a pure function, in processes.

How files are read and written is `text_files.py`'s, what is found the detectors'.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from reactune.config.sections import PrivacyConfig
from reactune.data.readers import Chunk, Values, read_chunks, texts_in, with_texts, writing
from reactune.pii.detectors import is_foreign_row, open_detector, remembering
from reactune.pii.spans import PLACEHOLDER, scrub_rows, without_label

AHEAD = 3  # chunks per process that are read before their turn to be written


@dataclass(frozen=True)
class FoundSpan:
    """Personal data in one text of a file; `text` is the number of the text in its column."""

    row: int
    column: str
    text: int
    kind: str
    start: int
    end: int
    score: float
    value: str = field(repr=False)


@dataclass(frozen=True)
class Scrubbed:
    """What became of one chunk: `foreign` are rows, by position, in no configured language."""

    values: Sequence[Values] = field(repr=False)
    spans: Sequence[FoundSpan] = field(repr=False)
    replaced: Counter[str]
    foreign: frozenset[int]


@dataclass
class Summary:
    """Rows in and out, and how many placeholders of each kind were written."""

    came_in: int = 0
    went_out: int = 0
    unreadable: int = 0
    foreign: int = 0
    replaced: Counter[str] = field(default_factory=Counter)


def deidentify_file(
    path: Path,
    out: Path | None,
    *,
    privacy: PrivacyConfig,
    columns: Sequence[str] = (),
    keep_foreign: bool = False,
    workers: int = 1,
    on_span: Callable[[FoundSpan], object] = lambda span: None,
    progress: Callable[[int], object] = lambda size: None,
) -> Summary:
    """Write the file with placeholders in place of personal data; `out` None: only look.

    Equal values of a row get the same placeholder. Rows in a language that no model is configured
    for are left out unless they are to be kept. `progress` is told bytes read, chunk by chunk.

    Raises:
        DataError: a file cannot be read or written, or lacks a column.
        PrivacyError: a model that finds names is missing.
    """
    open_detector(privacy)  # a missing model is said before anything is read
    summary = Summary()
    with ExitStack() as stack:
        write = stack.enter_context(writing(out, path)) if out else None
        chunks = read_chunks(path, columns)
        for chunk, done in _scrub_all(chunks, privacy, workers):
            kept = range(len(done.values))
            if not keep_foreign:
                kept = [at for at in kept if at not in done.foreign]  # type: ignore[assignment]
            if write:
                write(_rows(chunk.whole, kept), [done.values[at] for at in kept])
            for span in done.spans:
                on_span(span)
            _add(summary, chunk, done, len(kept))
            progress(chunk.position)
    return summary


def scrub_chunk(chunk_values: Sequence[Values], first: int, privacy: PrivacyConfig) -> Scrubbed:
    """The rows with placeholders, and where personal data stood in them; a pure function."""
    detect = remembering(open_detector(privacy), 1 << 20)
    texts = [[list(texts_in(*column)) for column in row.items()] for row in chunk_values]
    rows = [[text for column in row for text in column] for row in texts]
    found = iter(detect([text.label + text.value for row in rows for text in row]))
    languages = tuple(privacy.models)
    scrubbed = scrub_rows(rows, [{} for _ in rows], detect=detect)
    values = []
    for row, new in zip(chunk_values, scrubbed, strict=True):
        rest = iter(new)
        values.append({name: with_texts(value, rest) for name, value in row.items()})
    spans = [
        FoundSpan(
            first + at, name, number, s.kind, s.start, s.end, s.score, text.value[s.start : s.end]
        )
        for at, (row, columns) in enumerate(zip(chunk_values, texts, strict=True))
        for name, column in zip(row, columns, strict=True)
        for number, text in enumerate(column)
        for s in without_label(next(found), text.label)
    ]
    foreign = frozenset(
        at
        for at, (row, new) in enumerate(zip(rows, scrubbed, strict=True))
        if languages
        and is_foreign_row(
            "\n".join(text.value for text in row), "\n".join(new), languages=languages
        )
    )
    replaced = _kinds(scrubbed) - _kinds((text.value for text in row) for row in rows)
    return Scrubbed(values, spans, replaced, foreign)


def _kinds(rows: Iterable[Iterable[str]]) -> Counter[str]:
    """How many placeholders of each kind stand in the rows."""
    return Counter(match[1] for row in rows for text in row for match in PLACEHOLDER.finditer(text))


def _scrub_all(
    chunks: Iterator[Chunk], privacy: PrivacyConfig, workers: int
) -> Iterator[tuple[Chunk, Scrubbed]]:
    """Every chunk with what became of it, in order; several processes at once if asked for."""
    if workers == 1:
        for chunk in chunks:
            yield chunk, scrub_chunk(chunk.values, chunk.first, privacy)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: list[tuple[Chunk, Future[Scrubbed]]] = []
        while True:
            for chunk in islice(chunks, workers * AHEAD - len(waiting)):
                job = pool.submit(scrub_chunk, chunk.values, chunk.first, privacy)
                waiting.append((chunk, job))
            if not waiting:
                return
            chunk, job = waiting.pop(0)
            yield chunk, job.result()


def _rows(whole: object, kept: Sequence[int]) -> object:
    """These rows of a list of rows, or of a record batch."""
    if isinstance(whole, list):
        return [whole[at] for at in kept]
    return whole.take(list(kept))  # type: ignore[attr-defined]


def _add(summary: Summary, chunk: Chunk, done: Scrubbed, kept: int) -> None:
    summary.came_in += len(done.values) + chunk.unreadable
    summary.went_out += kept
    summary.unreadable += chunk.unreadable
    summary.foreign += len(done.foreign)
    summary.replaced += done.replaced
