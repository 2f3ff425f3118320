"""The detectors that the settings ask for, as one: the same at serving and for training."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from reactune.errors import PrivacyError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.pii.spans import Span

if TYPE_CHECKING:
    from spacy.language import Language

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from reactune.config.sections import PrivacyConfig
from reactune.pii.patterns import find_forms
from reactune.pii.spans import Detector, without_overlaps
from reactune.pii.tagger import find_names, load_tagger

# Those that the library tells apart, by their ISO 639 codes.
CODES = """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et
    eu ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy
    id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn
    mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn
    so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh
    zu zxx
"""
LANGUAGES = CODES.split()
# Under this chance, no English headline of 2,138 was taken for another language, and no tip in
# 12 other languages for English; at .1 it was 0.7 % of the headlines.
UNLIKELY = 0.05
MIN_LETTERS = 12  # a shorter text says too little
MIN_LEFT = 8  # letters without names, of a text that was long enough with them
NOT_WORDS = re.compile(r"<[A-Z_]+_\d+>|https?://\S+|\S+@\S+|[@#]\w+")


def is_foreign(text: str, languages: Sequence[str]) -> bool:
    """Whether the text is surely in none of the languages; a text of few letters never is."""
    return _is_unlikely(text, languages, letters=MIN_LETTERS)


def is_foreign_row(text: str, scrubbed: str, *, languages: Sequence[str]) -> bool:
    """As `is_foreign`, but for names: `Call Zoltán Kovács` is English in what is not a name."""
    return is_foreign(text, languages) and _is_unlikely(scrubbed, languages, letters=MIN_LEFT)


def _is_unlikely(text: str, languages: Sequence[str], *, letters: int) -> bool:
    words = _words(text)
    if sum(char.isalpha() for char in words) < letters:
        return False
    return sum(chances(words, languages)) < UNLIKELY


def language_of(text: str, languages: Sequence[str]) -> str | None:
    """The likeliest of the languages, or None for a text that has nothing of any of them."""
    found = chances(_words(text), languages)
    best = max(range(len(languages)), key=lambda number: found[number])
    return languages[best] if found[best] > UNLIKELY else None


def chances(text: str, languages: Sequence[str]) -> list[float]:
    """How likely the text is in each of the languages, among all that are known."""
    ranked = dict(_identifier().rank(text))
    return [ranked[language] for language in languages]


def check_languages(languages: Iterable[str]) -> None:
    """Return if all of them are known.

    Raises:
        PrivacyError: one is not.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise PrivacyError(
                f"privacy.models: unknown language {language!r}; name it by one of the codes "
                f"{', '.join(sorted(LANGUAGES))}"
            )


def _words(text: str) -> str:
    return NOT_WORDS.sub(" ", text)


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


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


OURS = "names"  # the model that comes with reactune

Kinds = frozenset[str]
DEFAULT_KINDS: Kinds = frozenset(PrivacyConfig().kinds)
NameFinder = Callable[[Sequence[str], Kinds], list[list[Span]]]


def open_detector(settings: PrivacyConfig) -> Detector:
    """What finds personal data under these settings, with its models loaded.

    It may be sent to another process, which loads the models anew.

    Raises:
        PrivacyError: a model is not installed, or its language is unknown.
    """
    models = tuple(settings.models.items())
    check_languages(settings.models)
    for _, model in models:
        _finder(model)
    return partial(find, models, frozenset(settings.kinds))


def by_form(texts: Sequence[str]) -> list[list[Span]]:
    """What is found without a model, of the kinds that are replaced by default."""
    return find((), DEFAULT_KINDS, texts)


def find(
    models: tuple[tuple[str, str], ...], kinds: Kinds, texts: Sequence[str]
) -> list[list[Span]]:
    """The spans of every text: what has a form is certain, names are what the models say."""
    forms = find_forms(texts, kinds=kinds)
    names = _names(models, kinds, texts) if models else [[] for _ in texts]
    return [
        without_overlaps(text, [*sure, *likely]) if sure or likely else []
        for text, sure, likely in zip(texts, forms, names, strict=True)
    ]


def remembering(detect: Detector, size: int) -> Detector:
    """The detector, asked only once about each of the last `size` texts.

    What was asked as one list is looked at together, which is what makes it fast; for data that
    the process holds anyway.
    """
    answers: OrderedDict[str, list[Span]] = OrderedDict()

    def ask(texts: Sequence[str]) -> list[list[Span]]:
        new = list(dict.fromkeys(text for text in texts if text not in answers))
        if new:
            answers.update(zip(new, detect(new), strict=True))
        found = [answers[text] for text in texts]
        while len(answers) > size:
            answers.popitem(last=False)
        return found

    return ask


def _names(
    models: tuple[tuple[str, str], ...], kinds: Kinds, texts: Sequence[str]
) -> list[list[Span]]:
    """Each text by the model of its language, the first of them where the language is unclear."""
    if len(models) == 1:
        return _finder(models[0][1])(texts, kinds)
    languages = tuple(language for language, _ in models)
    spoken = [language_of(text, languages) or languages[0] for text in texts]
    found: list[list[Span]] = [[] for _ in texts]
    for language, model in models:
        mine = [number for number, of in enumerate(spoken) if of == language]
        answers = _finder(model)([texts[number] for number in mine], kinds)
        for number, spans in zip(mine, answers, strict=True):
            found[number] = spans
    return found


@cache
def _finder(model: str) -> NameFinder:
    if model == OURS:
        tagger = load_tagger()
        return lambda texts, kinds: find_names(tagger, texts, kinds=kinds)
    pipeline = load_spacy(model)
    return lambda texts, kinds: find_with_spacy(pipeline, texts, kinds=kinds)
