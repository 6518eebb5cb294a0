"""The article: read it from JSON Lines, validate it, turn it into the text that a model reads."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefilter_common.errors import InputError
from prefilter_common.files import decoded, numbered_lines

log = logging.getLogger(__name__)

JOURNALISM, COMMERCE = 0, 1
LABEL_NAMES = ("journalism", "commerce")
INPUT_FORMAT = "[TITLE] {title} [CONTENT] {content}"
UNKNOWN = "unknown"  # what reports call a missing language or source
MAX_ERRORS_NAMED = 10
# Characters of content that are left of an article that is cut at random: about what a feed shows.
CUT_TO = (60, 400)


@dataclass(frozen=True, slots=True)
class Article:
    """One news article. ``extra`` holds every key of its JSON object that has no field here, untouched."""

    title: str
    content: str
    label: int | None = None
    id: str | None = None
    language: str | None = None
    source: str | None = None
    commerce_score: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def characters(self) -> int:
        """Of title and content together."""
        return len(self.title) + len(self.content)

    @classmethod
    def from_record(cls, record: Any, require_label: bool = False) -> "Article":
        """Check one decoded JSON object. Raises ValueError with the problem and the fix."""
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, got {_shown(record)}")
        extra = dict(record)
        title = _text(extra.pop("title", None), "title")
        content = extra.pop("content", None)
        if content is None:
            content = extra.pop("text", None)
        content = _text(content, "content")
        label = extra.pop("label", None)
        if label is None and require_label:
            raise ValueError('"label" is missing; add 0 (journalism) or 1 (commerce)')
        if type(label) is float and label in (JOURNALISM, COMMERCE):  # as tables with empty cells write whole numbers
            label = int(label)
        # bool is an int in Python, but true or false in a file means that its writer had another format in mind.
        if label is not None and (type(label) is not int or label not in (JOURNALISM, COMMERCE)):
            raise ValueError(f'"label" is {_shown(label)}; it must be 0 (journalism) or 1 (commerce)')
        score = extra.pop("commerce_score", None)
        if score is not None and (type(score) not in (int, float) or not 0 <= score <= 10):
            raise ValueError(f'"commerce_score" is {_shown(score)}; it must be a number from 0 to 10, or left out')
        names = {key: _name(extra.pop(key, None)) for key in ("id", "language", "source")}
        return cls(title=title, content=content, label=label, commerce_score=score, extra=extra, **names)


def format_input(article: Article) -> str:
    """The text that every model reads, in training and in production."""
    return INPUT_FORMAT.format(title=article.title, content=article.content)


def read_articles(path: str | Path, require_labels: bool = False) -> Iterator[Article]:
    """Yield the articles of a UTF-8 JSON Lines file, one line in memory at a time.

    A byte order mark, CRLF and blank lines are accepted. An article without an id, or a blank one, gets ``line-N``.

    Raises:
        InputError: no such file, no articles, or bad lines. Bad lines are skipped until the end, so that one error
            counts them all and names the first ten; a caller that must not act on a bad file reads all of it first
            (``load_articles``).
    """
    path = Path(path)
    seen, bad, errors = 0, 0, []
    for number, line in numbered_lines(path):
        seen += 1
        try:
            article = _parse_line(line, number, require_labels)
        except ValueError as error:
            bad += 1
            if bad <= MAX_ERRORS_NAMED:
                errors.append(f"line {number}: {error}")
        else:
            yield article
    if bad:
        more = f"; and {bad - len(errors)} more" if bad > len(errors) else ""
        raise InputError(f"{path}: {bad} of {seen} lines are bad, fix or delete them: {'; '.join(errors)}{more}")


def load_articles(path: str | Path, require_labels: bool = False) -> list[Article]:
    """All articles of a file, or an InputError before any of them is used.

    Raises InputError as ``read_articles`` does and, where labels are needed, for ids that occur twice, since
    predictions and splits are told apart by them. Elsewhere those are a warning, since a feed repeats itself.
    """
    articles = list(read_articles(path, require_labels))
    twice = [str(id) for id, n in Counter(article.id for article in articles).items() if n > 1]
    if twice:
        more = f" and {len(twice) - MAX_ERRORS_NAMED} more" if len(twice) > MAX_ERRORS_NAMED else ""
        named = ", ".join(id[:80] for id in twice[:MAX_ERRORS_NAMED])
        message = f"{path}: ids occur more than once: {named}{more}"
        if require_labels:
            raise InputError(f"{message}; give each article its own, or none")
        log.warning(message)
    return articles


def load_split(data_dir: str | Path, name: str) -> list[Article]:
    """The labelled articles of ``data_dir/name.jsonl``, both labels present. Raises InputError."""
    path = Path(data_dir) / f"{name}.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such split; --data-dir needs train.jsonl and val.jsonl")
    return load_both_labels(path)


def load_both_labels(path: Path) -> list[Article]:
    """The labelled articles of a file, both labels present. Raises InputError."""
    articles = load_articles(path, require_labels=True)
    labels = np.unique(labels_of(articles))
    if len(labels) < 2:
        raise InputError(f"{path}: every article is {LABEL_NAMES[labels[0]]}; both labels are needed")
    return articles


def split_beside(path: Path, name: str) -> Path | None:
    """The file of another split, ``name.jsonl``, in the folder of ``path``; None where there is none."""
    beside = path.with_name(f"{name}.jsonl")
    return beside if beside.is_file() and beside != path else None


def labels_of(articles: Sequence[Article]) -> np.ndarray:
    """(n,) 0 or 1."""
    return np.array([article.label for article in articles])


def capped(articles: Sequence[Article], limit: int | None) -> Sequence[Article]:
    """At most ``limit`` of them, at ``spread_places``; all where it is None."""
    if limit is None or limit >= len(articles):
        return articles
    return [articles[i] for i in spread_places(articles, limit)]


def spread_places(articles: Sequence[Article], limit: int) -> list[int]:
    """The places of ``limit`` articles, or of all if there are fewer: of each label its share, evenly spaced.

    If they were evenly spaced over all, a file in which labels alternate might give one of them alone.
    """
    by_label = sorted(range(len(articles)), key=lambda i: articles[i].label or 0)
    n = min(limit, len(articles))
    return sorted(by_label[i * len(articles) // n] for i in range(n))


def spread_by_length(articles: Sequence[Article], limit: int) -> list[Article]:
    """At most ``limit`` articles, evenly spaced from the shortest to the longest."""
    ordered = sorted(articles, key=lambda article: article.characters)
    n = min(limit, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * n)] for i in range(n)]


def cut_at_random(articles: Sequence[Article], rng: np.random.Generator) -> list[Article]:
    """Each article with its content cut to a random number of characters, uniform over ``CUT_TO``."""
    lengths = rng.integers(*CUT_TO, size=len(articles), endpoint=True).tolist()
    return [replace(article, content=cut(article.content, n)) for article, n in zip(articles, lengths, strict=True)]


def cut(text: str, length: int) -> str:
    """``text`` up to the last space within ``length`` characters; mid-word where none is in their second half."""
    if len(text) <= length:
        return text
    head = text[:length]
    return head[: head.rfind(" ")] if " " in head[length // 2 :] else head


def _parse_line(line: bytes, number: int, require_label: bool) -> Article:
    record = decoded(line)
    article = Article.from_record(record, require_label)
    return article if article.id is not None else replace(article, id=f"line-{number}")


def _text(value: Any, key: str) -> str:
    if value is None:
        alias = ' (or "text")' if key == "content" else ""
        raise ValueError(f'"{key}"{alias} is missing; add it, or "" if there is none')
    if not isinstance(value, str):
        raise ValueError(f'"{key}" is {_shown(value)}; it must be a string')
    # Half a surrogate pair is a legal JSON escape, but can be neither tokenised nor written back as UTF-8.
    return value.encode("utf-8", "replace").decode("utf-8")


def _name(value: Any) -> str | None:
    # An empty cell of a table is "" in many exports; as an id or a source, all such articles would be one.
    if value is None or not str(value).strip():
        return None
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "..."
