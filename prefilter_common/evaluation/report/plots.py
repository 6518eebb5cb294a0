"""Where things go in the page's plots: numbers -> SVG coordinates. The drawing itself is in page.html.j2."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 44


@dataclass(frozen=True)
class Axes:
    """A plot's range in both directions, in the data's units; linear, y upwards."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge of the plotting area."""
        return LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(self, value: float) -> float:
        """Horizontal pixel."""
        return _place(value, self.x_low, self.x_high, LEFT, WIDTH - RIGHT)

    def y(self, value: float) -> float:
        """Vertical pixel, counted from the top as SVG does."""
        return _place(value, self.y_low, self.y_high, HEIGHT - BOTTOM, TOP)

    def line(self, points: Iterable[Sequence[float]]) -> str:
        """The ``points`` attribute of a polyline through (x, y) pairs."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    @property
    def x_ticks(self) -> list[float]:
        """Five intervals between the ends."""
        return _ticks(self.x_low, self.x_high)

    @property
    def y_ticks(self) -> list[float]:
        """Five intervals between the ends."""
        return _ticks(self.y_low, self.y_high)


def near_one(values: Iterable[float]) -> float:
    """Where an axis that ends at 1 should begin to show all ``values``: 0.9, 0.8, 0.5 or 0."""
    lowest = min(values, default=0)
    return next((start for start in (0.9, 0.8, 0.5) if lowest > start), 0.0)


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    share = (value - low) / (high - low)
    return round(start + share * (end - start), 1)


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * i / 5 for i in range(6)]
