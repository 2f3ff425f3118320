"""Plots of reactions, losses, estimates and bounds; the same numbers give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reactune.errors import DataError
from reactune.records import write_atomically

COLOURS = {"champion": "#6b7280", "challenger": "#2563eb", "tuned": "#2563eb"}
OTHER = "#9ca3af"
LIKED, DISLIKED = "#2a7f62", "#c1443c"
SECONDS_MARKED = (0.1, 0.5, 1, 2, 5, 15, 30, 60, 120, 300)


def loss_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Training loss by step, smoothed over a tenth of the steps, one line per method."""
    figure, axes = _figure(6.4, 3.2)
    for name, curve in curves.items():
        if not curve:
            continue
        steps, losses = zip(*curve, strict=True)
        axes.plot(steps, losses, alpha=0.25, linewidth=1)
        window = max(1, len(losses) // 10)
        smooth = [
            sum(losses[max(0, i - window + 1) : i + 1]) / (i - max(0, i - window + 1) + 1)
            for i in range(len(losses))
        ]
        axes.plot(steps, smooth, label=name, color=axes.lines[-1].get_color())
    axes.set(xlabel="optimiser step", ylabel="training loss")
    return _with_legend(figure, axes)


def intervals(
    title: str, rows: Sequence[tuple[str, float, float, float]], *, reference: float | None = None
) -> str:
    """Estimates with their intervals, one row each: (name, value, low, high)."""
    return _svg(_intervals(title, rows, reference))


def save_intervals(
    file: Path,
    title: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    reference: float | None = None,
) -> None:
    """As `intervals`, written to an SVG or PNG file, by its ending.

    Raises:
        DataError: the file has another ending.
    """
    check_ending(file)
    _save(_intervals(title, rows, reference), file)


def save_plans(file: Path, title: str, rows: Sequence[tuple[str, float, float]]) -> None:
    """Bars of (name, likely, most), written to an SVG or PNG file, by its ending.

    Raises:
        DataError: the file has another ending.
    """
    check_ending(file)
    figure, axes = _figure(6.4, 0.9 + 0.42 * len(rows))
    names = [row[0] for row in reversed(rows)]
    axes.barh(names, [row[2] for row in reversed(rows)], color="#bfdbfe", label="at most")
    axes.barh(
        names, [row[1] for row in reversed(rows)], color=COLOURS["challenger"], label="likely"
    )
    axes.set_xlabel(title)
    axes.legend(frameon=False)
    _save(figure, file)


def check_ending(file: Path) -> None:
    """Check that a file's name ends in .svg or .png.

    Raises:
        DataError: it does not.
    """
    if file.suffix.lower() not in (".svg", ".png"):
        raise DataError(f"cannot write a picture to {file}: its name must end in .svg or .png")


def bounds(
    units: Sequence[float],
    estimate: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    share_steps: Sequence[tuple[float, float]] = (),
) -> str:
    """Challenger minus champion with anytime-valid bounds; dotted lines where the share grew."""
    figure, axes = _figure(6.4, 3.2)
    axes.fill_between(units, low, high, alpha=0.2, color=COLOURS["challenger"], linewidth=0)
    axes.plot(units, estimate, color=COLOURS["challenger"])
    axes.axhline(0, color=OTHER, linewidth=1)
    axes.set(xlabel="units observed", ylabel="difference in positives per tip", ylim=(-1, 1))
    for at, share in share_steps:
        axes.axvline(at, color=OTHER, linewidth=1, linestyle=":")
        axes.text(at, 0.92, f" {share:.0%}", fontsize=8, color="#374151")
    return _svg(figure)


def arms(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Positives per tip of each arm so far, by units observed."""
    figure, axes = _figure(6.4, 2.8)
    for name, curve in curves.items():
        if curve:
            units, rates = zip(*curve, strict=True)
            axes.plot(units, rates, color=COLOURS.get(name, OTHER), label=name)
    axes.set(xlabel="units observed", ylabel="positives per tip, so far", ylim=(0, None))
    return _with_legend(figure, axes)


def bars(title: str, values: Mapping[str, float]) -> str:
    """A horizontal bar for each name."""
    figure, axes = _figure(6.4, 0.9 + 0.38 * len(values))
    names = list(values)[::-1]
    axes.barh(names, [values[name] for name in names], color=[COLOURS.get(n, OTHER) for n in names])
    axes.set_xlabel(title)
    return _svg(figure)


def dwell_times(
    kinds: Mapping[str, tuple[Sequence[int], Sequence[int]]], seconds: tuple[float, float]
) -> str:
    """Positives and negatives of each kind by dwell time, in bins of equal ratio.

    The bins go from the first to the second of `seconds`; they hold counts.
    """
    from matplotlib.figure import Figure

    rows = max(1, len(kinds))
    figure = Figure(figsize=(6.4, 0.8 + 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (kind, (liked, disliked)) in zip(axes, kinds.items(), strict=False):
        ratio = (seconds[1] / seconds[0]) ** (1 / len(liked))
        edges = [seconds[0] * ratio**place for place in range(len(liked) + 1)]
        both = [one + other for one, other in zip(liked, disliked, strict=True)]
        axis.stairs(both, edges, fill=True, color=DISLIKED, label="dismissed")
        axis.stairs(liked, edges, fill=True, color=LIKED, label="done")
        axis.set_title(kind.replace("$", r"\$"), loc="left", fontsize=10)
        axis.set_ylabel("tips")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xscale("log")
    axes[0].set_xticks(SECONDS_MARKED, [f"{mark:g}" for mark in SECONDS_MARKED])
    axes[0].minorticks_off()
    axes[-1].set_xlabel("dwell time in seconds")
    return _with_legend(figure, axes[0])


def _intervals(
    title: str, rows: Sequence[tuple[str, float, float, float]], reference: float | None
) -> Any:
    figure, axes = _figure(6.4, 0.9 + 0.42 * len(rows))
    for place, (name, value, low, high) in enumerate(reversed(rows)):
        colour = COLOURS.get(name, OTHER)
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o", color=colour)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set(xlabel=title, ylim=(-0.6, len(rows) - 0.4))
    if reference is not None:
        axes.axvline(reference, color=OTHER, linewidth=1, linestyle=":")
    return figure


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _with_legend(figure: Any, axes: Any) -> str:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return _svg(figure)


def _save(figure: Any, file: Path) -> None:
    if file.suffix.lower() == ".png":
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
        return
    write_atomically(file, _svg(figure))


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Without a fixed salt and with a date, the same numbers would give other bytes.
    with rc_context({"svg.hashsalt": "reactune", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
