"""The built-in audience of the demo, and tips that it likes."""

from reactune.config.sections import LabelConfig
from reactune.demo.audience import Town
from reactune.demo.pool import read_pool
from reactune.demo.situations import situations
from reactune.store.labels import label_rule

LABELS = LabelConfig()
WORLD = situations(1_200, seed=5)


def town(seed=1, tastes="default"):
    return Town(seed, tastes, situations=WORLD)


def days(audience):
    return [visit for day in range(3) for visit in audience.visits(day)]


def good_tip(visit):
    """What somebody who knows the tastes would write."""
    task = visit.context["open_tasks"][0]
    minutes = visit.context["user_settings"]["minutes"]
    return {
        "focus": f"Set a timer for {minutes} minutes and {task} before you check your phone.",
        "break": f"Take a {minutes} minute walk outside and breathe, then {task}.",
        "health": f"Drink a glass of water and stretch for {minutes} minutes before you {task}.",
        "planning": f"List what comes first, then {task} for {minutes} minutes and stop.",
        "social": f"Call a friend for {minutes} minutes after you {task}.",
    }[visit.kind]


def base_tips():
    """The pool's tip for a visit."""
    by_situation = {
        (tip.situation.kind, repr(tip.situation.context)): tip.text for tip in read_pool().tips
    }
    return lambda visit: by_situation[visit.kind, repr(visit.context)]


def label_of(response, labels):
    """Whether a response to a model's tip is a positive, and whether it is a negative."""
    rule, reaction = label_rule(labels), (response.reaction, response.dwell_ms)
    return rule.positive.includes(*reaction), rule.negative.includes(*reaction)
