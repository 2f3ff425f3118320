"""Features of a run's reactions in a file: computed once a text, and erased with the user.

Each row has its user, so that an erasure finds it; a text in a prompt is recognised by a digest. A
computation that was killed goes on at its last chunk.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reactune.model.files import BaseModel
from reactune.model.logprobs import Progress, Row
from reactune.model.prompt import Chat, rebuild, tip_token_ids
from reactune.records import Example, replacing
from reactune.reward.features import Floats, open_layers, tip_features
from reactune.reward.learn import Learned

if TYPE_CHECKING:
    import pyarrow as pa

FEATURES = "features.parquet"
CHUNKS = "chunks"  # folder of a computation that goes on
CHUNK_ROWS = 500


def reward_rows(chat: Chat, examples: Iterable[Example]) -> list[Row]:
    """Token ids of each prompt and tip, without the token that ends the tip."""

    @cache
    def prompt_ids(kind: str, context_json: str) -> tuple[int, ...]:
        return rebuild(chat, kind, context_json).token_ids

    return [(prompt_ids(e.kind, e.context_json), tip_token_ids(chat, e.tip)) for e in examples]


def cached_features(
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    layers: Sequence[int],
    *,
    folder: Path,
    earlier: Iterable[Path] = (),
    progress: Callable[[int], Progress] = lambda total: lambda done: None,
) -> Floats:
    """Features of the examples after `layers`, shape (examples, width).

    What `folder` or one of the `earlier` files holds is read, the rest is computed, once for each
    text in a prompt, and written there, chunk by chunk. Values are rounded to float16, read or
    computed. `progress` is called with the number of rows to compute.
    """
    rows = reward_rows(chat, examples)
    digests = [digest_of(base.digest, layers, row) for row in rows]
    known = _read([*earlier, *sorted((folder / CHUNKS).glob("*.parquet"))], set(digests))
    first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    missing = [place for digest, place in first.items() if digest not in known]
    # Tips of one prompt together, prompts of one kind together: they share a prefix.
    missing.sort(key=lambda i: (examples[i].kind, examples[i].context_json, i))
    report = progress(len(missing))
    number = len(list((folder / CHUNKS).glob("*.parquet")))
    model_of = open_layers(base.folder, layers[-1]) if missing else nullcontext()
    with model_of as model:
        for some in _chunks(missing):
            found = tip_features(model, [rows[i] for i in some], layers, progress=report)
            halves = found.astype(np.float16)
            names = [digests[i] for i in some]
            number += 1
            write_features(
                folder / CHUNKS / f"{number:05}.parquet", [examples[i] for i in some], names, halves
            )
            known |= dict(zip(names, halves, strict=True))
    return np.array([known[digest] for digest in digests], np.float32)


def keep_features(
    base: BaseModel, chat: Chat, learned: Learned, layers: Sequence[int], *, folder: Path
) -> None:
    """Write the features that were read, after `layers`, as the run's file.

    The chunks are removed. Where nothing was read, the file has no rows.
    """
    digests = [digest_of(base.digest, layers, row) for row in reward_rows(chat, learned.examples)]
    halves = learned.features.astype(np.float16)
    write_features(folder / FEATURES, learned.examples, digests, halves)
    shutil.rmtree(folder / CHUNKS, ignore_errors=True)


def digest_of(base_digest: str, layers: Sequence[int], row: Row) -> str:
    """Names a text in its prompt, read by these layers of this base model."""
    prompt, tip = row
    named = f"{base_digest} {list(layers)} {list(prompt)} {list(tip)}"
    return hashlib.sha256(named.encode()).hexdigest()


def features_schema() -> "pa.Schema":
    """A row for each reaction; `features` are float16 numbers."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("tip_id", "user_key", "digest")]
    moment = ("created_at", pa.timestamp("us", "UTC"))
    return pa.schema([*texts, moment, ("features", pa.binary())])


def _read(files: Iterable[Path], wanted: set[str]) -> dict[str, npt.NDArray[np.float16]]:
    import pyarrow.parquet as pq

    found = {}
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=["digest", "features"]):
                for row in batch.to_pylist():
                    if row["digest"] in wanted:
                        found[row["digest"]] = np.frombuffer(row["features"], np.float16)
    return found


def write_features(
    file: Path,
    examples: Sequence[Example],
    digests: Sequence[str],
    values: npt.NDArray[np.float16],
) -> None:
    """Write the features of examples, each row with its user, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "tip_id": [each.tip_id for each in examples],
        "user_key": [each.user_key for each in examples],
        "digest": list(digests),
        "created_at": [each.created_at for each in examples],
        "features": [each.tobytes() for each in values],
    }
    with replacing(file) as partial:
        pq.write_table(pa.table(columns, features_schema()), partial, compression="zstd")


def _chunks(places: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), CHUNK_ROWS):
        yield places[start : start + CHUNK_ROWS]
