"""The pictures of a study: quality against speed, and sample images side by side.

Colours are told apart by the colour-blind (Okabe and Ito's set), and every arm has its own marker besides.
"""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ditbench.report.tables import ARROWS, Heading, Line, Table, number
from ditbench.study import Axes, Study

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

Of = ParamSpec("Of")
T = TypeVar("T")

# Mid-tones that stand on white and on near-black alike.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a68c9", "#8a5a44")
BASELINE_MARKER, CONTROL_MARKER = "o", "x"
MARKERS = ("s", "D", "^", "v", "P", "X", "*", "p")
BASELINE_COLOUR = "#6b7280"
CONTROL_COLOUR = "#9ca3af"
# What the page replaces by the reader's own text colour.
INK = "#1f2937"
# With more arms than this, those that another one beats in both directions are not named in the figure.
NAMED = 9
# As many of the others are named then, and no name is written over another.
SOME = 10
# A control this many times the other arms' span away is drawn at the edge, so that it does not flatten them.
FAR = 1.0
# Of this many arms one that is so many times the span of their middle half away from it is drawn at the edge too.
MANY, OUTLYING = 12, 4.0
# What the identifier of an arm's mark in an SVG begins with.
MARK = "mark-of-"


def in_words(draw: Callable[Of, T]) -> Callable[Of, T]:
    """What draws a figure, for which a `$` in a label is a dollar: half a formula would be an error of all figures."""

    @wraps(draw)
    def drawn(*args: Of.args, **kwargs: Of.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn


def arm_colours(study: Study) -> dict[str, str]:
    """The colour of every arm of a study, the same whichever arms have results."""
    kin = kin_of(study)
    order = list(dict.fromkeys(kin.values()))
    colours = {arm: COLOURS[order.index(name) % len(COLOURS)] for arm, name in kin.items()}
    return colours | dict.fromkeys(study.controls, CONTROL_COLOUR) | dict.fromkeys(_bases(study), BASELINE_COLOUR)


def arm_markers(study: Study) -> dict[str, str]:
    """The mark of every arm; with its colour it is one arm's alone, or one method's where arms are many."""
    kin = kin_of(study)
    order = list(dict.fromkeys(kin.values()))
    # The same colour comes again with another mark.
    markers = {
        arm: MARKERS[(order.index(name) + order.index(name) // len(COLOURS)) % len(MARKERS)]
        for arm, name in kin.items()
    }
    return markers | dict.fromkeys(study.controls, CONTROL_MARKER) | dict.fromkeys(_bases(study), BASELINE_MARKER)


def kin_of(study: Study) -> dict[str, str]:
    """What the accelerated arms of a study are shown as: each by itself or, where they are many, as its method."""
    rows = [row for row in study.rows if row.arm != study.baseline and row.arm not in study.controls]
    if len(rows) <= len(COLOURS) * 2:
        return {row.arm: row.arm for row in rows}
    # What stands behind a comma is the operating point, where there are several of one method.
    stems = {row.arm: (row.method, row.weights_of, re.sub(r", [^()]*$", "", row.label)) for row in rows}
    several = Counter(stems.values())
    return {row.arm: stems[row.arm][-1] if several[stems[row.arm]] > 1 else row.label for row in rows}


def _bases(study: Study) -> list[str]:
    return [] if study.baseline is None else [study.baseline]


@dataclass(frozen=True)
class Point:
    """One seed of an arm in the figure, with its interval in both directions. `key` is its own in the figure."""

    arm: str
    label: str
    role: str
    colour: str
    marker: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    key: str


def points_of(study: Study, table: Table, axes: Axes | None = None) -> list[Point]:
    """The arms that have both numbers of a figure, the study's own if none is given; none where it has no figure."""
    axes = axes or study.figure
    if axes is None:
        return []
    places = [h.measure for h in table.headings]
    ix, iy = places.index(axes.x), places.index(axes.y)
    colours = arm_colours(study)
    markers = arm_markers(study)
    seeds = Counter(line.arm for line in table.lines if line.role != "published")
    found = []
    for line in table.lines:
        x, y = (span_of(line, i) for i in (ix, iy))
        if line.role != "published" and x and y:
            key = line.arm if seeds[line.arm] == 1 else f"{line.arm}.seed{line.seed}"
            found.append(Point(line.arm, line.label, line.role, colours[line.arm], markers[line.arm], x, y, key))
    return found


def of_arms(study: Study, points: Sequence[Point]) -> list[Point]:
    """A point for each arm: its seed's, or the mean of its seeds' under the arm's own name."""
    by_arm: dict[str, list[Point]] = {}
    for point in points:
        by_arm.setdefault(point.arm, []).append(point)
    return [
        own[0] if len(own) == 1 else replace(own[0], label=study.row(arm).label, x=_mean(own, "x"), y=_mean(own, "y"))
        for arm, own in by_arm.items()
    ]


def _mean(points: Sequence[Point], axis: str) -> tuple[float, float, float]:
    value, low, high = (sum(ends) / len(points) for ends in zip(*(getattr(p, axis) for p in points), strict=True))
    return (value, low, high)


def span_of(line: Line, i: int) -> tuple[float, float, float] | None:
    """Value, low, high of an entry; None where it cannot be drawn."""
    value = line.entries[i].value
    if value is None or not math.isfinite(value.value):
        return None
    low = value.value if value.low is None else min(value.low, value.value)
    high = value.value if value.high is None else max(value.high, value.value)
    return (value.value, low, high)


def pareto(study: Study, table: Table, axes: Axes | None = None) -> bytes | None:
    """Quality against speed, or against what `axes` say, as SVG; None while no arm has both numbers."""
    figure = _draw(study, table, axes)
    return None if figure is None else saved(figure, "svg", study.name)


def pareto_png(study: Study, table: Table) -> bytes | None:
    """The same figure as PNG."""
    figure = _draw(study, table)
    return None if figure is None else saved(figure, "png", study.name)


def inline_svg(svg: bytes, label: str, prefix: str, marks: Mapping[str, tuple[str, str]] | None = None) -> str:
    """An SVG for the inside of an HTML page: it takes the page's text colour and carries a text for readers.

    Its identifiers begin with `prefix`, because those of two figures on one page would be mistaken for each other.
    `marks` has an arm and a text for the key of each point: its mark can then be pointed at and tabbed to, and says so.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = text.replace(INK, "currentColor")
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    for key, (arm, told) in (marks or {}).items():
        where = f'tabindex="0" role="img" class="mark" data-arm="{html.escape(arm)}" aria-label="{html.escape(told)}"'
        text = text.replace(f'<g id="{prefix}-{MARK}{key}">', f'<g id="{prefix}-{MARK}{key}" {where}>')
    # A picture has no parts to a screen reader; a group of marks that can be tabbed to has.
    role = "group" if marks else "img"
    return text.replace("<svg", f'<svg role="{role}" aria-label="{html.escape(label)}"', 1)


@in_words
def saved(figure: Any, kind: str, name: str) -> bytes:
    import matplotlib

    out = io.BytesIO()
    # No date and no random identifiers: the same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=200, metadata=metadata, transparent=kind == "svg")
    return out.getvalue()


@in_words
def _draw(study: Study, table: Table, given: Axes | None = None) -> Any:
    """The figure, without pyplot: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wanted = given or study.figure
    points = points_of(study, table, wanted)
    if wanted is None or not points:
        return None
    figure = Figure(figsize=(9.6, 5.6) if by_method(study) else (7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    headings = {h.measure: h for h in table.headings}
    x, y = headings[wanted.x], headings[wanted.y]
    plain_axes(axes)
    axes.set_xlabel(_axis_label(x.label, x.direction), color=INK, fontsize=11)
    axes.set_ylabel(_axis_label(y.label, y.direction), color=INK, fontsize=11)
    named = draw_points(axes, study, points, x, y)
    if by_method(study):
        legend_of(axes, study, points)
    figure.canvas.draw()
    named()
    return figure


def by_method(study: Study) -> bool:
    """Whether arms are so many that each is shown as its method."""
    kin = kin_of(study)
    return len(set(kin.values())) < len(kin)


def legend_of(axes: Any, study: Study, points: Sequence[Point]) -> None:
    """Which mark is which method, beside the axes."""
    from matplotlib.lines import Line2D

    kin = kin_of(study)
    looks: dict[str, tuple[str, str]] = {}
    for point in points:
        name = kin.get(point.arm, "controls" if point.role == "control" else study.row(point.arm).label)
        looks.setdefault(name, (point.colour, point.marker))
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6, label=name)
        for name, (colour, marker) in looks.items()
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.02),
        fontsize=7.5,
        labelspacing=0.25,
        frameon=False,
        labelcolor=INK,
        borderaxespad=0.3,
    )


def draw_points(
    axes: Any,
    study: Study,
    points: Sequence[Point],
    x: Heading,
    y: Heading,
    areas: Mapping[str, float] | None = None,
) -> Callable[[], None]:
    """Draws arms, and a line through those that no other beats; what it returns names them once all is laid out.

    `areas` are those of the marks, in square points, by the points' keys.
    """
    limits = _limits([p.x for p in points], [p.x for p in points if p.role != "control"])
    heights = _limits([p.y for p in points], [p.y for p in points if p.role != "control"])
    axes.set_xlim(*limits)
    axes.set_ylim(*heights)
    arms = of_arms(study, points)
    best = front(arms, x.direction, y.direction)
    if len(best) > 1:
        axes.plot([p.x[0] for p in best], [p.y[0] for p in best], color=INK, alpha=0.35, linewidth=1.2, zorder=1)
    drawn = _marks(axes, study, points, limits, heights, (x.digits, y.digits), areas)
    many = len(arms) > NAMED
    off = [p.arm for p in arms if not (limits[0] <= p.x[0] <= limits[1] and heights[0] <= p.y[0] <= heights[1])]
    chosen = [p.arm for p in arms if p.role != "arm"] + off + [p.arm for p in _some(best)]
    told = chosen if many else [p.arm for p in arms]
    firsts = {point.arm: i for i, point in reversed(list(enumerate(points)))}  # an arm of several seeds is named once
    marks = [drawn[firsts[arm]] for arm in dict.fromkeys(told)]
    return lambda: name_marks(axes, marks, always=not many, taken=_taken(axes, drawn))


def _some(best: Sequence[Point]) -> list[Point]:
    """Of the arms that are to be named no more than can be read, evenly chosen from end to end."""
    if len(best) <= SOME:
        return list(best)
    return [best[round(i * (len(best) - 1) / (SOME - 1))] for i in range(SOME)]


def _axis_label(label: str, direction: str) -> str:
    words = {"lower": "lower is better", "higher": "higher is better"}
    return f"{label}  {ARROWS[direction]} {words[direction]}" if direction in words else label


def plain_axes(axes: Any) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
        axes.spines[side].set_alpha(0.5)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(True, color=INK, alpha=0.1, linewidth=0.8)
    axes.set_axisbelow(True)


def _limits(
    spans: Sequence[tuple[float, float, float]], near: Sequence[tuple[float, float, float]]
) -> tuple[float, float]:
    """The range of an axis: all arms, but a control that is far off, or an arm among many, does not stretch it."""
    kept = _together(near or spans)
    low, high = min(s[1] for s in kept), max(s[2] for s in kept)
    width = (high - low) or abs(high) * 0.2 or 1.0
    kept += [span for span in spans if span[1] > low - FAR * width and span[2] < high + FAR * width]
    low, high = min(s[1] for s in kept), max(s[2] for s in kept)
    width = (high - low) or abs(high) * 0.2 or 1.0
    return low - 0.14 * width, high + 0.2 * width


def _together(spans: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Of many values all but those that are far from where the middle half of them lies."""
    if len(spans) < MANY:
        return list(spans)
    values = sorted(span[0] for span in spans)
    low, high = values[len(values) // 4], values[-1 - len(values) // 4]
    width = (high - low) or abs(high) * 0.2 or 1.0
    return [span for span in spans if low - OUTLYING * width <= span[0] <= high + OUTLYING * width]


def front(points: Sequence[Point], x_direction: str, y_direction: str) -> list[Point]:
    """The arms that no other arm beats in both directions, from left to right."""
    sign_x = -1 if x_direction == "lower" else 1
    sign_y = -1 if y_direction == "lower" else 1
    rivals = [p for p in points if p.role != "control"]
    goals = {id(p): (sign_x * p.x[0], sign_y * p.y[0]) for p in rivals}
    best = [
        p
        for p in rivals
        if not any(
            q is not p
            and all(b >= a for a, b in zip(goals[id(p)], goals[id(q)], strict=True))
            and goals[id(q)] != goals[id(p)]
            for q in rivals
        )
    ]
    return sorted(best, key=lambda p: p.x[0])


def _marks(
    axes: Any,
    study: Study,
    points: Sequence[Point],
    limits: tuple[float, float],
    heights: tuple[float, float],
    digits: tuple[int, int],
    areas: Mapping[str, float] | None = None,
) -> list[tuple[str, str, float, float]]:
    """Draws the arms with their intervals; returns what is still to be labelled: text, colour, place."""
    to_label = []
    for point in points:
        colour = point.colour
        label = study.row(point.arm).label
        label = f"{label} (control)" if point.role == "control" else label
        x = min(max(point.x[0], limits[0]), limits[1])
        y = min(max(point.y[0], heights[0]), heights[1])
        off = (point.x[0], point.y[0]) != (x, y)
        if off:
            # Off the scale: an arrow at the edge, the true value in words.
            direction = ("^" if point.y[0] > y else "v") if point.y[0] != y else (">" if point.x[0] > x else "<")
            (mark,) = axes.plot([x], [y], direction, color=colour, markersize=9, clip_on=False, zorder=4)
            label += f", off the scale: {number(point.x[0], digits[0])}; {number(point.y[0], digits[1])}"
        else:
            bars = axes.errorbar(
                [x],
                [y],
                xerr=[[x - point.x[1]], [point.x[2] - x]],
                yerr=[[y - point.y[1]], [point.y[2] - y]],
                fmt=point.marker,
                color=colour,
                markersize=math.sqrt((areas or {}).get(point.key, 64.0)),
                elinewidth=1.4,
                capsize=3,
                zorder=3,
            )
            mark = bars[0]
        mark.set_gid(f"{MARK}{point.key}")
        to_label.append((label, colour, x, y))
    return to_label


def _taken(axes: Any, drawn: Sequence[tuple[str, str, float, float]]) -> list[Box]:
    """Where marks, their bars and the legend are, in pixels: no name is written over any of them."""
    marks = [_around(axes.transData.transform((x, y)), 9) for _, _, x, y in drawn]
    if (legend := axes.get_legend()) is not None:
        marks.append(tuple(legend.get_window_extent().extents))
    return marks + [box for container in axes.containers for box in _bars(container)]


def name_marks(
    axes: Any,
    drawn: Sequence[tuple[str, str, float, float]],
    always: bool = True,
    led_from: int = 30,
    taken: list[Box] | None = None,
) -> None:
    """Writes each arm's name beside its mark: the first place around it that is free.

    A line leads to names that are further off than `led_from` points. Where no place is free, it is written over
    something else, or not at all: of many arms the page says the names where one points. `taken` is where no name
    may be, without it where these marks and all bars are.
    """
    taken = _taken(axes, drawn) if taken is None else taken
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    for text, colour, x, y in drawn:
        chosen = None
        for reach, (dx, dy) in ((r, d) for r in (11, 20, 34, 52, 76) for d in _SIDES):
            note = axes.annotate(
                text,
                (x, y),
                xytext=(dx * reach, dy * reach),
                textcoords="offset points",
                ha={1: "left", -1: "right", 0: "center"}[dx],
                va={1: "bottom", -1: "top", 0: "center"}[dy],
                color=INK,
                fontsize=10.5,
                zorder=5,
                arrowprops=None if reach < led_from else {"arrowstyle": "-", "color": colour, "lw": 0.8},
            )
            box = _text_box(note, renderer)
            inside = (
                frame.x0 <= box[0]
                and box[2] <= figure.bbox.x1 - 4
                and frame.y0 <= box[1]
                and box[3] <= figure.bbox.y1 - 4
            )
            if inside and not any(_overlap(box, other) for other in taken):
                chosen = box
                break
            note.remove()
        if chosen is None and not always:
            continue
        if chosen is None:
            # No free place: better over something than not at all.
            note = axes.annotate(text, (x, y), xytext=(8, 8), textcoords="offset points", color=INK, fontsize=10.5)
            chosen = _text_box(note, renderer)
        taken.append(chosen)


_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
Box = tuple[float, float, float, float]


def _around(place: Iterable[float], reach: float) -> Box:
    x, y = place
    return (x - reach, y - reach, x + reach, y + reach)


def _text_box(note: Any, renderer: Any) -> Box:
    from matplotlib.text import Text

    # The text alone, without the line that leads to it.
    note.update_positions(renderer)
    box = Text.get_window_extent(note, renderer)
    return (box.x0 - 2, box.y0 - 2, box.x1 + 2, box.y1 + 2)


def _bars(container: Any) -> list[Box]:
    """Where the error bars of one arm are, in pixels."""
    boxes = []
    for lines in container[2]:
        # From the segments themselves: the window extent of a collection of lines is empty.
        for ends in map(lines.get_transform().transform, lines.get_segments()):
            (x0, y0), (x1, y1) = ends.min(0), ends.max(0)
            boxes.append((x0 - 2, y0 - 2, x1 + 2, y1 + 2))
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# The sample grid

SIDE = 192  # pixels of one picture, as near as whole enlargement comes
GAP = 12
CAPTION_WIDTH = 330


@lru_cache(maxsize=4)
def _caption_column(captions: tuple[str, ...], side: int) -> Picture:
    """The captions of a grid, one above the other; the cells of a study have the same ones."""
    from PIL import Image, ImageDraw

    column = Image.new("RGB", (CAPTION_WIDTH, max(1, len(captions) * (side + GAP))), "white")
    draw, plain = ImageDraw.Draw(column), _font("DejaVuSans.ttf", 16)
    for row, caption in enumerate(captions):
        told, middle = "\n".join(textwrap.wrap(caption, 34)), row * (side + GAP) + side // 2
        draw.multiline_text((GAP, middle), told, fill=INK, font=plain, anchor="lm", spacing=6)
    return column


def sample_grid(
    arms: Sequence[str], captions: Sequence[str], images: Sequence[Sequence[NDArray[np.uint8] | None]]
) -> bytes:
    """A PNG with a caption in each row and an arm in each column; `images[row][column]`, None where there is none."""
    from PIL import Image, ImageDraw

    shown = next((image for row in images for image in row if image is not None), None)
    size = shown.shape[0] if shown is not None else SIDE
    # Small pictures grow by a whole factor, so that every pixel of the model stays to be seen.
    side = size * max(1, round(SIDE / size)) if size <= SIDE else SIDE
    resampling = Image.Resampling.NEAREST if size <= SIDE else Image.Resampling.LANCZOS
    bold, plain = _font("DejaVuSans-Bold.ttf", 17), _font("DejaVuSans.ttf", 16)
    heads = [_wrapped(arm, bold, side) for arm in arms]
    head = 22 + 22 * max((len(lines) for lines in heads), default=1)
    width = CAPTION_WIDTH + len(arms) * (side + GAP) + GAP
    height = head + len(captions) * (side + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        middle = CAPTION_WIDTH + column * (side + GAP) + side // 2
        for place, line in enumerate(reversed(lines)):
            draw.text((middle, head - 22 - 22 * place), line, fill=INK, font=bold, anchor="mm")
    sheet.paste(_caption_column(tuple(captions), side), (0, head))
    for row in range(len(captions)):
        top = head + row * (side + GAP)
        for column, picture in enumerate(images[row]):
            left = CAPTION_WIDTH + column * (side + GAP)
            if picture is None:
                draw.rectangle((left, top, left + side - 1, top + side - 1), outline=CONTROL_COLOUR)
                draw.text(
                    (left + side // 2, top + side // 2), "no image", fill=BASELINE_COLOUR, font=plain, anchor="mm"
                )
            else:
                sheet.paste(Image.fromarray(picture).resize((side, side), resampling), (left, top))
    out = io.BytesIO()
    # Pillow's own level takes twice as long and saves a seventh, `optimize` ten times: for a campaign's cells minutes.
    sheet.save(out, format="PNG", compress_level=3)
    return out.getvalue()


def _font(name: str, size: int) -> Any:
    """A font that comes with matplotlib, so that grids look the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _wrapped(text: str, font: Any, width: int, most: int = 3) -> list[str]:
    """A text in lines that are no wider than a column; what does not fit the last one is cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif len(lines) == most:
            lines[-1] += f" {word}"
            break
        else:
            lines.append(word)
    return [_cut(line, font, width) for line in lines] or [""]


def _cut(text: str, font: Any, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if text.endswith("…") else text[:-1] + "…"
    return text
