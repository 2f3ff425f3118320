"""The detectors that the settings ask for, as one: the same at serving and for training."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, partial

from reactune.config import PrivacyConfig
from reactune.detect.forms import find_forms
from reactune.detect.languages import check_languages, language_of
from reactune.detect.spacy_model import find_with_spacy, load_spacy
from reactune.detect.spans import Detector, Span, without_overlaps
from reactune.detect.tagger import find_names, load_tagger

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
