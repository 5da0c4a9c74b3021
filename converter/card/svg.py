"""Three small plots as inline SVG: bars, a stacked bar and a curve. No script, no network.

Colours come from the page's style sheet by class, so that a plot follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH = 720


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars from zero, one a row.

    Args:
        rows: name, length (not negative), and what stands beside the bar.
        label: description of the plot, for those who cannot see it.
    """
    left, right, height = 210, 190, 22
    longest = max((value for _, value, _ in rows), default=0.0) or 1.0
    parts = []
    for i, (name, value, text) in enumerate(rows):
        y = i * height
        width = (_WIDTH - left - right) * value / longest
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" class="end">{escape(name)}</text>'
            f'<rect x="{left}" y="{y + 4}" width="{max(width, 1):.1f}" height="14" class="bar"/>'
            f'<text x="{left + max(width, 1) + 6:.1f}" y="{y + 15}">{escape(text)}</text>'
        )
    return _svg(len(rows) * height + 4, label, parts)


def stacked(parts: Sequence[tuple[str, float, str]], label: str) -> str:
    """Draw one bar cut into shares, with a legend below.

    Args:
        parts: name, size (not negative), and the size in words; at most eight have colours apart.
        label: description of the plot.
    """
    total = sum(size for _, size, _ in parts) or 1.0
    drawn, at = [], 0.0
    for i, (name, size, text) in enumerate(parts):
        width = _WIDTH * size / total
        drawn.append(
            f'<rect x="{at:.1f}" y="0" width="{width:.1f}" height="26" class="c{i % 8}">'
            f"<title>{escape(name)}: {escape(text)}</title></rect>"
        )
        y = 50 + 20 * i
        drawn.append(
            f'<rect x="0" y="{y - 11}" width="12" height="12" class="c{i % 8}"/>'
            f'<text x="20" y="{y}">{escape(name)}: {escape(text)}, '
            f"{100 * size / total:.1f} %</text>"
        )
        at += width
    return _svg(46 + 20 * len(parts), label, drawn)


def curve(
    points: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, float, str]],
    label: str,
    x_label: str,
    y_label: str,
) -> str:
    """A line through points over a linear x axis and a logarithmic y axis, some points named.

    Args:
        points: x rising, y positive.
        marks: x, y and a name.
        label: description of the plot.
        x_label: with its unit.
        y_label: with its unit.
    """
    left, right, top, bottom, height = 70, 24, 14, 46, 320
    everything = [*points, *((x, y) for x, y, _ in marks)]
    xs = [x for x, _ in everything]
    floor = min(y for _, y in everything if y > 0)
    low, high = math.floor(math.log10(floor)), math.ceil(math.log10(max(y for _, y in everything)))
    high = max(high, low + 1)
    x_low, x_high = min(xs), max(xs)
    x_span = (x_high - x_low) or 1.0

    def px(x: float) -> float:
        return left + (_WIDTH - left - right) * (x - x_low) / x_span

    def py(y: float) -> float:
        share = (math.log10(max(y, floor)) - low) / (high - low)
        return height - bottom - (height - top - bottom) * share

    parts = []
    for power in range(low, high + 1):
        y = py(10.0**power)
        parts.append(
            f'<line x1="{left}" y1="{y:.1f}" x2="{_WIDTH - right}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" class="end">{10.0**power:g}</text>'
        )
    for i in range(5):
        x = x_low + x_span * i / 4
        parts.append(f'<text x="{px(x):.1f}" y="{height - 26}" class="mid">{x:,.3g}</text>')
    path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
    parts.append(f'<polyline points="{path}" class="line"/>')
    for x, y, name in marks:
        side = "end" if px(x) > _WIDTH / 2 else "start"
        shift = -8 if side == "end" else 8
        parts.append(
            f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="5" class="mark"/>'
            f'<text x="{px(x) + shift:.1f}" y="{py(y) - 8:.1f}" class="{side}">'
            f"{escape(name)}</text>"
        )
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{height - 6}" class="mid">{escape(x_label)}</text>'
        f'<text x="14" y="{height / 2}" class="mid" transform="rotate(-90 14 {height / 2})">'
        f"{escape(y_label)}</text>"
    )
    return _svg(height, label, parts)


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
