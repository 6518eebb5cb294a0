import gzip
import json
import tracemalloc

import pytest
from conftest import write_jsonl

from prefilter_common.articles import Article, format_input, load_articles, load_split, read_articles
from prefilter_common.errors import InputError
from prefilter_common.splits.cleaning import read_rows

GOOD = {"title": "t", "content": "c", "label": 1}


def error_of(path, **kwargs):
    with pytest.raises(InputError) as caught:
        load_articles(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_every_field_is_read_and_the_rest_carried_along(tmp_path):
    record = {
        **GOOD,
        "id": "a1",
        "language": "el",
        "source": "s",
        "commerce_score": 9,
        "tags": ["x"],
        "metadata": {"n": 1},
    }
    (article,) = load_articles(write_jsonl(tmp_path / "a.jsonl", [record]))
    assert article == Article("t", "c", 1, "a1", "el", "s", 9, {"tags": ["x"], "metadata": {"n": 1}})
    assert format_input(article) == "[TITLE] t [CONTENT] c"


def test_bom_crlf_blank_lines_text_key_empty_title_and_no_final_newline(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"title": "", "text": "\xc3\xa9"}\r\n\r\n   \n{"title": "b", "content": "", "text": "x"}'
    )
    first, second = load_articles(path)
    assert (first.title, first.content, first.id) == ("", "é", "line-1")
    assert (second.content, second.extra, second.id) == ("", {"text": "x"}, "line-4")


def test_blank_names_are_none(tmp_path):
    record = {**GOOD, "id": "", "language": "", "source": " "}
    articles = load_articles(write_jsonl(tmp_path / "a.jsonl", [record, record]), require_labels=True)
    assert [(a.id, a.language, a.source) for a in articles] == [("line-1", None, None), ("line-2", None, None)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"content": "c", "label": 0}', ['"title" is missing']),
        (b'{"title": 3, "content": "c", "label": 0}', ['"title" is 3', "string"]),
        (b'{"title": "t", "label": 0}', ['"content" (or "text") is missing']),
        (b'{"title": "t", "content": ["c"], "label": 0}', ['"content" is ["c"]']),
        (b'{"title": "t", "content": "c"}', ['"label" is missing', "0 (journalism) or 1 (commerce)"]),
        (b'{"title": "t", "content": "c", "label": 2}', ['"label" is 2']),
        (b'{"title": "t", "content": "c", "label": "1"}', ['"label" is "1"']),
        (b'{"title": "t", "content": "c", "label": true}', ['"label" is true']),
        (b'{"title": "t", "content": "c", "label": 0.5}', ['"label" is 0.5']),
        (b'{"title": "t", "content": "c", "label": 1e400}', ["too large a number"]),
        (b'{"title": "t", "content": "c", "label": 0, "views": NaN}', ["NaN is not JSON; write null"]),
        (b'{"title": "t", "content": "c", "label": 0, "commerce_score": "high"}', ['"commerce_score" is "high"']),
        (b'{"title": "t", ', ["invalid JSON", "column"]),
        (b'["title"]', ["expected a JSON object"]),
        (b"[" * 100_000, ["invalid JSON"]),
        (b'{"title": "\xe9", "content": "c", "label": 0}', ["invalid UTF-8 at byte 12"]),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_the_fix(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    message = error_of(path, require_labels=True)
    assert "1 of 2 lines are bad" in message and "line 2: " in message
    for word in words:
        assert word in message


def test_all_bad_lines_are_counted_and_ten_named(tmp_path):
    message = error_of(write_jsonl(tmp_path / "a.jsonl", [GOOD] + [{"title": "t"}] * 14))
    assert "14 of 15 lines are bad" in message and "and 4 more" in message
    assert [f"line {n}:" in message for n in range(1, 13)] == [False] + [True] * 10 + [False]


def test_labels_are_needed_only_where_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"title": "t", "content": "c", "label": None}])
    assert load_articles(path)[0].label is None
    assert '"label" is missing' in error_of(path, require_labels=True)


def test_joined_files_and_compressed_ones(tmp_path):
    part = '\ufeff{"title": "a", "content": "b"}\n'
    (tmp_path / "joined.jsonl").write_text(part + part, encoding="utf-8")
    assert [article.title for article in read_articles(tmp_path / "joined.jsonl")] == ["a", "a"]
    (tmp_path / "mark.jsonl").write_text("\ufeff\n" + part, encoding="utf-8")
    assert [row.reason for row in read_rows([tmp_path / "mark.jsonl"])] == [None]
    (tmp_path / "feed.jsonl.gz").write_bytes(gzip.compress(part.encode()))
    with pytest.raises(InputError, match=r"line 1: the file is compressed; decompress it first"):
        load_articles(tmp_path / "feed.jsonl.gz")


def test_missing_empty_and_unreadable_files(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    assert "no rows" in error_of(tmp_path / "empty.jsonl")
    assert "cannot be read" in error_of(tmp_path)


def test_missing_split_and_split_of_one_label(tmp_path):
    with pytest.raises(InputError, match=r"train\.jsonl: no such split"):
        load_split(tmp_path, "train")
    write_jsonl(tmp_path / "train.jsonl", [GOOD, GOOD])
    with pytest.raises(InputError, match="every article is commerce"):
        load_split(tmp_path, "train")


def test_half_a_surrogate_pair_becomes_text_that_can_be_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "\\ud83d", "content": "c", "id": "\\udc00"}\n')
    article = load_articles(path)[0]
    assert article.title.encode("utf-8") == b"?" and article.id.encode("utf-8") == b"?"


def test_streaming_holds_one_line_at_a_time(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**GOOD, "content": "x" * 10_000}] * 3_000)  # 30 MB
    tracemalloc.start()
    assert sum(1 for _ in read_articles(path)) == 3_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_ids_that_occur_twice_are_refused_with_labels_and_reported_without(tmp_path, caplog):
    lines = [{"id": i, "title": "t", "content": "c", "label": 0} for i in ("a", "b", "a", 1, "1")]
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    with pytest.raises(InputError, match=r"a\.jsonl: ids occur more than once: a, 1; give each article its own"):
        load_articles(path, require_labels=True)
    assert len(load_articles(path)) == 5
    assert "a.jsonl: ids occur more than once: a, 1" in caplog.text


@pytest.mark.parametrize(
    "line", ['{"title": "a", "content": "c", "title": "b"}', '{"title": "t", "x": {"a": 1, "a": 2}}']
)
def test_a_key_that_occurs_twice_is_a_bad_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1: invalid JSON .the key .* occurs twice in one object"):
        load_articles(path)
