"""Lines of scored JSON Lines files in, articles with repaired texts out, or the reason a line is discarded."""

import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import ftfy
from inscriptis import get_text

from prefilter_common.articles import COMMERCE, JOURNALISM, Article
from prefilter_common.errors import InputError
from prefilter_common.files import decoded, numbered_lines

INVALID, NO_TEXT, NO_SCORE, MIDDLE, REPEATED = (
    "invalid line", "missing text", "no score", "score in the middle", "repeated row",
)  # fmt: skip
MOJIBAKE, HTML, BROKEN_CHARACTERS, LABEL, ID = "mojibake", "html", "characters", "label", "id"
# ``read_articles`` gives this to an article without an id. It identifies a line of one file, not an article.
LINE_ID = re.compile(r"line-\d+")
# Fix only errors: typographic quotes and Chinese full-width punctuation are correct.
FTFY = ftfy.TextFixerConfig(
    unescape_html=False, fix_encoding=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False
)
# Tags that feeds leave behind. Attributes must have values, so that "a <b and c> d" is not a tag.
TAG_NAMES = (
    "a|abbr|article|aside|b|blockquote|body|br|center|code|dd|del|div|dl|dt|em|figcaption|figure|font|footer|form|"
    "h[1-6]|head|header|hr|html|i|iframe|img|ins|li|link|main|mark|meta|nav|ol|p|pre|q|s|script|section|small|source|"
    "span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|time|title|tr|u|ul|video"
)
TAG = re.compile(
    rf"""</?(?:{TAG_NAMES})(?:\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?>|<!--.*?-->""", re.I | re.S
)
ENTITY = re.compile(r"&(?:#\d{2,6}|#x[\da-f]{2,5}|[a-z]{2,8}\d?);", re.I)


@dataclass(frozen=True)
class ScoreRule:
    """The two scores, 0 to 10, from which an article is commerce and below which it is journalism."""

    commerce_from: float = 7.0
    journalism_below: float = 3.0

    def __post_init__(self) -> None:
        if self.journalism_below > self.commerce_from:
            raise InputError("--journalism-below is above --commerce-from, so some scores would be both; lower it")

    def label(self, score: float | None) -> int | None:
        """The label of a score; None between the two thresholds, or without a score."""
        if score is None:
            return None
        if score >= self.commerce_from:
            return COMMERCE
        return JOURNALISM if score < self.journalism_below else None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file: its article, or the ``reason`` it is discarded; ``detail`` explains that or a repair."""

    file: str
    line: int
    article: Article | None
    reason: str | None = None
    detail: str = ""
    repairs: tuple[str, ...] = ()

    @property
    def kept(self) -> Article | None:
        """The article, unless the row is discarded."""
        return self.article if self.reason is None else None

    def discard(self, reason: str, detail: str = "") -> "Row":
        """The same row, marked as discarded."""
        return replace(self, reason=reason, detail=detail)


class RowFate(TypedDict, total=False):
    """Why a row is discarded, and what explains that or a repair."""

    discarded: str
    detail: str


class CleaningRow(RowFate):
    """One line of ``cleaning.jsonl``: a row that was discarded or changed."""

    file: str
    line: int
    id: str | None
    repaired: list[str]


def read_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """One cleaned row per non-blank line. Raises InputError for a file that is empty or cannot be read."""
    for path in paths:
        for number, line in numbered_lines(path):
            yield read_row(str(path), number, line)


def read_row(file: str, number: int, line: bytes) -> Row:
    """Decode, check and clean one line. An article without an id of its own gets one derived from its text."""
    try:
        record = decoded(line)
        if isinstance(record, dict) and not _has_text(record):
            return Row(file, number, None, NO_TEXT, "neither title nor content")
        article = Article.from_record(record)
        to_json(article)  # raises ValueError for NaN and lone surrogates, which Python reads but could not write back
    except (ValueError, RecursionError) as error:
        return Row(file, number, None, INVALID, str(error))
    article, repairs = clean(article)
    if not re.search(r"\w", article.title + article.content):
        return Row(file, number, None, NO_TEXT, "nothing but punctuation or HTML", repairs)
    if not has_own_id(article):
        article = replace(article, id=f"text-{text_hash(article)[:16]}")
    return Row(file, number, article, repairs=repairs)


def clean(article: Article) -> tuple[Article, tuple[str, ...]]:
    """The article with title and content repaired, and the repairs that changed it."""
    title, repairs = clean_text(article.title)
    content, more = clean_text(article.content)
    if HTML in repairs:  # line breaks in a title come from its tags
        title = " ".join(title.split())
    return replace(article, title=title, content=content), tuple(sorted(repairs | more))


def clean_text(text: str) -> tuple[str, set[str]]:
    """The text without mojibake, HTML leftovers and broken characters, and which of these it had."""
    repairs = set()
    decoded = ftfy.fix_encoding(text)
    if decoded != text:
        repairs.add(MOJIBAKE)
    plain = strip_html(decoded)
    if plain != decoded:
        repairs.add(HTML)
    fixed = ftfy.fix_text(plain, FTFY)
    if fixed != plain:
        repairs.add(BROKEN_CHARACTERS)
    return fixed.strip(), repairs


def strip_html(text: str) -> str:
    """The text without tags and entities. If it has tags, blank lines stay and single line breaks become spaces."""
    # Some feeds escape twice: "&amp;lt;p&amp;gt;" is a tag.
    for _ in range(2):
        text = ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    if not TAG.search(text):
        return text
    # Escape everything but the tags: the parser would drop all that follows "p <q".
    pieces, end = [], 0
    for tag in TAG.finditer(text):
        pieces += [html.escape(text[end : tag.start()], quote=False).replace("\n\n", "<br><br>"), tag[0]]
        end = tag.end()
    pieces.append(html.escape(text[end:], quote=False).replace("\n\n", "<br><br>"))
    lines = get_text(f"<body>{''.join(pieces)}</body>").splitlines()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in lines)).strip()


def has_own_id(article: Article) -> bool:
    """Whether the article has an id that identifies it, and not just a line of some file."""
    return article.id is not None and not LINE_ID.fullmatch(article.id)


def text_hash(article: Article) -> str:
    """sha256 of title and content, in hexadecimal."""
    return hashlib.sha256(f"{article.title}\n{article.content}".encode()).hexdigest()


def to_record(article: Article) -> dict[str, Any]:
    """The article as a JSON object: the fields that it has, then all other keys of its input row."""
    names = ("id", "title", "content", "label", "commerce_score", "language", "source")
    fields = {name: getattr(article, name) for name in names}
    return {**{name: value for name, value in fields.items() if value is not None}, **article.extra}


def to_json(article: Article) -> str:
    """The article as one line of JSON. Raises ValueError for what JSON in UTF-8 cannot represent."""
    line = json.dumps(to_record(article), ensure_ascii=False, allow_nan=False) + "\n"
    line.encode()
    return line


def kept_articles(rows: Sequence[Row]) -> tuple[list[int], list[Article]]:
    """Indices of the rows that are not discarded, and their articles."""
    kept = [(i, article) for i, row in enumerate(rows) if (article := row.kept) is not None]
    return [i for i, _ in kept], [article for _, article in kept]


def all_articles(rows: Iterable[Row]) -> list[Article]:
    """The articles of a split's rows. Raises InputError for one that is discarded, whose article would be lost."""
    rows = list(rows)
    for row in rows:
        if row.reason is not None:
            raise InputError(f"{row.file}, line {row.line}: {row.reason}: {row.detail}; correct or delete it")
    return kept_articles(rows)[1]


def canonical(article: Article) -> str:
    """The article as text to sort by, the same for every order of its keys."""
    return json.dumps(to_record(article), ensure_ascii=False, sort_keys=True)


def json_lines(articles: Iterable[Article]) -> bytes:
    """One JSON object per line, UTF-8."""
    return "".join(map(to_json, articles)).encode()


def _has_text(record: dict) -> bool:
    texts = [record.get(key) for key in ("title", "content", "text")]
    return any(text is not None and (not isinstance(text, str) or text.strip()) for text in texts)


def report_of(row: Row) -> CleaningRow:
    """What ``cleaning.jsonl`` says of a row that was discarded or changed."""
    fate: RowFate = {}
    if row.reason:
        fate["discarded"] = row.reason
    if row.reason or row.detail:
        fate["detail"] = row.detail
    article_id = row.article.id if row.article else None
    return {"file": row.file, "line": row.line, "id": article_id, **fate, "repaired": list(row.repairs)}
