"""Curves against the step as an SVG image that is part of an HTML page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from starflow_jax.core.html_page import escaped

Point = tuple[float, float]

_WIDTH, _HEIGHT = 350, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 10, 8, 32
_INNER_WIDTH, _INNER_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#7b3294")
_BUCKETS = 200  # of a curve that has more than twice as many points
_DOTTED = 30  # the points of shorter curves are shown
_LARGEST = 1e300  # differences of two such numbers are still finite


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
      label: its name, plain text.
      points: steps, which are finite, with values, which need not be.
    """

    label: str
    points: tuple[Point, ...]

    @property
    def finite(self) -> list[Point]:
        """The points with finite values, by step."""
        return sorted((step, _bounded(value)) for step, value in self.points if math.isfinite(value))


class _Axis(NamedTuple):
    """A linear map from [low, high] to 0..length."""

    low: float
    high: float
    length: float

    def at(self, value: float) -> float:
        # Values outside are drawn a little outside, where they are cut off.
        return self.length * min(max((value - self.low) / (self.high - self.low), -1.0), 2.0)

    def ticks(self) -> list[float]:
        raw = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
        return [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def chart(title: str, lines: Sequence[Line]) -> str:
    """A figure of curves with its title, a legend, and the last and extreme values; the text of `lines` is escaped.

    The curve of many points is drawn through the lowest and the highest of each interval. Where the first twentieth of
    a curve would take most of the height, it is cut off, and the figure says so.
    """
    drawn = [(line, line.finite) for line in lines]
    heading = f"<strong>{escaped(title)}</strong>"
    remarks = []
    for index, (line, points) in enumerate(drawn):
        square = f'<span style="color:{_COLOURS[index % len(_COLOURS)]}">&#9632;</span>'
        remarks.append(f"{square} {escaped(_summary(line, points))}")
    everything = [point for _, points in drawn for point in points]
    picture = ""
    if everything:
        steps = _axis([_bounded(step) for step, _ in everything], _INNER_WIDTH, margin=0.0)
        values = _axis([value for _, value in everything], _INNER_HEIGHT)
        later = [value for _, points in drawn for _, value in points[len(points) // 20 :]]
        without_start = _axis(later, _INNER_HEIGHT)
        if len(everything) >= 40 and 3 * (without_start.high - without_start.low) < values.high - values.low:
            values = without_start
            remarks.append("the beginning is outside the picture")
        picture = _svg(title, drawn, steps, values)
    return f"<figure>{heading}{picture}<figcaption>{'<br>'.join(remarks)}</figcaption></figure>"


def _summary(line: Line, points: Sequence[Point]) -> str:
    strange = len(line.points) - len(points)
    parts = []
    if points:
        low, high = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
        parts.append(f"last {points[-1][1]:.5g}")
        if low[1] < high[1]:
            parts += [f"lowest {low[1]:.5g} at step {low[0]:.10g}", f"highest {high[1]:.5g} at step {high[0]:.10g}"]
    if strange:
        parts.append(f"{strange} not finite")
    return f"{line.label}: {', '.join(parts) or 'no values'}"


def _svg(title: str, drawn: Sequence[tuple[Line, list[Point]]], steps: _Axis, values: _Axis) -> str:
    parts = [
        f'<svg role="img" aria-label="{escaped(title)}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    ]
    bottom = _TOP + _INNER_HEIGHT
    for tick in values.ticks():
        y = bottom - values.at(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{_INNER_WIDTH}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.5g}</text>')
    for tick in steps.ticks():
        x = _LEFT + steps.at(tick)
        parts.append(f'<path d="M{x:.1f} {_TOP}v{_INNER_HEIGHT}" stroke="#e5e5e5"/>')
        # A label in the middle of the last tick would leave the picture.
        anchor = "end" if x > _WIDTH - 30 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="{anchor}">{tick:.10g}</text>')
    parts.append(f'<text x="{_LEFT + _INNER_WIDTH / 2:.0f}" y="{_HEIGHT - 3}" text-anchor="middle">step</text>')
    # An inner image cuts off what is outside of it.
    parts.append(f'<svg x="{_LEFT}" y="{_TOP}" width="{_INNER_WIDTH}" height="{_INNER_HEIGHT}">')
    for index, (_, points) in enumerate(drawn):
        places = [(steps.at(_bounded(step)), _INNER_HEIGHT - values.at(value)) for step, value in _thinned(points)]
        colour = _COLOURS[index % len(_COLOURS)]
        if len(places) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(places) < _DOTTED:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>' for x, y in places]
    parts.append(
        f'</svg><rect x="{_LEFT}" y="{_TOP}" width="{_INNER_WIDTH}" height="{_INNER_HEIGHT}" fill="none" '
        'stroke="#999"/></svg>'
    )
    return "".join(parts)


def _axis(values: Sequence[float], length: float, margin: float = 0.04) -> _Axis:
    """An axis that holds all values, with a margin on both sides as a share of their range."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-280:
        pad = 0.05 * size if size >= 1e-280 else 1.0
    else:
        pad = margin * (high - low)
    return _Axis(low - pad, high + pad, length)


def _thinned(points: list[Point]) -> list[Point]:
    """The first and the last point, and the lowest and the highest of every interval; all points if they are few."""
    if len(points) <= 2 * _BUCKETS:
        return points
    size = -(-len(points) // _BUCKETS)
    kept = {0, len(points) - 1}
    for first in range(0, len(points), size):
        bucket = range(first, min(first + size, len(points)))
        kept |= {min(bucket, key=lambda index: points[index][1]), max(bucket, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]


def _bounded(value: float) -> float:
    return min(max(value, -_LARGEST), _LARGEST)
