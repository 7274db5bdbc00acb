"""Charts as inline SVG: text stays text, colours are CSS variables of the page, the same facts give the same bytes.

matplotlib draws with stand-in colours, each of which becomes `var(--…)`, so that one drawing serves light and dark
pages and print. A contestant has the same colour in every chart, by its place in the ranking; from the ninth on they
share a muted one, and every line and point carries its name.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import matplotlib
from matplotlib import font_manager, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rnn_lab.report.facts import Curve, Noise, Published, Report, Standing

COLOURS = 8
WIDTH = 4.7
_INK, _FAINT, _GRID, _MUTED, _BACK = "#00000a", "#00000b", "#00000c", "#00000d", "#00000e"
_VARIABLES = {_INK: "ink", _FAINT: "faint", _GRID: "grid", _MUTED: "muted", _BACK: "back"} | {
    f"#0000f{i}": f"c{i + 1}" for i in range(COLOURS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 8.5,
    "axes.edgecolor": _GRID, "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK, "text.color": _INK, "xtick.color": _GRID, "ytick.color": _GRID,
    "xtick.labelcolor": _FAINT, "ytick.labelcolor": _FAINT, "grid.color": _GRID, "axes.spines.top": False,
    "axes.spines.right": False, "grid.linewidth": 0.5, "axes.linewidth": 0.7, "axes.axisbelow": True,
    "xtick.major.size": 0.0, "ytick.major.size": 0.0, "xtick.minor.size": 0.0, "ytick.minor.size": 0.0,
    "path.simplify": False, "font.family": "DejaVu Sans", "lines.solid_capstyle": "round",
}  # fmt: skip
_AXIS_NAMES = {
    "steps": "optimizer steps", "tokens": "bytes trained on", "flops": "training FLOPs",
    "seconds": "seconds of the training clock",
}  # fmt: skip
_LOSS = "nats per byte"
_SIGN = 0.018
"""Width of a sign in a name, as a share of the frame's."""
_LONGEST = 24


class Labelled(Protocol):
    """What has a name in tables, and by its place a colour."""

    @property
    def label(self) -> str:
        """Name."""


def charts(report: Report) -> dict[str, str]:
    """Every chart that the facts have something for, by name, as SVG elements."""
    drawn: dict[str, str] = {}
    standings = report.standings
    if standings:
        drawn["ranking"] = _svg("ranking", _height(len(standings)), lambda axes: _ranking(axes, report))
    if any(one.tokens_per_s for one in standings):
        drawn["front"] = _svg("front", 3.3, lambda axes: _front(axes, standings, report.metric))
    drawn |= loss_curves(report.curves, standings)
    pairs = [row for row in report.published if row.loss is not None and row.our_loss is not None]
    if pairs:
        drawn["published"] = _svg("published", 3.6, lambda axes: _beside(axes, pairs, standings))
    return drawn


def loss_curves(curves: Sequence[Curve], labels: Sequence[Labelled]) -> dict[str, str]:
    """Loss along each axis of `curves`, by axis; `labels` in the order of their colours."""
    return {
        axis: _svg(axis, 3.1, lambda axes, axis=axis: _curves(axes, [c for c in curves if c.axis == axis], labels))  # type: ignore[misc]
        for axis in dict.fromkeys(curve.axis for curve in curves)
    }


def versions() -> dict[str, str]:
    """What the bytes of a chart depend on."""
    return {"matplotlib": matplotlib.__version__}


def _height(rows: int) -> float:
    return max(1.6, 0.75 + 0.24 * rows)


def _svg(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """One chart as an `svg` element without size, namespace or ids that another chart could have."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The page's fonts draw the text; the one that measures it here need not have every sign.
        warnings.filterwarnings("ignore", r"(?s).*[Gg]lyph.*", UserWarning)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        out = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(out, metadata={"Date": None, "Creator": None})
    body = out.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = (
        re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", body.partition(">")[0])
        + ">"
        + (body.partition(">")[2])
    )
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1inherit", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return body.replace("<svg", f'<svg role="img" aria-labelledby="title-{name}"', 1).strip()


def colour_of(label: str | None, standings: Sequence[Labelled]) -> str:
    """Name of the CSS variable of a contestant's colour."""
    place = next((i for i, one in enumerate(standings) if one.label == label), COLOURS)
    return f"c{place + 1}" if place < COLOURS else "muted"


def _colour(label: str | None, standings: Sequence[Labelled]) -> str:
    wanted = colour_of(label, standings)
    return next(colour for colour, variable in _VARIABLES.items() if variable == wanted)


def _ranking(axes: Axes, report: Report) -> None:
    """Points with intervals, best on top; lines part the groups, a band shows the noise floor around the best."""
    rows = report.standings
    noise: Noise | None = report.noise
    if noise is not None:
        axes.axvspan(rows[0].loss.value, rows[0].loss.value + noise.floor, color=_GRID, alpha=0.55, linewidth=0)
    for place, one in enumerate(rows):
        colour = _colour(one.label, rows)
        if one.loss.low is not None and one.loss.high is not None:
            axes.plot([one.loss.low, one.loss.high], [place, place], color=colour, linewidth=2.0, alpha=0.55)
        axes.plot([one.loss.value], [place], "o", color=colour, markersize=5.5)
        if place and one.group != rows[place - 1].group:
            axes.axhline(place - 0.5, color=_FAINT, linewidth=0.7, linestyle=(0, (1, 2)))
    axes.set_yticks(range(len(rows)), [_measured(_short(one.label)) for one in rows])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    values = [one.loss.value for one in rows]
    reach = max(values[-1] - values[0], 0.004 * values[0])
    axes.set_xlim(values[0] - 0.3 * reach, values[-1] + 0.3 * reach)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{report.metric}, {_LOSS}")
    figure = axes.get_figure(root=True)
    if figure is not None and any(_measured(one.label) != one.label for one in rows):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the room for the names has been made
        axes.set_yticks(range(len(rows)), [_short(one.label) for one in rows])


def _front(axes: Axes, standings: Sequence[Standing], metric: str) -> None:
    """Loss against throughput; the line joins contestants that nobody beats in both."""
    known = [(one, one.tokens_per_s.value) for one in standings if one.tokens_per_s]
    front = sorted((speed, one.loss.value) for one, speed in known if one.on_front)
    axes.set_xscale("log")
    axes.plot([x for x, _ in front], [y for _, y in front], color=_FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
    for one, speed in known:
        colour = _colour(one.label, standings)
        if one.loss.low is not None and one.loss.high is not None:
            axes.plot([speed, speed], [one.loss.low, one.loss.high], color=colour, linewidth=1.6, alpha=0.5)
        axes.plot(
            [speed], [one.loss.value], "o", markersize=6, color=colour, markeredgewidth=1.4,
            markerfacecolor=colour if one.on_front else _BACK,
        )  # fmt: skip
    _log_ticks(axes)
    losses = [one.loss.value for one, _ in known]
    reach = max(max(losses) - min(losses), 0.004 * losses[0])
    axes.set_ylim(min(losses) - 0.25 * reach, max(losses) + 0.25 * reach)
    speeds = [speed for _, speed in known]
    ratio = max(max(speeds) / min(speeds), 1.5)
    axes.set_xlim(min(speeds) * ratio**-0.12, max(speeds) * ratio ** max(0.3, _room([one.label for one, _ in known])))
    axes.grid()
    axes.set_xlabel("bytes per second, training (log)")
    axes.set_ylabel(f"{metric}, {_LOSS}")
    _name_points(axes, [(speed, one.loss.value, one.label) for one, speed in known], standings)


def _curves(axes: Axes, some: Sequence[Curve], standings: Sequence[Labelled]) -> None:
    """Loss along one axis, seeds as bands, each line named at its end; the start, far above, is cut off."""
    for curve in reversed(some):
        colour = _colour(curve.label, standings)
        axes.plot(curve.at, curve.loss, color=colour, linewidth=1.6)
        axes.fill_between(curve.at, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    lowest = min(min(curve.low) for curve in some)
    settled = max(max(curve.loss[len(curve.loss) // 6 :]) for curve in some)
    axes.set_ylim(lowest - 0.05 * (settled - lowest), settled + 0.05 * (settled - lowest))
    ends = [curve.at[-1] for curve in some]
    room = max(0.24, _room([curve.label for curve in some]))
    left, right = min(curve.at[0] for curve in some), max(ends)
    if right > 2 * min(ends):
        axes.set_xscale("log")
        axes.set_xlim(left, right * (right / left) ** room)
        _log_ticks(axes)
    else:
        axes.set_xlim(0, right * (1 + room))
        axes.xaxis.set_major_locator(ticker.FixedLocator(ticker.MaxNLocator(4).tick_values(0, right)[:-1]))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(_AXIS_NAMES[some[0].axis] + (" (log)" if axes.get_xscale() == "log" else ""))
    axes.set_ylabel(_LOSS)
    _name_points(axes, [(curve.at[-1], curve.loss[-1], curve.label) for curve in some], standings)


def _beside(axes: Axes, pairs: Sequence[Published], standings: Sequence[Standing]) -> None:
    """Our losses against published ones, each on its own scale: only the order can be compared."""
    points = []
    for row in pairs:
        ours = row.our_loss
        if row.loss is None or ours is None:
            continue
        colour = _colour(row.run, standings)
        if ours.low is not None and ours.high is not None:
            axes.plot([row.loss, row.loss], [ours.low, ours.high], color=colour, alpha=0.5)
        axes.plot([row.loss], [ours.value], "o", color=colour, markersize=5.5)
        points.append((row.loss, ours.value, str(row.run)))
    values = [y for _, y, _ in points]
    reach = max(max(values) - min(values), 0.004 * values[0])
    axes.set_ylim(min(values) - 0.25 * reach, max(values) + 0.25 * reach)
    axes.margins(x=0.2)
    first, last = axes.get_xlim()
    axes.set_xlim(first, last + max(0.0, _room([label for _, _, label in points]) - 0.2) * (last - first))
    axes.grid()
    axes.set_xlabel(f"published loss, {_LOSS} (external)")
    axes.set_ylabel(f"ours, {_LOSS}")
    _name_points(axes, points, standings)


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]], standings: Sequence[Labelled]) -> None:
    """Names to the right of points, moved apart from bottom to top where they would cover each other."""
    axes.get_xlim(), axes.get_ylim()  # matplotlib settles limits when they are asked for
    to_axes = axes.transData + axes.transAxes.inverted()
    spots = sorted((*to_axes.transform((x, y)), label) for x, y, label in points)
    while spots:
        reach = spots[0][0] + _SIGN * max(len(_measured(_short(label))) for _, _, label in spots)
        near = sorted((y, x, label) for x, y, label in spots if x <= reach)
        spots = [spot for spot in spots if spot[0] > reach]
        for (y, x, label), place in zip(near, _apart([y for y, _, _ in near], 0.056), strict=True):
            colour = _colour(label, standings)
            if abs(place - y) > 0.03:
                axes.plot([x, x + 0.02], [y, place], color=colour, linewidth=0.6, alpha=0.7, transform=axes.transAxes)
            text = axes.text(
                x + 0.024, place, _short(label), transform=axes.transAxes, va="center", fontsize=8, color=colour
            )
            text.set_in_layout(False)


def _room(labels: Sequence[str]) -> float:
    """Width beside the points that names need, as a share of the points' own width."""
    share = 0.03 + _SIGN * max(len(_measured(_short(label))) for label in labels)
    return share / (1 - share)


def _short(label: str) -> str:
    """A label as charts show it: both ends of a long one, which often differs in its last words only."""
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST // 2]}…{label[1 - _LONGEST // 2 :]}"


def _measured(text: str) -> str:
    """Text about as wide as `text`, of signs that the measuring font has."""
    return text if text.isascii() else "".join(sign if ord(sign) in _signs() else _stand_in(sign) for sign in text)


@cache
def _signs() -> frozenset[int]:
    """Code points that the measuring font has."""
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _stand_in(sign: str) -> str:
    """Something as wide: an em for East Asian signs and emoji, nothing for marks and joiners."""
    if unicodedata.category(sign) in ("Mn", "Me", "Cf"):
        return ""
    return "\N{EM DASH}" if unicodedata.east_asian_width(sign) in "WF" else "n"


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Ascending `values` between 0 and 1, neighbours pushed from each other until they are `gap` apart."""
    places = list(values)
    for _ in range(20 * len(places)):
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 0:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
        places[0], places[-1] = max(places[0], 0.02), min(places[-1], 0.98)
    return places


def _log_ticks(axes: Axes) -> None:
    """1, 2 and 5 times powers of ten, written with SI prefixes."""
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
