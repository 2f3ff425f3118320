"""Pairs of a model's own tips, on made-up rewards."""

from hypothesis import given
from hypothesis import strategies as st

from reactune.generation.on_policy import Ranked, best_against_worst
from reactune.generation.samples import Sample
from reactune.records import Prompt


def prompt(number):
    return Prompt("break", "{}", f"prompt {number}", (number,))


def ranked(text, reward, *, low=None, logprob=-1.0):
    return Ranked(Sample(text, logprob), reward, reward - 0.1 if low is None else low)


def chosen(some, *, liked=()):
    found = best_against_worst([prompt(n) for n in range(len(some))], some, liked=liked)
    return [(each.best.text, each.worst.text) for each in found]


def test_the_best_by_the_lower_bound_meets_the_worst_by_the_reward():
    tips = [
        ranked("sure", 1.0, low=0.9),
        ranked("daring", 2.0, low=0.2),
        ranked("worst", -1.0, low=-1.1),
        ranked("unsure", -0.5, low=-3.0),
    ]
    assert chosen([tips]) == [("sure", "worst")]


def test_pairs_below_the_median_margin_are_left_out():
    some = [[ranked(f"good {n}", n), ranked(f"bad {n}", 0.0)] for n in (1.0, 2.0, 3.0)]
    assert chosen(some) == [("good 2.0", "bad 2.0"), ("good 3.0", "bad 3.0")]


def test_an_improbable_text_is_no_best_tip_but_may_be_the_worst():
    usual = [ranked(f"usual {n}", float(n)) for n in range(18)]
    odd = [ranked("odd and rewarded", 99.0, logprob=-9.0), ranked("odd", -9.0, logprob=-8.0)]
    assert chosen([[*usual, *odd]]) == [("usual 17", "odd")]


def test_a_near_copy_of_a_liked_tip_teaches_nothing_new():
    tips = [
        ranked("Drink a glass of water before your call.", 3.0),
        ranked("Stretch your neck for a minute.", 2.0),
        ranked("No.", 0.0),
    ]
    liked = ["Drink a glass of water, before your call"]
    assert chosen([tips], liked=liked) == [("Stretch your neck for a minute.", "No.")]
    assert chosen([tips[:1]], liked=liked) == []


def test_one_tip_none_and_equal_rewards_give_no_pair():
    assert chosen([]) == []
    assert chosen([[], [ranked("alone", 1.0)], [ranked("a", 1.0), ranked("b", 1.0)]]) == []


@given(st.lists(st.lists(st.floats(-3, 3), max_size=5), max_size=8))
def test_every_pair_is_of_one_prompt_and_its_margin_is_what_the_rewards_say(rewards):
    some = [[ranked(f"{n} {i}", r) for i, r in enumerate(row)] for n, row in enumerate(rewards)]
    prompts = [prompt(n) for n in range(len(some))]
    by_text = {each.sample.text: each.reward for row in some for each in row}
    for pair in best_against_worst(prompts, some, liked=[]):
        assert (
            pair.best.text.split()[0] == pair.worst.text.split()[0] == pair.prompt.text.split()[1]
        )
        assert pair.margin == by_text[pair.best.text] - by_text[pair.worst.text] > 0
