import gzip
import hashlib
import json
import random
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_fixtures import SMALL, START, WORDS, example
from places import SHARED
from reactune.config.sections import DatasetConfig, ModelConfig, PrivacyConfig, PromptConfig
from reactune.data.dataset.build import (
    Labels,
    build,
    most_reacted,
    reason_to_wait,
    weights_of,
)
from reactune.data.dataset.exports import (
    EXAMPLES,
    dpo_rows,
    pairs,
    read_examples,
)
from reactune.data.dataset.rules import choose, load, part_of, split
from reactune.data.deidentify.batches import clean
from reactune.data.labelled import clean_schema, read_batches, workspace, write_batches
from reactune.errors import DataError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.records import PARTS, Counts, one_line

WRITTEN = {"README.md", "reactions.svg", "refused.svg", "refused.parquet"}  # also while it waits
UPWORTHY = SHARED / "data/upworthy/tip_scores.jsonl.gz"


def many(count, seed=7, users=60):
    """Examples of which some repeat, contradict and nearly repeat one another."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = rng.choices(WORDS, k=rng.choice([2, 4, 8, 20]))
        tip = " ".join(words) if rng.random() < 0.8 or not found else rng.choice(found).tip
        found.append(
            example(
                f"t{number:04}",
                tip,
                label=rng.random() < 0.5,
                user=f"u{rng.randrange(users)}",
                context=f"c{rng.randrange(12)}",
                kind=rng.choice(["focus", "sleep"]),
                at=rng.randrange(10_000),
            )
        )
    return found


def batches_of(examples, size=50):
    rows = [{name: getattr(each, name, None) for name in clean_schema().names} for each in examples]
    return [
        pa.RecordBatch.from_pylist(rows[at : at + size], schema=clean_schema())
        for at in range(0, len(rows), size)
    ]


def files_in(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def tip_ids(folder):
    return set(pq.read_table(folder / EXAMPLES, columns=["tip_id"]).column("tip_id").to_pylist())


def rows_in(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def chosen_from(examples, settings=SMALL, size=50):
    """The tip_ids that the rules leave, oldest first, and how many examples each rule removed."""
    with opened(examples, settings, size) as (connection, removed):
        left = connection.execute(
            "SELECT tip_id FROM examples JOIN labelled ON labelled.rowid = row "
            "ORDER BY examples.created_at, place"
        ).fetchall()
    return [tip_id for (tip_id,) in left], {name: count for name, count in removed.items() if count}


def placed(examples, settings=SMALL):
    """The part of every example that the rules leave, by tip_id."""
    with opened(examples, settings) as (connection, _):
        split(connection, settings)
        query = "SELECT tip_id, examples.part FROM examples JOIN labelled ON labelled.rowid = row"
        return dict(connection.execute(query).fetchall())


@contextmanager
def opened(examples, settings, size=50):
    """The database in which the rules were applied, and how many examples each removed."""
    with tempfile.TemporaryDirectory() as folder, workspace(Path(folder), memory_gb=0.25) as work:
        connection, place = work
        load(connection, batches_of(examples, size), settings)
        yield connection, choose(connection, settings, folder=place, progress=quiet)


def quiet(step, left):
    pass


def test_more_users_settle_a_contradiction_in_one_context():
    sides = [example("a", user="u1"), example("b", user="u2"), example("c", user="u3", label=False)]
    assert chosen_from(sides) == (["a"], {"contradicted": 1, "exact duplicates": 1})


def test_a_tie_removes_all_sides():
    both = [example("a", user="u1"), example("b", user="u2", label=False)]
    assert chosen_from(both) == ([], {"contradicted": 2})


def test_the_newest_reaction_of_a_user_is_their_vote():
    changed = [
        example("a", user="u1", at=1),
        example("b", user="u1", label=False, at=2),
        example("c", user="u1", at=0),
    ]
    assert chosen_from(changed) == (["b"], {"contradicted": 2})


def test_one_text_in_two_contexts_is_no_contradiction():
    fits, fits_not = example("a", context="c1"), example("b", context="c2", label=False)
    assert chosen_from([fits, fits_not]) == (["a", "b"], {})


def test_of_exact_duplicates_the_oldest_stays():
    found = [example("a", at=2), example("b", "Take  a\nwalk.", at=1), example("c", kind="x", at=3)]
    assert chosen_from(found) == (["b", "c"], {"exact duplicates": 1})


def test_of_near_duplicates_in_any_context_the_oldest_of_each_kind_and_label_stays():
    long = " ".join(str(number) for number in range(40))
    found = [
        example("new", f"{long} x", context="c2", at=2),
        example("old", long, at=1),
        example("disliked", long, label=False, at=3, context="c3"),
        example("other", long, kind="sleep", at=4),
    ]
    assert chosen_from(found) == (["old", "disliked", "other"], {"near duplicates": 1})


def test_a_text_stands_as_often_as_its_cap_allows_in_the_oldest_contexts():
    found = [example(f"t{n}", context=f"c{n}", at=n, user=f"u{n}") for n in range(5)]
    assert chosen_from(found) == (["t0"], {"over the cap per text": 4})
    twice = SMALL.model_copy(update={"max_per_text": 2})
    assert chosen_from(found, twice) == (["t0", "t1"], {"over the cap per text": 3})


def test_one_label_of_a_kind_stands_at_most_ten_times_as_often_as_the_other():
    found = [example(f"n{n:02}", f"no {n}", label=False, user=f"u{n}", at=n) for n in range(25)]
    found += [example("y0", "yes 0", user="u1"), example("y1", "yes 1", user="u2")]
    found += [example("z-other", "yes", kind="sleep", at=30)]
    kept, removed = chosen_from(found)
    assert removed == {"over the balance of labels": 5}
    newest = [f"n{n:02}" for n in range(5, 25)]
    assert sorted(kept) == [*newest, "y0", "y1", "z-other"]


def test_the_cap_keeps_the_newest_of_each_user():
    found = [example(f"t{n}", f"tip {n}", user=f"u{n % 2}", at=n) for n in range(9)]
    rules = SMALL.model_copy(update={"max_per_user": 2})
    assert chosen_from(found, rules) == (["t5", "t6", "t7", "t8"], {"over the cap per user": 5})


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["user", "time"]))
def test_the_rules_hold_and_do_not_depend_on_the_order_of_rows(seed, cap, way):
    rules = SMALL.model_copy(update={"max_per_user": cap, "seed": seed, "split_by": way})
    found = many(120, seed=seed)
    by_id = {each.tip_id: each for each in found}
    shuffled = random.Random(seed).sample(found, len(found))
    kept, removed = chosen_from(found, rules)
    assert chosen_from(shuffled, rules, 7) == (kept, removed)
    chosen = [by_id[tip_id] for tip_id in kept]
    assert len(found) - sum(removed.values()) == len(chosen)
    assert max(Counter(each.user_key for each in chosen).values()) <= cap
    assert max(Counter((e.kind, e.label, folded(e)) for e in chosen).values()) == 1
    questions = {}
    for each in chosen:
        questions.setdefault((each.kind, each.context_json, one_line(each.tip)), []).append(each)
    assert all(len(same) == 1 for same in questions.values())
    parts = placed(found, rules)
    assert parts.keys() <= set(kept)
    texts, users = {}, {}
    for tip_id, part in parts.items():
        texts.setdefault(folded(by_id[tip_id]), set()).add(part)
        users.setdefault(by_id[tip_id].user_key, set()).add(part)
    assert all(len(places) == 1 for places in texts.values())
    if way == "user":
        assert all(len(places) == 1 for places in users.values())


def folded(each):
    return " ".join(each.tip.split()).casefold()


def test_a_split_by_time_trains_on_what_is_older_than_all_it_is_tested_on():
    found = [
        example(f"t{n:03}", f"tip {n}", user=f"u{n % 5}", at=n // 2, label=n % 2 == 0)
        for n in range(100)
    ]
    parts = placed(found, SMALL.model_copy(update={"split_by": "time", "split": (0.7, 0.2, 0.1)}))
    assert Counter(parts.values()) == {"train": 70, "validation": 20, "test": 10}
    ends = {
        part: [at for at, each in enumerate(found) if parts[each.tip_id] == part] for part in PARTS
    }
    assert (
        max(ends["train"]) < min(ends["validation"]) < max(ends["validation"]) < min(ends["test"])
    )
    together = [replace(each, created_at=START) for each in found]
    assert set(placed(together, SMALL.model_copy(update={"split_by": "time"})).values()) == {
        "train"
    }


def test_parts_have_their_shares_of_users_and_a_user_stays_as_data_grows():
    shares = Counter(part_of(f"user {n}", SMALL) for n in range(20_000))
    # Three standard deviations of a binomial share are 0.9 and 0.6 points.
    assert shares["train"] / 20_000 == pytest.approx(0.8, abs=0.009)
    assert shares["validation"] / 20_000 == pytest.approx(0.1, abs=0.0065)
    before, after = ({each.tip_id: each for each in many(count)} for count in (100, 400))
    homes = {after[tip].user_key: part for tip, part in placed(after.values()).items()}
    for tip, part in placed(before.values()).items():
        assert homes.get(before[tip].user_key, part) == part


def test_the_part_of_a_user_is_a_published_hash():
    place = int(hashlib.sha256(b"7:ann").hexdigest()[:16], 16) / 2**64
    settings_around = [
        SMALL.model_copy(update={"split": (place + shift, (1 - place - shift) / 2, 0.1)})
        for shift in (0.001, -0.001)
    ]
    assert [part_of("ann", each) for each in settings_around] == ["train", "validation"]


def test_files_hold_the_examples_and_nobody(tmp_path):
    found = many(400)
    result = build(batches_of(found), SMALL, folder=tmp_path)
    assert result.waiting is None
    assert sorted(result.files) == sorted(files_in(tmp_path))
    examples = read_examples(tmp_path)
    assert tip_ids(tmp_path) == {each.tip_id for part in PARTS for each in examples[part]}
    by_id = {each.tip_id: each for each in found}
    for part in PARTS:
        place = tmp_path if part == "train" else tmp_path / part
        assert all(by_id[each.tip_id] == each for each in examples[part])
        assert all(part_of(each.user_key, SMALL) == part for each in examples[part])
        assert rows_in(place / "alpaca.jsonl") == [
            {"instruction": each.instruction, "input": each.input, "output": each.tip}
            for each in examples[part]
            if each.label
        ]
        assert rows_in(place / "kto.jsonl") == [
            {"prompt": each.prompt, "completion": each.tip, "label": each.label}
            for each in examples[part]
        ]
        dpo = rows_in(place / "dpo.jsonl")
        assert dpo == list(dpo_rows(examples[part]))
        assert len(dpo) == result.pairs[part] == len(pairs(examples[part]))
        positives = sum(each.label for each in examples[part])
        assert result.parts[part].positives == positives
        assert result.parts[part].negatives == len(examples[part]) - positives
    assert len(tip_ids(tmp_path)) == result.counts.went_out
    assert result.counts.came_in - sum(result.counts.refused.values()) == result.counts.went_out
    assert (result.before.positives, result.before.negatives) == (
        sum(each.label for each in found),
        sum(not each.label for each in found),
    )


def test_no_exported_file_names_a_user_or_a_tip_id(tmp_path):
    found = [replace(each, user_key=f"{each.user_key:0>64}") for each in many(300)]
    build(batches_of(found), SMALL, folder=tmp_path)
    hidden = {each.user_key for each in found} | {each.tip_id for each in found}
    for name, content in files_in(tmp_path).items():
        if not name.endswith(".parquet"):
            assert not any(word.encode() in content for word in hidden), name


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6))
def test_the_same_rows_in_another_order_give_the_same_bytes(tmp_path_factory, seed):
    found = many(150, seed=seed)
    shuffled = random.Random(seed).sample(found, len(found))
    folders = [tmp_path_factory.mktemp("dataset") for _ in range(2)]
    one = build(batches_of(found), SMALL, folder=folders[0])
    two = build(batches_of(shuffled, 7), SMALL, folder=folders[1])
    assert one == two
    assert files_in(folders[0]) == files_in(folders[1])
    again = build(batches_of(found), SMALL, folder=folders[0])
    assert again == one
    assert files_in(folders[0]) == files_in(folders[1])


def test_the_fingerprint_changes_with_any_row_and_with_the_settings(tmp_path):
    found = many(400)

    def fingerprint(examples, rules=SMALL):
        return build(batches_of(examples), rules, folder=tmp_path).fingerprint

    first = fingerprint(found)
    held = build(batches_of(found), SMALL, folder=tmp_path)
    assert held.fingerprint == first
    some_id = min(tip_ids(tmp_path))
    changed = [replace(e, prompt="other") if e.tip_id == some_id else e for e in found]
    assert fingerprint(changed) != first
    assert fingerprint([e for e in found if e.tip_id != some_id]) != first
    assert fingerprint(found, SMALL.model_copy(update={"seed": 8})) != first


def test_too_few_labels_wait_and_nothing_but_the_card_is_written(tmp_path):
    found = [example(f"t{n}", f"tip {n}", label=n % 3 == 0, user=f"u{n}") for n in range(60)]
    rules = SMALL.model_copy(update={"min_positives": 500, "min_negatives": 40})
    result = build(batches_of(found), rules, folder=tmp_path)
    assert result.waiting == "waiting: 20 of 500 positives"
    rules = rules.model_copy(update={"min_negatives": 1_000})
    result = build(batches_of(found), rules, folder=tmp_path)
    assert result.waiting == "waiting: 20 of 500 positives, 40 of 1,000 negatives"
    assert set(files_in(tmp_path)) == WRITTEN == set(result.files)
    with pytest.raises(DataError, match=r"examples\.parquet"):
        read_examples(tmp_path)


def test_thresholds_count_what_duplicates_and_caps_leave(tmp_path):
    found = [example(f"p{n}", "the same tip", user=f"u{n}") for n in range(30)]
    found += [example(f"n{n}", f"bad {n}", user=f"v{n % 6}", label=False, at=n) for n in range(30)]
    rules = SMALL.model_copy(update={"min_positives": 2, "min_negatives": 7, "max_per_user": 1})
    result = build(batches_of(found), rules, folder=tmp_path)
    assert (result.before.positives, result.before.negatives) == (30, 30)
    assert result.waiting == "waiting: 1 of 2 positives, 6 of 7 negatives"


def test_a_later_run_waits_for_new_examples(tmp_path):
    found = many(400)
    first = build(batches_of(found), SMALL, folder=tmp_path / "1", previous=None)
    trained = tmp_path / "1" / EXAMPLES
    assert first.new == len(tip_ids(tmp_path / "1"))
    rules = SMALL.model_copy(update={"min_new": 3})
    more = [*found, *(example(f"x{n}", f"new tip number {n}", user=f"v{n}", at=20_000 + n)
                      for n in range(2))]  # fmt: skip
    second = build(batches_of(more), rules, folder=tmp_path / "2", previous=trained)
    assert second.waiting == "waiting: 2 of 3 new examples"
    enough = rules.model_copy(update={"min_new": 2})
    third = build(batches_of(more), enough, folder=tmp_path / "3", previous=trained)
    assert third.waiting is None
    assert third.counts.went_out == first.counts.went_out + 2


def test_repetitions_of_trained_tips_are_nothing_new(tmp_path):
    found = [each for each in many(400) if part_of(each.user_key, SMALL) == "train"]
    build(batches_of([*found, *held_out()]), SMALL, folder=tmp_path / "1")
    trained = tmp_path / "1" / EXAMPLES
    again = [replace(e, tip_id=f"again {e.tip_id}", created_at=e.created_at + timedelta(90))
             for e in found]  # fmt: skip
    second = build(
        batches_of([*found, *again, *held_out()]),
        SMALL.model_copy(update={"max_per_user": 500}),
        folder=tmp_path / "2",
        previous=trained,
    )
    assert second.new == 0


def held_out():
    users = {part_of(f"h{n}", SMALL): f"h{n}" for n in range(200)}
    return [
        example(f"{part}-{label}", f"{part} {label} held out tip", user=users[part], label=label)
        for part in ("validation", "test")
        for label in (True, False)
    ]


def test_a_part_without_both_labels_waits_for_users(tmp_path):
    found = [example(f"t{n}", f"tip {n}", label=n % 2 == 0, user="u1", at=n) for n in range(40)]
    result = build(batches_of(found), SMALL, folder=tmp_path)
    lacking = [part for part in PARTS if part != part_of("u1", SMALL)]
    assert result.waiting == "waiting: " + ", ".join(
        f"both labels in {part}, which takes more users" for part in lacking
    )


def test_a_tip_that_a_source_holds_twice_counts_once(tmp_path):
    user = next(name for n in range(200) if part_of(name := f"u{n}", SMALL) == "train")
    held = [
        example("a", "newer text", user=user, at=5),
        example("a", "older text", user=user),
        example("b", "dull text", user=user, label=False),
    ]
    result = build(batches_of([*held, *held_out()]), SMALL, folder=tmp_path)
    assert result.counts.refused["repeated tip_id"] == 1
    train = read_examples(tmp_path)["train"]
    assert [(each.tip_id, each.tip) for each in train] == [("a", "newer text"), ("b", "dull text")]
    (refused,) = pq.read_table(tmp_path / "refused.parquet").to_pylist()
    assert (refused["tip_id"], refused["reason"]) == ("a", "repeated tip_id")


def test_the_card_says_what_was_left_out_at_every_step(tmp_path):
    steps = {"labels": Counts(1_234, 400, {"no evidence": 800, "opted out": 34})}
    result = build(batches_of(many(400)), SMALL, folder=tmp_path, steps=steps)
    card = (tmp_path / "README.md").read_text()
    assert "| labels | 1,234 | 400 | no evidence | 800 |" in card
    assert "|  |  |  | opted out | 34 |" in card
    assert f"| exact duplicates | {result.counts.refused['exact duplicates']} |" in card
    assert result.fingerprint in card
    for name in ("reactions.svg", "refused.svg"):
        assert f"({name})" in card
        assert "<svg" in (tmp_path / name).read_text()


def test_nothing_at_all_waits(tmp_path):
    result = build([], DatasetConfig(), folder=tmp_path)
    assert result.waiting == "waiting: 0 of 500 positives, 0 of 500 negatives"


def test_progress_is_told_after_every_step(tmp_path):
    told = []
    build(batches_of(many(50)), SMALL, folder=tmp_path, progress=lambda s, n: told.append((s, n)))
    assert told[0] == ("labelled", 50)
    assert [step for step, _ in told][-2:] == ["split", "written"]
    left = [count for _, count in told]
    assert left == sorted(left, reverse=True)


PUBLISHED = PrivacyConfig(models={})  # headlines name public people


@pytest.fixture(scope="session")
def chat():
    return load_chat(base_model(ModelConfig()).folder, PromptConfig(), privacy=PUBLISHED)


def labelled(tip_id, user, context_json, tip, label, *, at=START, kind="focus"):
    return {
        "tip_id": tip_id,
        "user_key": user,
        "kind": kind,
        "context_json": context_json,
        "tip_content": tip,
        "source": "llm",
        "reaction": "done" if label else "dismiss",
        "dwell_ms": 30_000 if label else 2_000,
        "created_at": at,
        "label": label,
    }


def everything_written(folder):
    for file in (file for file in sorted(folder.rglob("*")) if file.is_file()):
        if file.suffix == ".parquet":
            yield json.dumps(pq.read_table(file).to_pylist(), default=str, ensure_ascii=False)
        else:
            yield file.read_bytes().decode("utf-8", "replace")


def test_planted_personal_data_is_in_no_written_file(tmp_path, chat):
    rng = random.Random(7)
    rows, secrets = [], set()
    for number in range(300):
        mail = f"person{number}@mail{number % 7}.example.org"
        phone = f"+49 30 {rng.randrange(10**7, 10**8)}"
        secrets |= {mail, phone, phone[3:]}
        context = {"open_tasks": [f"call {phone}"], "free_text": f"my mail is {mail}, thanks"}
        logged = {"v": 1, "context": context} if number % 2 else context
        tip = rng.choice([f"Mail {mail} about {number}.", f"Call {phone}, round {number}.",
                          f"Walk {number} steps.", f"Write to someone{number}@x.org."])  # fmt: skip
        rows.append(labelled(f"t{number}", f"u{number}", json.dumps(logged), tip, number % 3 > 0))
    result = clean([pa.RecordBatch.from_pylist(rows)], chat=chat, privacy=PUBLISHED)
    assert 0 < result.counts.went_out < 300
    write_batches(result.batches, tmp_path / "labelled.parquet")
    built = build(read_batches(tmp_path / "labelled.parquet"), SMALL, folder=tmp_path / "dataset")
    assert built.waiting is None
    written = "\n".join(everything_written(tmp_path))
    assert "<EMAIL_1>" in written
    assert [secret for secret in secrets if secret in written] == []
    assert "someone" not in written


@pytest.mark.skipif(not UPWORTHY.is_file(), reason="needs shared/data/upworthy")
def test_real_reactions_are_enough_for_a_first_training(tmp_path, chat):
    with gzip.open(UPWORTHY, "rt") as lines:
        scores = [json.loads(line) for line in lines]
    rows = [
        labelled(
            each["tip_id"], each["user_id"], each["context_json"], each["tip_content"],
            each["reaction"] == "done", at=datetime.fromisoformat(each["shown_at"]),
            kind=each["kind"],
        )
        for each in scores
    ]  # fmt: skip
    result = clean([pa.RecordBatch.from_pylist(rows)], chat=chat, privacy=PUBLISHED)
    assert result.counts.went_out == 2_020
    built = build(result.batches, DatasetConfig(), folder=tmp_path)
    assert built.waiting is None
    assert (built.before.positives, built.before.negatives) == (958, 1_062)
    assert min(built.after.positives, built.after.negatives) > 900
    assert all(min(labels.positives, labels.negatives) > 50 for labels in built.parts.values())
    assert built.pairs["train"] > 1_000


def labels(positives, negatives):
    return Labels(positives, negatives)


BOTH = dict.fromkeys(PARTS, labels(10, 10))


@pytest.mark.parametrize(
    ("after", "new", "is_first", "reason"),
    [
        (labels(500, 500), 0, True, None),
        (labels(499, 500), 0, True, "waiting: 499 of 500 positives"),
        (labels(500, 1), 0, True, "waiting: 1 of 500 negatives"),
        (labels(0, 0), 0, True, "waiting: 0 of 500 positives, 0 of 500 negatives"),
        (labels(500, 500), 199, False, "waiting: 199 of 200 new examples"),
        (labels(500, 500), 200, False, None),
        (
            labels(1_000, 0),
            5,
            False,
            "waiting: 0 of 500 negatives, 5 of 200 new examples",
        ),
    ],
)
def test_a_training_waits_for_each_threshold_that_is_not_reached(after, new, is_first, reason):
    waits = reason_to_wait(after, BOTH, DatasetConfig(), new=new, is_first=is_first)
    assert waits == reason


@pytest.mark.parametrize("part", PARTS)
def test_every_part_needs_both_labels(part):
    for lacking in (labels(0, 10), labels(10, 0)):
        parts = {**BOTH, part: lacking}
        waits = reason_to_wait(labels(500, 500), parts, DatasetConfig(), new=0, is_first=True)
        assert waits == f"waiting: both labels in {part}, which takes more users"


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (10, 40), (40, 10), (3, 7)])
def test_both_labels_weigh_the_same_in_sum(positives, negatives):
    weights = weights_of(labels(positives, negatives))
    assert weights["positive"] * positives == pytest.approx(weights["negative"] * negatives)
    assert min(weights.values()) == 1


def test_labels_that_are_missing_do_not_make_infinite_weights():
    assert weights_of(labels(0, 0)) == {"positive": 1, "negative": 1}
    assert weights_of(labels(0, 9)) == {"positive": 9, "negative": 1}


def test_the_kinds_with_most_reactions_are_pictured():
    dwell = {f"k{n}": ([n], [1]) for n in range(9)}
    assert list(most_reacted(dwell)) == ["k8", "k7", "k6", "k5", "k4", "k3"]
    assert list(most_reacted({"b": ([1], [1]), "a": ([2], [0])})) == ["a", "b"]
