"""The report of a reward model: how often it is right, what more data brings, what it goes by."""

from collections.abc import Mapping
from pathlib import Path

from reactune.pages import pictures
from reactune.pages.report import Page, Section, write_report
from reactune.reward.learn import Learned, Quality
from reactune.reward.quality import Accuracy

COMPARED = (
    "Preference accuracy: of two tips of one {within}, one liked and one not, how often the liked "
    "one is ranked higher, by models that saw neither the user nor the text. 0.5 is chance."
)
CURVE = (
    "Accuracy by the number of reactions that a model learned from. Where it still rises, more "
    "reactions bring more."
)
SEEN = (
    "Rank correlation of the reward with what people can see in a tip, from -1 to 1. A large one "
    "says what the reward goes by; it says nothing of causes."
)


def write_reward_report(file: Path, learned: Learned, beside: Mapping[str, Accuracy]) -> None:
    """Write the page; `beside` are accuracies on held-out tips that the generator ranked too."""
    quality = learned.quality
    verdict = f"No reward model: {learned.reason}." if learned.model is None else learned.line()
    figures = {
        "reactions read": f"{quality.reactions:,} of {quality.available:,}",
        "users": f"{quality.users:,}",
        "layer": str(quality.layer or "none"),
    }
    write_report(Page("Reward model", verdict, figures, list(_sections(quality, beside))), file)


def _sections(quality: Quality, beside: Mapping[str, Accuracy]) -> list[Section]:
    if not quality.accuracies:
        return []
    head = ("ranking", "accuracy with 95 % interval", "pairs")
    rows = [
        (name, each.estimate.value, each.estimate.low, each.estimate.high)
        for name, each in quality.accuracies.items()
    ]
    picture = pictures.intervals("preference accuracy on other users", rows, reference=0.5)
    correlates = {name: f"{value:+.2f}" for name, value in quality.correlates.items()}
    return [
        Section(
            "How often it is right",
            COMPARED.format(within=quality.within),
            (pictures.draw(picture),),
            head,
            _table(quality.accuracies),
        ),
        Section(
            "Beside the generator", "On held-out users, the same tips.", (), head, _table(beside)
        ),
        Section(
            "What more data brings",
            CURVE,
            (),
            ("reactions", *head[1:]),
            _table({f"{count:,}": each for count, each in sorted(quality.curve.items())}),
        ),
        Section(
            "What it goes by", SEEN, (), ("in the tip", "correlation"), tuple(correlates.items())
        ),
    ]


def _table(accuracies: Mapping[str, Accuracy]) -> tuple[tuple[str, ...], ...]:
    return tuple((name, str(each.estimate), f"{each.pairs:,}") for name, each in accuracies.items())
