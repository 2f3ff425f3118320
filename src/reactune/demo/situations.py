"""What a tip can know of the demo's people: their situations, and the prompts made from them.

The demo's settings stand here because the prompts are part of them.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

Value = str | list[str] | dict[str, str | int]

KINDS = ("focus", "break", "health", "planning", "social")
SYSTEM = "You are a coach."
INSTRUCTIONS = {
    "focus": "Turn these notes into one short sentence of advice on how to focus.",
    "break": "Turn these notes into one short sentence of advice for a good break.",
    "health": "Turn these notes into one short sentence of advice for better health.",
    "planning": "Turn these notes into one short sentence of advice for a good plan.",
    "social": "Turn these notes into one short sentence of advice on how to see friends.",
}
CONTEXT_KEYS = ("time_of_day", "user_settings", "free_text", "open_tasks")
CUT_ORDER = ("free_text", "user_settings", "open_tasks", "time_of_day")
TASKS: dict[str, tuple[str, ...]] = {
    "student": (
        "write the history essay", "revise chapter {n} of biology", "return {n} library books",
        "email the professor about the lab", "print the seminar slides", "draft the thesis outline",
        "solve the calculus exercises", "pay the dormitory rent", "summarise {n} articles",
        "register for the spring courses", "prepare the group presentation",
        "learn {n}0 Spanish words",
        "hand in the lab report", "buy a new notebook", "apply for the summer internship",
        "clean the shared kitchen",
    ),
    "nurse": (
        "restock ward {n}", "fill in the shift report", "update {n} patient charts",
        "swap the Sunday shift", "order gloves and masks", "train the new colleague",
        "check the medicine cabinet", "book the flu vaccination", "wash the uniforms",
        "renew the locker key", "read the hygiene guideline", "call the pharmacy about insulin",
        "prepare the discharge papers", "sign the holiday request", "plan the night shifts",
        "clean the treatment room",
    ),
    "developer": (
        "review {n} pull requests", "fix the login bug", "write tests for the parser",
        "answer {n} support tickets", "plan the release", "clean up the wiki page",
        "update the database schema", "profile the slow query", "prepare the sprint demo",
        "delete the old servers", "interview a candidate", "write the migration guide",
        "upgrade the laptop", "document the payment service", "estimate {n} stories",
        "rename the config files",
    ),
    "teacher": (
        "grade 2{n} essays", "prepare the physics lesson", "call a parent back",
        "order lab goggles", "write the report cards", "plan the museum trip",
        "copy the worksheets", "set up the science fair", "read {n} book reports",
        "update the seating plan", "decorate the classroom", "design the spelling quiz",
        "meet the school nurse", "repair the projector", "collect the trip money",
        "choose songs for the choir",
    ),
    "parent": (
        "buy milk and bread", "book the dentist for the twins", "fold the laundry",
        "sign the school form", "bake the birthday cake", "repair the kids' bicycle",
        "pack {n} lunch boxes", "clean the fridge", "find a babysitter for Friday",
        "sort the old toys", "wrap the presents", "pay the electricity bill",
        "water the tomatoes", "assemble the bunk bed", "cook soup for dinner",
        "read the bedtime story",
    ),
    "freelancer": (
        "send {n} invoices", "edit the wedding photos", "call the new client",
        "finish the logo draft", "file the tax return", "update the portfolio",
        "back up the hard drive", "answer the accountant", "write the project proposal",
        "record the podcast intro", "scan {n} receipts", "book the train to Berlin",
        "renew the insurance", "learn the new camera", "pitch to the magazine",
        "clean the studio",
    ),
    "retiree": (
        "weed the garden", "call the grandchildren", "practise {n} piano pieces",
        "sort the photo albums", "visit the eye doctor", "water the roses",
        "repair the garden fence", "write a birthday card", "walk the neighbour's dog",
        "prepare the chess evening", "bring back the library books", "cook jam from the plums",
        "plan the hike to the lake", "clean the attic", "polish the old clock",
        "join the choir rehearsal",
    ),
    "shopkeeper": (
        "count the till", "order {n} boxes of apples", "clean the shop window",
        "update the price tags", "train the new cashier", "answer {n} customer emails",
        "repair the coffee machine", "arrange the cheese counter", "print the sale posters",
        "pay the suppliers", "plan the weekly roster", "sweep the storeroom",
        "call the delivery driver", "check the expiry dates", "bake {n} trays of rolls",
        "decorate for the street festival",
    ),
}  # fmt: skip
HOURS = {
    7: "early morning, 7 am", 8: "morning, 8 am", 9: "morning, 9 am", 10: "morning, 10 am",
    12: "noon, 12 pm", 13: "afternoon, 1 pm", 15: "afternoon, 3 pm", 17: "afternoon, 5 pm",
    18: "evening, 6 pm", 20: "evening, 8 pm", 22: "late evening, 10 pm",
}  # fmt: skip
GOALS = (
    "sleep more",
    "move more",
    "finish on time",
    "worry less",
    "see friends more",
    "eat better",
)
MINUTES = (5, 10, 15, 20, 30)
NOTES = (
    "bad sleep", "noisy office", "stiff back", "much to do", "no breakfast yet", "kids asleep",
    "late train", "sunny day", "busy phone", "tired eyes", "rain outside", "headache",
    "low battery", "quiet house", "sister in town", "old friend moved away",
)  # fmt: skip
MAILS = ("anna.berg@example.org", "t.okafor@example.com", "hotline@example.net")

SETTINGS = """# The demo: people of src/reactune/demo react to tips of a small base model.

[prompt]
system = {system}
# The tasks come last: a small model writes most about what it read last.
context_keys = {context_keys}
cut_order = {cut_order}
max_context_tokens = 128

[prompt.instructions]
{instructions}

[serve]
# A longer tip is too long to be liked.
max_tokens = 48
# Once there is a reward model, it chooses one of four texts.
candidates = 4
parallel = 8
# Another program may need the processor.
timeout_seconds = 120
champion_timeout_seconds = 120

[train]
# Two processor cores read some 300 tokens a second this way, or 800 in bfloat16: two to five
# minutes of KTO, and the rest of the time for the model's own tips.
preference_learning_rate = 3e-4
lora_layers = 12
token_budget = 80_000
time_budget_minutes = 8
checkpoint_steps = 20

[dataset]
# The gate needs users: two in ten are held out for it.
split = [0.7, 0.1, 0.2]

[gate]
max_examples = 400

[export]
parity_prompts = 12

[canary]
# Days of the demo stand for weeks: steps are taken, and the rollout ends, early.
min_days = 1
planned_units = 3000
min_units_per_step = 150
max_units = 3000
# The champion's tips come from a file; the challenger writes 32 texts at once for eight visits.
slow_ms = 120_000
"""


@dataclass(frozen=True)
class Situation:
    """A moment at which a person asks for one kind of tip; `hour` is local, 0-23."""

    role: str
    kind: str
    hour: int
    context: Mapping[str, Value]


def situations(count: int, *, seed: int) -> list[Situation]:
    """Draw `count` different situations, the same for the same seed; kinds and roles take turns."""
    draw = random.Random(seed)
    roles = tuple(TASKS)
    seen: set[str] = set()
    drawn: list[Situation] = []
    while len(drawn) < count:
        role = roles[len(drawn) // len(KINDS) % len(roles)]
        situation = _situation(draw, role, KINDS[len(drawn) % len(KINDS)])
        if (key := repr(situation)) not in seen:
            seen.add(key)
            drawn.append(situation)
    return drawn


def _situation(draw: random.Random, role: str, kind: str) -> Situation:
    hour = draw.choice(tuple(HOURS))
    tasks = [
        task.format(n=draw.randrange(2, 9))
        for task in draw.sample(TASKS[role], 3 if draw.random() < 0.3 else 2)
    ]
    if draw.random() < 0.03:
        tasks[-1] = f"write to {draw.choice(MAILS)}"
    context: dict[str, Value] = {
        "time_of_day": HOURS[hour],
        "user_settings": {"goal": draw.choice(GOALS), "minutes": draw.choice(MINUTES)},
        "open_tasks": tasks,
    }
    if draw.random() < 0.6:
        context["free_text"] = draw.choice(NOTES)
    return Situation(role=role, kind=kind, hour=hour, context=context)


def demo_settings() -> str:
    """The TOML text of the demo's settings; the pool was written with its prompts and length."""
    return SETTINGS.format(
        system=json.dumps(SYSTEM),
        context_keys=json.dumps(CONTEXT_KEYS),
        cut_order=json.dumps(CUT_ORDER),
        instructions="\n".join(f"{kind} = {json.dumps(ask)}" for kind, ask in INSTRUCTIONS.items()),
    )
