"""Has the traffic, or what a model does with it, changed?

    python -m prefilter_common.evaluation.drift reference.jsonl scored.jsonl

Each file is an output of the streaming scorer, or articles, with or without "score" and "is_commerce". What both have
is compared: flag rate, scores, languages, lengths; what is not is named. The language of an article that names none is
identified; a row of the scorer without one counts as unknown. A change counts where it is larger than its bound and
beyond chance. Copies of a text (rows of the scorer with one score, length and language) count in part.

The last line on stdout is one JSON object. Exit code 0: no such change; 3: at least one, for cron; 2: bad input.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from prefilter_common.articles import UNKNOWN, Article
from prefilter_common.cli import Parser, configure_logging, exit_code, fraction, positive_float, printable
from prefilter_common.errors import InputError
from prefilter_common.evaluation.slices import CHARACTER_EDGES, buckets, characters
from prefilter_common.files import decoded, numbered_lines
from prefilter_common.language import languages, primary
from prefilter_common.statistics.intervals import effective_size, ratio_interval, stability_index
from prefilter_common.statistics.metrics import as_interval

CHANGED = 3
SCORE_BINS = 10
EQUAL = 5e-7  # the scorer's rows have six decimals
RARE = 0.01  # rarer languages count together
# Of fewer rows a stability index tells nothing: of 10 its interval held the truth in 69 to 79 % of simulations.
MIN_TEXTS = 20


@dataclass(frozen=True)
class Traffic:
    """One file: what is known of all its rows, else None. ``flags``, ``scores``, ``characters`` (n,).

    ``texts`` (n,) is which text each row has.
    """

    texts: np.ndarray
    flags: np.ndarray | None
    scores: np.ndarray | None
    languages: list[str] | None
    characters: np.ndarray | None

    def size(self, shares: np.ndarray | None = None) -> float:
        """How many different texts would tell as much of these (n,) ``shares``."""
        copies = np.bincount(self.texts)
        return effective_size(copies, None if shares is None else np.bincount(self.texts, shares) / copies)


class Change(TypedDict):
    """One comparison: its value, interval and bound, and whether it is beyond the bound and beyond chance."""

    what: str
    value: float
    interval: list[float]
    bound: float
    changed: bool
    detail: str


def main(argv: list[str] | None = None) -> int:
    """Read both files, compare what both have, print. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    before, now = (read_traffic(path, args.threshold) for path in (args.reference, args.scored))
    changes = compare_traffics(before, now, args.max_ratio, args.max_psi)
    if not changes:
        raise InputError(
            f"{args.scored}: has nothing to compare with {args.reference}; both need a score, or title and content"
        )
    for change in changes:
        low, high = change["interval"]
        state = "CHANGED" if change["changed"] else "no change shown"
        figures = f"{change['value']:.3g} ({low:.3g} to {high:.3g}, bound {change['bound']:g})"
        print(printable(f"{change['what']}: {state}; {figures}; {change['detail']}"))
    missing = not_compared({args.reference: before, args.scored: now})
    for what, why in missing.items():
        print(printable(f"{what}: not compared; {why}"))
    changed = [change["what"] for change in changes if change["changed"]]
    summary = {"changed": changed, "changes": changes, "not_compared": list(missing)}
    print(json.dumps(summary, separators=(",", ":")))
    return CHANGED if changed else 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, prog="python -m prefilter_common.evaluation.drift")
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="rows to compare with, JSON Lines")
    parser.add_argument("scored", type=Path, metavar="SCORED", help="later rows, JSON Lines")
    ratio = "factor between the flag rates above which they count as changed"
    parser.add_argument("--max-ratio", type=positive_float, default=1.5, metavar="R", help=ratio)
    parser.add_argument(
        "--max-psi",
        type=positive_float,
        default=0.2,
        metavar="P",
        help="population stability index above which scores, languages or lengths count as changed",
    )
    lowest = 'lowest score that is flagged, without "is_commerce"'
    parser.add_argument("--threshold", type=fraction, default=0.5, metavar="T", help=lowest)
    return parser.parse_args(argv)


def read_traffic(path: Path, threshold: float) -> Traffic:
    """What all rows of a file have. Raises InputError with file and line."""
    rows = list(_rows(path))
    scores = flags = None
    if all("score" in row for row in rows):
        scores = np.array([row["score"] for row in rows], float)
        flags = np.array([row.get("is_commerce", row["score"] >= threshold) for row in rows], bool)
    if not all("title" in row or "content" in row or "text" in row for row in rows):
        named = any(row.get("language") for row in rows)
        counted = all(type(row.get("characters")) is int for row in rows)
        return Traffic(
            _texts((r.get("score"), r["characters"], r.get("language")) if counted else i for i, r in enumerate(rows)),
            flags,
            scores,
            [primary(row.get("language") or UNKNOWN) for row in rows] if named else None,
            np.array([row["characters"] for row in rows]) if counted else None,
        )
    articles = [
        Article(str(row.get("title") or ""), str(row.get("content") or row.get("text") or ""),
                language=row.get("language"))
        for row in rows
    ]  # fmt: skip
    texts = _texts((article.title, article.content) for article in articles)
    return Traffic(texts, flags, scores, languages(articles), characters(articles))


def _texts(texts: Iterable[Hashable]) -> np.ndarray:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(text, len(seen)) for text in texts])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in numbered_lines(path):
        try:
            row = decoded(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; fix or delete it") from None
        if problem := _problem(row):
            raise InputError(f"{path}, line {number}: {problem}; correct or delete it")
        yield row


def _problem(row: Any) -> str | None:
    """What is wrong with a row, if anything."""
    if not isinstance(row, dict):
        return "is not a JSON object"
    score, length = row.get("score", 0.0), row.get("characters", 0)
    if type(score) not in (int, float) or not 0 <= score <= 1:
        return '"score" must be a number from 0 to 1'
    for key in ("title", "content", "text", "language"):
        if not isinstance(row.get(key), str | None):
            return f'"{key}" must be a string or null'
    if length is not None and (type(length) is not int or not 0 <= length < 2**31):
        return '"characters" must be a whole number or null'
    return None if isinstance(row.get("is_commerce", False), bool) else '"is_commerce" must be true or false'


def compare_traffics(before: Traffic, now: Traffic, max_ratio: float, max_psi: float) -> list[Change]:
    """Every comparison for which both files have what it takes."""
    changes, sizes = [], (before.size(), now.size())
    if before.flags is not None and now.flags is not None:
        own = before.size(before.flags), now.size(now.flags)
        changes.append(flag_change(before.flags, now.flags, own, max_ratio))
    if before.scores is not None and now.scores is not None:
        # Equally full bins of the reference. A score that fills one by itself has it to itself.
        edges, times = np.unique(np.quantile(before.scores, np.arange(1, SCORE_BINS) / SCORE_BINS), return_counts=True)
        edges = np.union1d(edges, edges[times > 1] + EQUAL)
        names = np.array([f"{a:.6g} to {b:.6g}" for a, b in pairwise([0.0, *edges.tolist(), 1.0])])
        bins = [names[np.searchsorted(edges, found, side="right")] for found in (before.scores, now.scores)]
        changes.append(mix_change("scores", bins[0].tolist(), bins[1].tolist(), sizes, max_psi))
    if before.languages is not None and now.languages is not None:
        common: set[str] = set()
        for spoken in (before.languages, now.languages):
            common |= {name for name, n in Counter(spoken).items() if n >= RARE * len(spoken)}
        named = [[name if name in common else "other" for name in t] for t in (before.languages, now.languages)]
        changes.append(mix_change("languages", named[0], named[1], sizes, max_psi))
    if before.characters is not None and now.characters is not None:
        lengths = [buckets(found, CHARACTER_EDGES) for found in (before.characters, now.characters)]
        changes.append(mix_change("lengths", lengths[0], lengths[1], sizes, max_psi))
    return changes


def not_compared(files: Mapping[Path, Traffic]) -> dict[str, str]:
    """What could not be compared, and which of the files lack it."""
    needs = {
        "flag rate": ("flags", '"score"'),
        "scores": ("scores", '"score"'),
        "languages": ("languages", '"title" and "content", and none has a "language"'),
        "lengths": ("characters", '"characters", or "title" and "content"'),
    }
    lacking = {
        what: ", ".join(str(path) for path, traffic in files.items() if getattr(traffic, field) is None)
        for what, (field, _) in needs.items()
    }
    return {what: f"{paths}: not all rows have {needs[what][1]}" for what, paths in lacking.items() if paths}


def flag_change(before: np.ndarray, now: np.ndarray, sizes: tuple[float, float], bound: float) -> Change:
    """The ratio of the later flag rate to the earlier one, with Koopman's interval at the effective ``sizes``."""
    rates = float(before.mean()), float(now.mean())
    counts = rates[1] * sizes[1], sizes[1], rates[0] * sizes[0], sizes[0]
    low, high = (float(limit) for limit in ratio_interval(*counts))
    high = min(high, 1e9)  # infinity is no JSON
    value = rates[1] / rates[0] if rates[0] else (1.0 if not rates[1] else 1e9)
    beyond = max(value, 1 / value if value else np.inf) > bound
    return {
        "what": "flag rate", "value": value, "interval": as_interval(low, high), "bound": bound,
        "changed": bool(beyond and not low <= 1 <= high),
        "detail": f"{rates[0]:.2%} of {len(before):,} before, {rates[1]:.2%} of {len(now):,} now",
    }  # fmt: skip


def mix_change(
    what: str, before: Sequence[str], now: Sequence[str], sizes: tuple[float, float], bound: float
) -> Change:
    """The population stability index of two samples of categories, with its interval at the effective ``sizes``."""
    names = sorted({*before, *now})
    counts = (np.array([n[name] for name in names]) for n in (Counter(before), Counter(now)))
    p, q = (count / count.sum() for count in counts)
    value, low, high = stability_index(p * sizes[0], q * sizes[1])
    if min(sizes) < MIN_TEXTS:
        low, high = 0.0, 1e9  # infinity is no JSON
    most = sorted(zip(q - p, names, p, q, strict=True), key=lambda row: -abs(row[0]))[:3]
    return {
        "what": what, "value": value, "interval": as_interval(low, high), "bound": bound,
        "changed": bool(value > bound and low > 0),
        "detail": "; ".join(f"{name}: {a:.1%} before, {b:.1%} now" for _, name, a, b in most),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_code(main))
