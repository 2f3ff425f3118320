"""Names found by a spaCy model: the only module that knows spaCy.

Only what the entity recogniser needs is loaded, and texts are read many at a time.
"""

import importlib.util
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.detect.spans import Span
from reactune.errors import PrivacyError

if TYPE_CHECKING:
    from spacy.language import Language

SCORE = 0.85  # spaCy says no chances; this is Presidio's for its entities
BATCH = 128
UNUSED = (
    "tagger", "parser", "attribute_ruler", "lemmatizer", "trainable_lemmatizer", "morphologizer",
    "senter",
)  # fmt: skip
KIND_OF = {
    "PERSON": "PERSON", "PER": "PERSON", "persName": "PERSON", "GPE": "PLACE", "LOC": "PLACE",
    "placeName": "PLACE", "geogName": "PLACE", "FAC": "ADDRESS", "ORG": "ORGANIZATION",
    "orgName": "ORGANIZATION", "NORP": "GROUP",
}  # fmt: skip


@cache
def load_spacy(model: str) -> "Language":
    """The entity recogniser of a spaCy package, or of a folder.

    Raises:
        PrivacyError: spaCy or the model is not here.
    """
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise PrivacyError(
            f"privacy.models names the spaCy model {model!r}, but spaCy is not installed; run "
            "`pip install 'reactune[names]'`, or take the model `names`"
        ) from error
    folder = folder_of(model)
    if folder is None:
        raise PrivacyError(
            f"privacy.models names {model!r}, which is neither `names` nor an installed spaCy "
            f"package nor a folder; run `pip install {model}`, or correct the name"
        )
    return spacy.load(folder, exclude=list(UNUSED))


def find_with_spacy(
    pipeline: "Language", texts: Sequence[str], *, kinds: Collection[str]
) -> list[list[Span]]:
    """The entities of these kinds in every text, in its order."""
    return [
        [
            Span(entity.start_char, entity.end_char, KIND_OF[entity.label_], SCORE)
            for entity in document.ents
            if KIND_OF.get(entity.label_) in kinds
        ]
        for document in pipeline.pipe(texts, batch_size=BATCH)
    ]


def folder_of(model: str) -> Path | None:
    """Where the model's config.cfg lies; some packages keep it in a folder of their own."""
    path = Path(model).expanduser()
    if not path.is_dir():
        found = importlib.util.find_spec(model) if model.isidentifier() else None
        if found is None or found.origin is None:
            return None
        path = Path(found.origin).parent
    return next((file.parent for file in sorted(path.rglob("config.cfg"))), None)
