"""A curve as an SVG file: no program draws it, and every number decides its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 34, 40
#: colours that can be told apart on white and on black
COLORS = ("#2f7ed8", "#d9772b")
Points = Sequence[tuple[int, float]]


def curve_svg(title: str, lines: Sequence[tuple[str, Points]]) -> str:
    """``lines``: names and ``(step, loss)``; those without points are left out. At most two."""
    lines = [(name, points) for name, points in lines if points]
    steps = [step for _, points in lines for step, _ in points]
    losses = [loss for _, points in lines for _, loss in points]
    low, high = min(losses), max(losses)
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-9 else (low - 0.04 * (high - low), high)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: int, loss: float) -> tuple[float, float]:
        return (LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first),
                TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low))

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
             f'height="{HEIGHT}" font-family="sans-serif" font-size="12" fill="#808080" role="img">',
             f"<title>{escape(title)}</title>"]
    for i in range(5):
        loss = low + (high - low) * i / 4
        _, y = place(first, loss)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#80808040"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        x, _ = place(step, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="{anchor}">{step:,}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    for number, (name, points) in enumerate(lines):
        color = COLORS[number]
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        x = LEFT + 170 * number
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.8" points="{path}"/>')
        parts.append(f'<rect x="{x}" y="12" width="14" height="4" fill="{color}"/>'
                     f'<text x="{x + 20}" y="18">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
