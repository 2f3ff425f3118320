"""Pictures, each one Vega-Lite specification; the same numbers give the same bytes.

`draw` makes SVG of a specification, `save` a file. Both need the extra `pages`, no browser and no
network.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from markupsafe import Markup

from reactune.errors import DataError
from reactune.records import replacing, write_atomically

Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
VL_VERSION = "5.21"
CHAMPION, CHALLENGER, OTHER = "#6b7280", "#2563eb", "#9ca3af"
COLOURS = {"champion": CHAMPION, "challenger": CHALLENGER, "tuned": CHALLENGER}
LIKED, DISLIKED, SNOOZED, NOTHING = "#2a7f62", "#c1443c", "#b7791f", "#c7ccd4"
INK, SOFT, GRID = "#374151", "#5b6472", "#e4e7eb"
SERIES = ("#2563eb", "#b7791f", "#2a7f62", "#c1443c", "#7c3aed", "#0e7490")
SECONDS_MARKED = (0.1, 0.5, 1, 2, 5, 15, 30, 60, 120, 300)
WIDTH, KEPT_DRAWINGS = 640, 128
THEMED = {
    CHAMPION: "champion", CHALLENGER: "challenger", OTHER: "other", LIKED: "liked",
    DISLIKED: "disliked", SNOOZED: "snoozed", NOTHING: "nothing", INK: "ink", SOFT: "soft",
    GRID: "grid",
}  # fmt: skip
"""Colours, and the names of the style sheet's variables for them, light and dark."""
_CONFIG: Spec = {
    "aria": False,
    "font": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": OTHER, "tickColor": OTHER, "gridColor": GRID, "labelColor": SOFT,
        "titleColor": SOFT, "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12,
        "labelLimit": 400,
    },
    "legend": {"labelColor": INK, "title": None, "orient": "top", "labelFontSize": 12},
    "header": {"labelColor": INK, "title": None, "labelAnchor": "start", "labelFontSize": 12},
}  # fmt: skip


def loss_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Spec:
    """Training loss by step, smoothed over a tenth of the steps, one line per method."""
    values: list[Spec] = []
    for name, curve in curves.items():
        losses, window = [loss for _, loss in curve], max(1, len(curve) // 10)
        for place, (step, loss) in enumerate(curve):
            recent = losses[max(0, place - window + 1) : place + 1]
            smooth = sum(recent) / len(recent)
            values.append({"step": step, "loss": loss, "smooth": smooth, "method": name})
    names = [name for name, curve in curves.items() if curve]
    colour = _colour("method", names, SERIES[: len(names)])
    x = {"field": "step", "type": "quantitative", "title": "optimiser step"}
    y = {"type": "quantitative", "title": "training loss", "scale": {"zero": False}}
    return _chart(
        values,
        layer=[
            _layer("line", x=x, y={**y, "field": "loss"}, color=colour, opacity=0.3),
            _layer("line", x=x, y={**y, "field": "smooth"}, color=colour, strokeWidth=2),
        ],
    )


def intervals(
    title: str, rows: Sequence[tuple[str, float, float, float]], *, reference: float | None = None
) -> Spec:
    """Estimates with their intervals, one row each: (name, value, low, high)."""
    names = [row[0] for row in rows]
    values = [dict(zip(("name", "value", "low", "high"), row, strict=True)) for row in rows]
    y = {"field": "name", "type": "nominal", "sort": names, "title": None}
    colour = {
        **_colour("name", names, [COLOURS.get(name, OTHER) for name in names]),
        "legend": None,
    }
    x = {"type": "quantitative", "title": title, "scale": {"zero": False}}
    layers = [
        _layer("rule", x={**x, "field": "low"}, x2={"field": "high"}, y=y, color=colour,
               strokeWidth=3),
        _layer("point", x={**x, "field": "value"}, y=y, color=colour, filled=True, size=90,
               mark_opacity=1),
    ]  # fmt: skip
    if reference is not None:
        layers.append(_rule(x={"datum": reference}))
    return _chart(values, layer=layers, height=max(1, len(rows)) * 30)


def plans(title: str, rows: Sequence[tuple[str, float, float]]) -> Spec:
    """Bars of (name, likely, most)."""
    values = [
        {"name": name, "length": length, "which": which}
        for name, likely, most in rows
        for which, length in (("at most", most), ("likely", likely))
    ]
    y = {"field": "name", "type": "nominal", "sort": [row[0] for row in rows], "title": None}
    x = {"field": "length", "type": "quantitative", "title": title, "stack": None}
    colour = _colour("which", ["likely", "at most"], [CHALLENGER, "#bfdbfe"])
    return _chart(values, **_layer("bar", x=x, y=y, color=colour), height=len(rows) * 30)


def bounds(
    at: Sequence[float] | Sequence[datetime],
    estimate: Sequence[float | None],
    low: Sequence[float | None],
    high: Sequence[float | None],
    *,
    share_steps: Sequence[tuple[float, float]] = (),
) -> Spec:
    """Challenger minus champion with anytime-valid bounds, by units or by time.

    Infinite bounds are None or cut off at the edge; dotted lines where the share grew.
    """
    rows = list(zip(at, estimate, low, high, strict=True))
    limit = _limit(rows)
    values = [
        {
            "at": when.isoformat() if isinstance(when, datetime) else when,
            "estimate": _within(value, limit),
            "low": _within(-1.0 if lower is None else lower, limit),
            "high": _within(1.0 if upper is None else upper, limit),
        }
        for when, value, lower, upper in rows
        if value is not None
    ]
    is_time = bool(rows) and isinstance(rows[0][0], datetime)
    x: Spec = {"field": "at", "type": "quantitative", "title": "units observed"}
    if is_time:
        axis = {"format": "%d %b", "tickCount": "day", "labelOverlap": "greedy"}
        x = {"field": "at", "type": "temporal", "title": None, "scale": {"type": "utc"}}
        x["axis"] = axis
    y = {
        "type": "quantitative",
        "title": "difference in positives per tip",
        "scale": {"domain": [-limit, limit]},
        "axis": {"format": "+.0%" if limit > 0.05 else "+.1%"},
    }
    blue = {"value": CHALLENGER}
    layers = [
        _layer("area", x=x, y={**y, "field": "low"}, y2={"field": "high"}, color=blue,
               interpolate="step-after", mark_opacity=0.18),
        _layer("line", x=x, y={**y, "field": "estimate"}, color=blue, strokeWidth=2),
        _rule(y={"datum": 0}),
    ]  # fmt: skip
    across, ink = {"field": "at", "type": "quantitative"}, {"value": INK}
    for place, share in share_steps:
        layers.append({**_rule(x={"datum": place}), **_one(place, share)})
        text = {"field": "share"}
        layer = _layer("text", x=across, y={"value": 8}, text=text, color=ink, align="left", dx=4)
        layers.append({**layer, **_one(place, share)})
    return _chart(values, layer=layers, height=230)


def arms(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Spec:
    """Positives per tip of each arm so far, by units observed."""
    values = [
        {"units": units, "rate": rate, "arm": name}
        for name, curve in curves.items()
        for units, rate in curve
    ]
    x = {"field": "units", "type": "quantitative", "title": "units observed"}
    y = {"field": "rate", "type": "quantitative", "title": "positives per tip, so far"}
    names = [name for name, curve in curves.items() if curve]
    colour = _colour("arm", names, [COLOURS.get(name, OTHER) for name in names])
    return _chart(values, **_layer("line", x=x, y=y, color=colour, strokeWidth=2))


def bars(title: str, values: Mapping[str, float]) -> Spec:
    """A horizontal bar for each name."""
    rows = [{"name": name, "value": value} for name, value in values.items()]
    y = {"field": "name", "type": "nominal", "sort": list(values), "title": None}
    x = {"field": "value", "type": "quantitative", "title": title}
    colour = _colour("name", list(values), [COLOURS.get(name, OTHER) for name in values])
    layer = _layer("bar", x=x, y=y, color={**colour, "legend": None})
    return _chart(rows, **layer, height=max(1, len(values)) * 28)


def dwell_times(
    kinds: Mapping[str, tuple[Sequence[int], Sequence[int]]], seconds: tuple[float, float]
) -> Spec:
    """Positives and negatives of each kind by dwell time, in bins of equal ratio.

    The bins go from the first to the second of `seconds`; they hold counts.
    """
    values = []
    for kind, (liked, disliked) in kinds.items():
        ratio = (seconds[1] / seconds[0]) ** (1 / len(liked))
        edges = [seconds[0] * ratio**place for place in range(len(liked) + 1)]
        for place, counts in enumerate(zip(liked, disliked, strict=True)):
            values += [
                {"kind": kind, "from": edges[place], "to": edges[place + 1], "what": what,
                 "low": low, "high": high}
                for what, low, high in (
                    ("done", 0, counts[0]), ("dismissed", counts[0], sum(counts))
                )
                if high > low
            ]  # fmt: skip
    marked = [mark for mark in SECONDS_MARKED if seconds[0] <= mark <= seconds[1]]
    x = {
        "field": "from",
        "type": "quantitative",
        "title": "dwell time in seconds",
        "scale": {"type": "log", "domain": list(seconds)},
        "axis": {"values": marked, "grid": False, "format": "~g"},
    }
    y = {"field": "low", "type": "quantitative", "title": "tips"}
    colour = _colour("what", ["done", "dismissed"], [LIKED, DISLIKED])
    layer = _layer("rect", x=x, x2={"field": "to"}, y=y, y2={"field": "high"}, color=colour)
    layer["encoding"]["row"] = {"field": "kind", "type": "nominal", "sort": list(kinds)}
    return {
        **_chart(values, **layer, height=100),
        "resolve": {"scale": {"y": "independent"}},
    }


def days(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Shown tips of each day by what became of them: rows of `day`, `what` and `tips`."""
    order = ("done", "snoozed", "dismissed", "no reaction")
    places = {name: place for place, name in enumerate(order)}
    values = [{**row, "place": places[row["what"]]} for row in rows]
    x = {"field": "day", "type": "ordinal", "title": None, "axis": {"labelAngle": 0,
         "labelOverlap": True, "labelExpr": "substring(datum.label, 8, 10) + '.' + "
         "substring(datum.label, 5, 7) + '.'", "grid": False}}  # fmt: skip
    y = {"field": "tips", "type": "quantitative", "title": "tips shown", "stack": "zero"}
    colour = _colour("what", list(order), [LIKED, SNOOZED, DISLIKED, NOTHING])
    layer = _layer("bar", x=x, y=y, color=colour)
    layer["encoding"]["order"] = {"field": "place", "type": "quantitative"}
    return _chart(values, **layer, height=190)


def dwell_bins(
    rows: Sequence[Mapping[str, Any]], order: Sequence[str], zones: Mapping[str, Sequence[str]]
) -> Spec:
    """Reactions by bins of dwell time: rows of `bin`, `what` and `tips`.

    `zones` names the bins whose reactions become labels; they are shaded.
    """
    shades = [{"bin": each, "zone": name} for name, bins in zones.items() for each in bins]
    x = {
        "field": "bin",
        "type": "ordinal",
        "scale": {"domain": list(order)},
        "title": "dwell time in seconds",
        "axis": {"labelAngle": -40, "grid": False},
    }
    y = {"field": "tips", "type": "quantitative", "title": "tips", "stack": "zero"}
    colours = {"done": LIKED, "snoozed": SNOOZED, "dismissed": DISLIKED}
    colour = _colour("what", list(colours), list(colours.values()))
    shade = _colour("zone", list(zones), [LIKED, DISLIKED])
    back = _layer("rect", x=x, color={**shade, "legend": None}, mark_opacity=0.14)
    return {
        **_chart(
            rows,
            layer=[
                {**back, "data": {"values": shades}},
                _layer("bar", x=x, y=y, color=colour),
            ],
            height=190,
        ),
        "resolve": {"scale": {"color": "independent"}},
    }


def curve(title: str, x_title: str, rows: Sequence[tuple[float, float, float, float]]) -> Spec:
    """Estimates with their intervals along a quantity: (x, value, low, high)."""
    values = [dict(zip(("x", "value", "low", "high"), row, strict=True)) for row in rows]
    x = {"field": "x", "type": "quantitative", "title": x_title, "scale": {"zero": False}}
    y = {"type": "quantitative", "title": title, "scale": {"zero": False}}
    low, high, blue = {**y, "field": "low"}, {"field": "high"}, {"value": CHALLENGER}
    return _chart(
        values,
        layer=[
            _layer("area", x=x, y=low, y2=high, color=blue, mark_opacity=0.18),
            _layer("line", x=x, y={**y, "field": "value"}, color=blue, strokeWidth=2, point=True),
        ],
    )


def is_installed() -> bool:
    """Whether pictures can be drawn here."""
    return find_spec("vl_convert") is not None


def draw(spec: Spec) -> str:
    """The picture as an SVG document on white.

    Raises:
        ModuleNotFoundError: the extra `pages` is not installed.
    """
    return _drawn(json.dumps({**spec, "background": "white"}))


def get_ready() -> None:
    """Start what draws, so that the first page need not wait for it; quick the second time."""
    if is_installed():
        draw(bars("", {}))


def inline(spec: Spec) -> Markup | None:
    """The picture as SVG to stand in a page, in the colours of its style sheet.

    None where the extra `pages` is not installed: then the table beside it stands alone.
    """
    if not is_installed():
        return None
    svg = themed(_drawn(json.dumps({**spec, "background": None})))
    return Markup(svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))


def themed(svg: str) -> str:
    """A picture of `draw` in the colours of the style sheet, light and dark, on no ground."""
    for colour, name in THEMED.items():
        svg = svg.replace(f'"{colour}"', f'"var(--{name})"')
    return svg.replace('fill="white"', 'fill="none"', 1)


def save(spec: Spec, file: Path) -> None:
    """Write the picture to an SVG or PNG file, by its ending.

    Raises:
        DataError: the file has another ending.
        ModuleNotFoundError: the extra `pages` is not installed.
    """
    check_ending(file)
    if file.suffix.lower() == ".svg":
        write_atomically(file, draw(spec))
        return
    import vl_convert

    text = json.dumps({**spec, "background": "white"})
    picture = vl_convert.vegalite_to_png(text, vl_version=VL_VERSION, scale=2)
    with replacing(file) as partial:
        partial.write_bytes(picture)


def check_ending(file: Path) -> None:
    """Check that a file's name ends in .svg or .png.

    Raises:
        DataError: it does not.
    """
    if file.suffix.lower() not in (".svg", ".png"):
        raise DataError(f"cannot write a picture to {file}: its name must end in .svg or .png")


@lru_cache(KEPT_DRAWINGS)
def _drawn(spec: str) -> str:
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec, vl_version=VL_VERSION))


def _chart(values: Sequence[Mapping[str, Any]], *, height: int = 200, **parts: Any) -> Spec:
    base = {"$schema": SCHEMA, "width": WIDTH, "height": height, "config": _CONFIG}
    return {**base, "data": {"values": list(values)}, **parts}


def _layer(mark: str, *, mark_opacity: float | None = None, **parts: Any) -> Spec:
    """A mark with its encoding; parts that are no encoding are properties of the mark."""
    channels = ("x", "x2", "y", "y2", "color", "text")
    encoding = {name: value for name, value in parts.items() if name in channels}
    style = {name: value for name, value in parts.items() if name not in channels}
    if mark_opacity is not None:
        style["opacity"] = mark_opacity
    return {"mark": {"type": mark, **style}, "encoding": encoding}


def _rule(**encoding: Any) -> Spec:
    mark = {"type": "rule", "color": OTHER, "strokeDash": [3, 3]}
    return {"mark": mark, "encoding": encoding}


def _one(place: float, share: float) -> Spec:
    return {"data": {"values": [{"at": place, "share": f"{share:.0%}"}]}}


def _colour(field: str, names: Sequence[str], colours: Sequence[str]) -> Spec:
    scale = {"domain": list(names), "range": list(colours)}
    return {"field": field, "type": "nominal", "scale": scale}


def _limit(rows: Sequence[tuple[Any, float | None, float | None, float | None]]) -> float:
    """The end of an axis on which the last three quarters of the bounds can be read."""
    known = [
        max(abs(low), abs(high))
        for _, _, low, high in rows
        if low is not None and high is not None and max(abs(low), abs(high)) <= 1
    ]
    late = known[len(known) // 4 :]
    return min(1.0, max(0.02, 1.1 * max(late, default=1.0)))


def _within(value: float | None, limit: float) -> float | None:
    return None if value is None else max(-limit, min(limit, value))
