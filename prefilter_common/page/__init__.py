"""What all pages share: the head, the style, the macros, and how a template becomes a file.

In: a room's template and its values. Out: one self-contained HTML file that fetches nothing and runs no script. Does
not belong here: what a page says.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prefilter_common.files import write_text

# HTML allows neither control characters nor halves of UTF-16 pairs, and an article may contain both. The two overrides
# of the writing direction would reverse the rest of a sentence.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff\ufffe\uffff]")


def render_page(path: Path, template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable]) -> None:
    """Write an HTML page.

    Args:
        path: the file to write.
        template: extends ``base.html.j2`` of this package.
        values: what it draws. Texts are hostile input: every value is escaped, and a missing one is an error.
        filters: the template's own, beside ``pct`` and ``span``.
    """
    environment = _environment(template.parent)
    environment.filters.update(pct=percent, span=span, **filters)
    page = environment.get_template(template.name).render(**values)
    write_text(path, UNPRINTABLE.sub("\ufffd", page))


@cache
def _environment(folder: Path) -> Environment:
    """Of the templates in ``folder`` and of this package; a process that writes several pages parses them once."""
    return Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent], encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}%}"


def span(interval: Sequence[float] | None, digits: int = 0) -> str:
    """An interval of fractions, in per cent."""
    return "–" if interval is None else f"{100 * interval[0]:.{digits}f}–{100 * interval[1]:.{digits}f}"
