"""The report of a reward model: how often it is right, what more data brings, what it goes by."""

from collections.abc import Mapping
from pathlib import Path

from reactune.pages import pictures
from reactune.pages.report import Report, write
from reactune.pages.tables import Figure, Picture, Section, Table
from reactune.reward.learn import Learned, Quality
from reactune.reward.quality import Accuracy
from reactune.tracking import rankings_picture

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
    """Write the report; `beside` are accuracies on held-out tips that the generator ranked too."""
    quality = learned.quality
    verdict = f"No reward model: {learned.reason}." if learned.model is None else learned.line()
    figures = (
        Figure("reactions read", f"{quality.reactions:,} of {quality.available:,}"),
        Figure("users", f"{quality.users:,}"),
        Figure("layers of the base model", _layers(learned)),
    )
    read = Section("What it learned from", figures=figures)
    write(Report("Reward model", verdict, [read, *_sections(quality, beside)]), file)


def _layers(learned: Learned) -> str:
    return ", ".join(map(str, learned.model.layers)) if learned.model else "none"


def _sections(quality: Quality, beside: Mapping[str, Accuracy]) -> list[Section]:
    if not quality.accuracies:
        return []
    curve = {f"{count:,}": each for count, each in sorted(quality.curve.items())}
    rising = [(count, *_values(each)) for count, each in sorted(quality.curve.items())]
    return [
        Section(
            "How often it is right",
            COMPARED.format(within=quality.within),
            pictures=(
                Picture(
                    rankings_picture(quality),
                    "How often each ranking is right on other users",
                    _table("rankings", "Rankings", "ranking", quality.accuracies),
                ),
            ),
        ),
        Section(
            "Beside the generator",
            "On held-out users, the same tips.",
            tables=(_table("beside", "On held-out users", "ranking", beside),),
        ),
        Section(
            "What more data brings",
            CURVE,
            pictures=(
                Picture(
                    pictures.curve("accuracy", "reactions learned from", rising),
                    "Accuracy by the number of reactions learned from",
                    _table("learning", "Learning curve", "reactions", curve),
                ),
            ),
        ),
        Section(
            "What it goes by",
            SEEN,
            tables=(
                Table(
                    "correlates",
                    "Rank correlation with the reward",
                    ("in the tip", "correlation"),
                    tuple((name, f"{value:+.2f}") for name, value in quality.correlates.items()),
                ),
            ),
        ),
    ]


def _table(name: str, title: str, of: str, accuracies: Mapping[str, Accuracy]) -> Table:
    rows = tuple((each, str(a.estimate), f"{a.pairs:,}") for each, a in accuracies.items())
    return Table(name, title, (of, "accuracy with 95 % interval", "pairs"), rows)


def _values(accuracy: Accuracy) -> tuple[float, float, float]:
    estimate = accuracy.estimate
    return estimate.value, estimate.low, estimate.high
