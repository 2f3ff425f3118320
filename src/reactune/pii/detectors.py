"""The detectors that the settings name, as one function: the same at serving and for training.

What has a fixed form is found by `patterns`, names by the model of the text's language: `names`,
the tagger that comes with reactune, or a spaCy model.
"""

import importlib.util
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config.sections import PrivacyConfig
from reactune.errors import PrivacyError
from reactune.pii.patterns import find_patterns
from reactune.pii.spans import WORD, Detector, Span, without_overlaps
from reactune.pii.tagger import classes_of, find_names, load_tagger, words_of

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier
    from spacy.language import Language

Kinds = frozenset[str]
NameFinder = Callable[[Sequence[str], Kinds], list[list[Span]]]

DEFAULT_KINDS: Kinds = frozenset(PrivacyConfig().kinds)
OUR_MODEL = "names"

SPACY_SCORE = 0.85  # spaCy states no probabilities; Presidio uses this score for its entities
SPACY_BATCH = 128
UNUSED_PIPES = (
    "tagger", "parser", "attribute_ruler", "lemmatizer", "trainable_lemmatizer", "morphologizer",
    "senter",
)  # fmt: skip
KIND_OF_LABEL = {
    "PERSON": "PERSON", "PER": "PERSON", "persName": "PERSON", "GPE": "PLACE", "LOC": "PLACE",
    "placeName": "PLACE", "geogName": "PLACE", "FAC": "ADDRESS", "ORG": "ORGANIZATION",
    "orgName": "ORGANIZATION", "NORP": "GROUP",
}  # fmt: skip

THRESHOLD_ELSEWHERE = 0.75  # of the tagger in other languages, which it hardly knows
# From these scores on, a first word is a name: one that is a common word as well, one that an
# object follows, any other, one that speaks or does what only people do, one of whom is told.
SURE_OF_COMMON, SURE_BEFORE_OBJECT, SURE, SURE_BEFORE_SPEECH = 0.95, 0.9, 0.8, 0.5
SURE_BEFORE_PAST, SURE_OF_COMMON_BEFORE_PAST = 0.4, 0.9
SPEECH_AFTER = re.compile(
    r"\s+(?:said|says|asked|told|wrote|called|replied|thinks|wants|knows|lives|works|came|left)\b"
)
PAST_AFTER = re.compile(
    r"(?:, who|'s \w+)?(?:,? (?:also|again|later|\w+ly))?\s+(?:was|were|had|has|did|became|began"
    r"|fell|made|took|got|gave|met|won|lost|ran|led|held|sang|spent|kept|wrote|died|\w{2,}ed"
    r"|is (?:very|so|my|our|not an?|best known|remembered|considered|obsessed))\b"
    r"|:\s*[\"\u201c]|, [A-Z]\w+,"
)
NO_NAMES_IN: Kinds = frozenset({"EMAIL", "URL"})
OBJECT_AFTER = re.compile(
    r"\s+(?:an?|the|this|that|these|those|your|one|two|three|each|every|some|any|up|out|off|down|\d+)\b"
)
INVISIBLE = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe0f\ufeff"
COMBINING = "\u0300-\u036f"  # accents that stand behind their letter, as some systems write names
PART = re.compile(f"[{INVISIBLE}]|[^\\W\\d_][{COMBINING}]{{1,8}}|.", re.S)
INVISIBLE_CHAR = re.compile(f"[{INVISIBLE}]").match
HAS_PARTS = re.compile(f"[{INVISIBLE}{COMBINING}]").search
FOLDED = {
    **dict.fromkeys((9, 160, 5760, *range(8192, 8203), 8239, 8287, 12288), " "),
    **dict.fromkeys((*range(8208, 8214), 8722, 65112, 65123), "-"),
    **dict.fromkeys((183, 8228, 8231, 8729, 12290, 65377), "."),
    **dict.fromkeys((8216, 8217, 8219, 700), "'"),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(range(0xD800, 0xE000), " "),
    **{
        code: str(unicodedata.decimal(chr(code)))
        for code in range(0x80, 0x20000)
        if chr(code).isdecimal()
    },
    # Mathematical letters, which some write names in.
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x1D400, 0x1D6A4)},
}
"""Characters that are read as one of ASCII; half characters are read as a space."""

# The ISO 639 codes of the languages that py3langid distinguishes.
CODES = """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et
    eu ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy
    id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn
    mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn
    so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh
    zu zxx
"""
LANGUAGES = CODES.split()
# Below this probability, no English headline of 2,138 was taken for another language, and no tip
# in 12 other languages for English; with 0.1, 0.7 % of the headlines were.
UNLIKELY = 0.05
# Short texts with names or units (`Plant 12 bulbs 15-20 cm apart.`) may come below that.
VERY_UNLIKELY = 0.01
VERY_UNLIKELY_ELSEWHERE = 1e-5
ENGLISH = frozenset("012")  # letters of the lexicon: words that are (also) written small
MOSTLY_ENGLISH = 0.75  # share of the words that are written small
MIN_LETTERS = 12  # a shorter text is not classified
MIN_LETTERS_WITHOUT_NAMES = 8  # of a text that was long enough with its names
NOT_WORDS = re.compile(r"<[A-Z_]+_\d+>|https?://\S+|\S+@\S+|[@#]\w+")


def open_detector(settings: PrivacyConfig) -> Detector:
    """What finds personal data under these settings, with its models loaded.

    It can be sent to another process, which loads the models again.

    Raises:
        PrivacyError: a model is not installed, or its language is unknown.
    """
    models = tuple(
        (language, model if model == OUR_MODEL else _absolute(settings, model))
        for language, model in settings.models.items()
    )
    check_languages(settings.models)
    for language, model in models:
        _name_finder(model, language)
    return partial(detect, models, frozenset(settings.kinds))


def _absolute(settings: PrivacyConfig, model: str) -> str:
    """The whole path of a model that is a folder; the name of any other."""
    path = settings.path(model)
    return str(path) if path.is_dir() else model


def detect_patterns(texts: Sequence[str]) -> list[list[Span]]:
    """What is found without a model, of the kinds that are replaced by default."""
    return detect((), DEFAULT_KINDS, texts)


def detect(
    models: tuple[tuple[str, str], ...], kinds: Kinds, texts: Sequence[str]
) -> list[list[Span]]:
    """The spans of every text; where a pattern and a name overlap, the pattern is kept whole.

    No name is found within an address of mail or web, whether or not these are asked for.
    `models` are pairs of a language and the model of its names.
    """
    folds = [fold(text) for text in texts]
    folded = [text for text, _ in folds]
    patterns = find_patterns(folded, kinds=kinds | NO_NAMES_IN)
    names = _names(models, kinds, folded) if models else [[] for _ in texts]
    return [
        unfolded(
            [
                span
                for span in without_overlaps(text, [*by_pattern, *_likely(text, by_model)])
                if span.kind in kinds
            ],
            places,
        )
        if by_pattern or by_model
        else []
        for (text, places), by_pattern, by_model in zip(folds, patterns, names, strict=True)
    ]


def fold(text: str) -> tuple[str, list[tuple[int, int]] | None]:
    """The text as detectors read it, and start and end of its characters in the text.

    Spaces, hyphens, apostrophes, dots and digits of all kinds are those of ASCII, full-width
    letters too; letters have their accents in them; invisible characters are left out. None where
    the characters stand at the same places.
    """
    if text.isascii() and "\t" not in text:
        return text, None
    same_length = text.translate(FOLDED)
    if not HAS_PARTS(same_length):
        return same_length, None
    chars, places = [], []
    for part in PART.finditer(same_length):
        if part.end() - part.start() > 1 or not INVISIBLE_CHAR(part[0]):
            composed = unicodedata.normalize("NFC", part[0])
            chars.append(composed)
            places += [part.span()] * len(composed)
    return "".join(chars), places


def unfolded(spans: list[Span], places: Sequence[tuple[int, int]] | None) -> list[Span]:
    """The spans of a folded text as spans of the text."""
    if places is None:
        return spans
    return [
        Span(places[span.start][0], places[span.end - 1][1], span.kind, span.score)
        for span in spans
    ]


def begins_sentence(text: str, at: int) -> bool:
    """Whether a sentence of the text, or a line, begins there."""
    while at and text[at - 1].isspace() and text[at - 1] != "\n":
        at -= 1
    return at == 0 or text[at - 1] in ".!?:\n"


def cached(detector: Detector, size: int) -> Detector:
    """The detector with the results of the last `size` texts cached.

    Texts of one call are detected in one batch, which is faster. For data that the process holds
    anyway.
    """
    results: OrderedDict[str, list[Span]] = OrderedDict()

    def detect_cached(texts: Sequence[str]) -> list[list[Span]]:
        new = list(dict.fromkeys(text for text in texts if text not in results))
        if new:
            results.update(zip(new, detector(new), strict=True))
        found = [results[text] for text in texts]
        while len(results) > size:
            results.popitem(last=False)
        return found

    return detect_cached


def is_foreign(text: str, languages: Sequence[str]) -> bool:
    """Whether the text is in none of the languages; a text of few letters never is foreign."""
    return _is_unlikely(text, languages, min_letters=MIN_LETTERS)


def is_foreign_row(text: str, scrubbed: str, *, languages: Sequence[str]) -> bool:
    """As `is_foreign`, without names: `Call Zoltán Kovács` is English but for the name.

    Where little is left, as foreign words were taken for names, only a clearly foreign text is.
    """
    if not is_foreign(text, languages):
        return False
    if sum(map(str.isalpha, _words(scrubbed))) < MIN_LETTERS_WITHOUT_NAMES:
        return is_foreign_tip(text, languages=languages)
    return _is_unlikely(scrubbed, languages, min_letters=MIN_LETTERS_WITHOUT_NAMES)


def is_foreign_tip(tip: str, *, languages: Sequence[str]) -> bool:
    """As `is_foreign`, of a short text alone that may hold names: only what is clearly foreign.

    Where English is one of the languages, most of its words that are written small are no English.
    """
    if "en" not in languages:
        return _is_unlikely(
            tip, languages, min_letters=MIN_LETTERS, unlikely=VERY_UNLIKELY_ELSEWHERE
        )
    words = [tip[start:end] for start, end in words_of(tip)]
    small = [
        word for word in words if len(word) > 1 and word[0].isalpha() and not word[0].isupper()
    ]
    english = sum(bool(ENGLISH.intersection(classes_of(word.casefold()))) for word in small)
    return english < MOSTLY_ENGLISH * len(small) and _is_unlikely(
        tip, languages, min_letters=MIN_LETTERS, unlikely=VERY_UNLIKELY
    )


def language_of(text: str, languages: Sequence[str]) -> str | None:
    """The most probable of the languages, or None if all are improbable."""
    found = language_probabilities(_words(text), languages)
    best = max(range(len(languages)), key=lambda number: found[number])
    return languages[best] if found[best] > UNLIKELY else None


def language_probabilities(text: str, languages: Sequence[str]) -> list[float]:
    """The probability of each of the languages, among all that are known."""
    ranked = dict(_identifier().rank(text))
    return [ranked[language] for language in languages]


def check_languages(languages: Iterable[str]) -> None:
    """Return if all of them are known.

    Raises:
        PrivacyError: one is unknown.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise PrivacyError(
                f"privacy.models: unknown language {language!r}; name it by one of the codes "
                f"{', '.join(sorted(LANGUAGES))}"
            )


@cache
def load_spacy(model: str) -> "Language":
    """The entity recogniser of a spaCy package, or of a folder.

    Raises:
        PrivacyError: spaCy or the model is not installed.
    """
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise PrivacyError(
            f"privacy.models names the spaCy model {model!r}, but spaCy is not installed; run "
            "`pip install 'reactune[names]'`, or use the model `names`"
        ) from error
    folder = folder_of(model)
    if folder is None:
        raise PrivacyError(
            f"privacy.models names {model!r}, which is neither `names` nor an installed spaCy "
            f"package nor a folder; run `pip install {model}`, or correct the name"
        )
    return spacy.load(folder, exclude=list(UNUSED_PIPES))


def find_with_spacy(
    pipeline: "Language", texts: Sequence[str], *, kinds: Collection[str]
) -> list[list[Span]]:
    """The entities of these kinds in every text, in its order."""
    return [
        [
            Span(entity.start_char, entity.end_char, KIND_OF_LABEL[entity.label_], SPACY_SCORE)
            for entity in document.ents
            if KIND_OF_LABEL.get(entity.label_) in kinds
        ]
        for document in pipeline.pipe(texts, batch_size=SPACY_BATCH)
    ]


def folder_of(model: str) -> Path | None:
    """The folder with the model's config.cfg, which some packages keep in a folder below theirs."""
    path = Path(model)
    if not path.is_dir():
        found = importlib.util.find_spec(model) if model.isidentifier() else None
        if found is None or found.origin is None:
            return None
        path = Path(found.origin).parent
    return next((file.parent for file in sorted(path.rglob("config.cfg"))), None)


def _names(
    models: tuple[tuple[str, str], ...], kinds: Kinds, texts: Sequence[str]
) -> list[list[Span]]:
    """Names in each text by the model of its language; by the first where it is unclear."""
    if len(models) == 1:
        language, model = models[0]
        return _name_finder(model, language)(texts, kinds)
    languages = tuple(language for language, _ in models)
    detected = [language_of(text, languages) or languages[0] for text in texts]
    found: list[list[Span]] = [[] for _ in texts]
    for language, model in models:
        numbers = [number for number, each in enumerate(detected) if each == language]
        spans_of_texts = _name_finder(model, language)([texts[number] for number in numbers], kinds)
        for number, spans in zip(numbers, spans_of_texts, strict=True):
            found[number] = spans
    return found


def _likely(text: str, spans: list[Span]) -> list[Span]:
    """The spans without first words of a sentence that are hardly names there.

    A tip begins with a verb or a noun, and many of these are names too: `Chase one goal`, `Pearl
    barley`. The model must be surer of them than of other words, but for `Pearl Smith`.
    """
    return [
        span
        for span in spans
        if span.kind != "PERSON"
        or span.score >= SURE_OF_COMMON
        or not begins_sentence(text, span.start)
        or span.score >= _needed(text, span)
    ]


def _needed(text: str, span: Span) -> float:
    """The score from which on a person who begins a sentence counts."""
    first, *rest = WORD.findall(text, span.start, span.end) or [""]
    if any(word[0].isupper() for word in rest):
        return 0
    if SPEECH_AFTER.match(text, span.end):
        return SURE_BEFORE_SPEECH
    is_common = bool(ENGLISH.intersection(classes_of(first.casefold())))
    if PAST_AFTER.match(text, span.end):
        return SURE_OF_COMMON_BEFORE_PAST if is_common else SURE_BEFORE_PAST
    if is_common:
        return SURE_OF_COMMON
    return SURE_BEFORE_OBJECT if OBJECT_AFTER.match(text, span.end) else SURE


@cache
def _name_finder(model: str, language: str) -> NameFinder:
    if model == OUR_MODEL or model.endswith(".npz"):  # another tagger: see bench/pii.py
        tagger = load_tagger() if model == OUR_MODEL else load_tagger(Path(model))
        threshold = None if language == "en" else THRESHOLD_ELSEWHERE
        return lambda texts, kinds: find_names(tagger, texts, kinds=kinds, threshold=threshold)
    pipeline = load_spacy(model)
    return lambda texts, kinds: find_with_spacy(pipeline, texts, kinds=kinds)


def _is_unlikely(
    text: str, languages: Sequence[str], *, min_letters: int, unlikely: float = UNLIKELY
) -> bool:
    words = _words(text)
    if sum(char.isalpha() for char in words) < min_letters:
        return False
    return sum(language_probabilities(words, languages)) < unlikely


def _words(text: str) -> str:
    return NOT_WORDS.sub(" ", fold(text)[0])


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
