import json

import numpy as np
import pytest
from conftest import call, write_jsonl

from prefilter_common.articles import Article
from prefilter_common.evaluation import drift
from prefilter_common.evaluation.drift import flag_change, mix_change
from prefilter_common.language import languages
from prefilter_common.scoring import streaming


def streamed(path, flagged, n=1_000):
    rows = [
        {"id": str(i), "score": 0.98 if i < flagged else 0.01 * (i % 7), "is_commerce": i < flagged} for i in range(n)
    ]
    return write_jsonl(path, rows)


def test_the_same_traffic_has_not_changed(tmp_path, capsys):
    files = streamed(tmp_path / "a.jsonl", 52), streamed(tmp_path / "b.jsonl", 55)
    assert call(drift, files) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["changed"] == [] and [row["what"] for row in last["changes"]] == ["flag rate", "scores"]
    assert last["not_compared"] == ["languages", "lengths"]


def test_too_few_rows_tell_nothing_of_a_mix(tmp_path, capsys):
    few = write_jsonl(tmp_path / "few.jsonl", [{"score": score} for score in (0.1, 0.2, 0.3)])
    assert call(drift, [streamed(tmp_path / "a.jsonl", 52), few]) == 0
    (mix,) = [row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["changes"] if row["what"] == "scores"]
    assert mix["interval"] == [0.0, 1e9] and not mix["changed"]


def test_a_region_is_no_other_language(tmp_path, capsys):
    assert languages([Article("", "x", language=tag) for tag in ("en-US", "en_GB", "EN", "zh-Hant-TW")]) == [
        "en", "en", "en", "zh"
    ]  # fmt: skip
    rows = [{"score": i / 100, "characters": i, "language": "en"} for i in range(100)]
    files = [
        write_jsonl(tmp_path / f"{tag}.jsonl", [{**row, "language": tag} for row in rows]) for tag in ("en", "en-US")
    ]
    assert call(drift, files) == 0
    assert "languages: no change shown; 0 (" in capsys.readouterr().out


def test_what_two_outputs_of_the_scorer_cannot_show_is_said(tmp_path, capsys):
    """Those of earlier versions carry neither languages nor lengths."""
    a, b = streamed(tmp_path / "a.jsonl", 52), streamed(tmp_path / "b.jsonl", 55)
    assert call(drift, (a, b)) == 0
    out = capsys.readouterr().out
    assert f'lengths: not compared; {a}, {b}: not all rows have "characters", or "title" and "content"' in out
    assert f'languages: not compared; {a}, {b}: not all rows have "title" and "content", and none has a' in out
    joined = [{"title": "news", "content": f"{i}", "score": 0.1} for i in range(100)]
    assert call(drift, (write_jsonl(tmp_path / "c.jsonl", joined), b)) in (0, 3)
    assert f"lengths: not compared; {b}: " in capsys.readouterr().out


@pytest.mark.slow
def test_two_outputs_of_the_scorer_are_compared_in_everything(tmp_path, trained, capsys):
    articles = [
        {"id": str(i), "title": "News", "content": "word " * (10 + i), "language": "en" if i % 3 else "el"}
        for i in range(60)
    ]
    later = [{**article, "language": "en", "content": article["content"] * 40} for article in articles]
    for name, rows in (("before", articles), ("now", later)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        flags = [trained / "tiny", tmp_path / f"{name}.jsonl", tmp_path / f"{name}_scored.jsonl"]
        assert call(streaming, flags) == 0
    capsys.readouterr()
    assert call(drift, [tmp_path / "before_scored.jsonl", tmp_path / "now_scored.jsonl"]) == 3
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"languages", "lengths"} <= set(last["changed"]) and last["not_compared"] == []


def test_a_row_without_a_language_counts_as_unknown(tmp_path, capsys):
    """Not as a reason to compare no languages."""
    files = []
    for name, spoken in (("before", "en"), ("now", "el")):
        rows = [{"id": str(i), "score": 0.1, "language": spoken if i % 5 else "fr"} for i in range(500)]
        rows[7]["language"] = None
        files.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    assert call(drift, files) == 3
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["changed"] == ["languages"] and last["not_compared"] == ["lengths"]


def test_a_language_forges_no_line(tmp_path, capsys):
    named = "en\nflag rate: no change shown\x1b[8m\u202e"
    rows = [{"id": str(i), "score": 0.9 * (i % 2), "language": named} for i in range(50)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert call(drift, (path, path)) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 5 and "en\\nflag rate" in out and "\x1b" not in out and "\u202e" not in out
    assert json.loads(out.splitlines()[-1])["changes"][-1]["detail"].startswith(named)


@pytest.mark.parametrize("score", [0.0, 0.1, 1.0])
def test_scores_that_were_all_equal_and_are_no_longer_are_a_change(tmp_path, capsys, score):
    def scored(name, value):
        rows = [{"score": value, "is_commerce": False} for _ in range(200)]
        return write_jsonl(tmp_path / name, rows)

    before, now = scored("a.jsonl", score), scored("b.jsonl", 0.9)
    assert call(drift, (before, before)) == 0
    assert call(drift, (before, now)) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["changed"] == ["scores"]


def test_a_line_separator_in_a_title_ends_no_line(tmp_path, capsys):
    rows = [{"title": "one\u2028two\u2029three\x85", "content": f"{i}", "score": 0.1} for i in range(50)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert "\u2028" in path.read_text(encoding="utf-8")
    assert call(drift, (path, path)) == 0 and "lengths: no change shown" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--max-psi", "-1"], ["--unknown"], []])
def test_bad_arguments_are_one_line(tmp_path, capsys, flags):
    path = streamed(tmp_path / "a.jsonl", 5)
    assert call(drift, [path, *([path] if flags else []), *flags]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("error: ")


def test_debug_shows_the_traceback(tmp_path, capsys):
    path = streamed(tmp_path / "a.jsonl", 5)
    assert call(drift, [path, tmp_path / "none.jsonl", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "no such file" in err and "Traceback" in err


def test_less_than_half_of_the_flags_is_a_change_with_its_own_exit_code(tmp_path, capsys):
    assert call(drift, (streamed(tmp_path / "a.jsonl", 52), streamed(tmp_path / "b.jsonl", 21))) == 3
    out = capsys.readouterr().out
    assert "flag rate: CHANGED" in out and "5.20% of 1,000 before, 2.10% of 1,000 now" in out
    assert call(drift, (tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--max-ratio", 3)) == 0


def test_languages_are_filled_in_and_their_mix_and_the_lengths_are_compared(tmp_path, capsys):
    greek = "Η κυβέρνηση ανακοίνωσε σήμερα νέα μέτρα για την οικονομία"
    english = "The government announced new measures for the economy today"
    assert languages([Article(greek, ""), Article(english, ""), Article("", "", language="hu"), Article("1", "")]) == [
        "el", "en", "hu", "unknown",
    ]  # fmt: skip
    before = [{"title": f"{english} {i}", "content": ""} for i in range(300)]
    now = [
        {"title": f"{greek if i % 2 else english} {i}", "content": english * 10 if i % 3 else ""} for i in range(300)
    ]
    files = write_jsonl(tmp_path / "a.jsonl", before), write_jsonl(tmp_path / "b.jsonl", now)
    assert call(drift, files) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["changed"] == ["languages", "lengths"]
    assert call(drift, (files[0], files[0])) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"score": 0.1}\n{"score": "x"}\n', 'line 2: "score" must be a number'),
        (
            '{"score": 0.1}\n{"score": 0.1, "language": ["en"]}\n',
            'line 2: "language" must be a string or null',
        ),
        ('{"title": "t", "language": 3}\n', 'line 1: "language" must be a string or null'),
        ('{"score": 0.1, "is_commerce": "false"}\n', 'line 1: "is_commerce" must be true or false'),
        ('{"score": true}\n', 'line 1: "score" must be a number from 0 to 1'),
        ('{"title": ["a"], "content": {"x": 1}}\n', 'line 1: "title" must be a string or null'),
        ('{"score": 0.1, "characters": -1}\n', 'line 1: "characters" must be a whole number or null'),
        ("{", "line 1: invalid JSON"),
        ('{"score": 0.1, "score": 0.2}', 'line 1: invalid JSON (the key "score" occurs twice'),
        ("", "contains no rows"),
        ('{"title": "only text", "content": ""}', "has nothing to compare with"),
    ],
)
def test_bad_files_are_named(tmp_path, capsys, text, words):
    (tmp_path / "b.jsonl").write_text(text, encoding="utf-8")
    assert call(drift, (streamed(tmp_path / "a.jsonl", 5), tmp_path / "b.jsonl")) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("what", ["articles", "scorer's rows"])
@pytest.mark.parametrize("copies", [1, 40])
def test_one_text_in_many_copies_is_no_change(tmp_path, what, copies):
    """76 flagged rows instead of 50 of 1,000 are, but not where 40 of them are one agency's text."""

    def traffic(name, flagged, same):
        numbers = [0 if i < same else i for i in range(1_000)]
        rows = [{"score": 0.9 if i < flagged else 0.1, "characters": 100 + n, "language": "en", "title": "",
                 "content": f"{n} " * 50} for i, n in enumerate(numbers)]  # fmt: skip
        kept = ("score", "title", "content") if what == "articles" else ("score", "characters", "language")
        return write_jsonl(tmp_path / name, [{key: row[key] for key in kept} for row in rows])

    files = traffic("a.jsonl", 50, 1), traffic("b.jsonl", 76, copies)
    assert call(drift, (*files, "--max-psi", 9)) == (3 if copies == 1 else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "q"), [([0.46, 0.38, 0.12, 0.04], [0.3, 0.5, 0.15, 0.05]), ([0.1] * 10, [0.2] + [0.8 / 9] * 9)]
)
def test_95_of_100_intervals_hold_the_truth(p, q):
    rng, p, q = np.random.default_rng(0), np.array(p), np.array(q)
    index, runs = ((q - p) * np.log(q / p)).sum(), 1_000
    held = 0
    for _ in range(runs):
        draws = (np.repeat(np.arange(len(share)), rng.multinomial(800, share)).tolist() for share in (p, q))
        low, high = mix_change("languages", *draws, (800, 800), 0.2)["interval"]
        held += low <= index <= high
    assert 0.93 <= held / runs <= 0.97


@pytest.mark.slow
def test_equal_traffic_rarely_alarms():
    rng = np.random.default_rng(0)
    sizes = 1_000, 1_000
    alarms = [
        flag_change(rng.random(1_000) < 0.05, rng.random(1_000) < 0.05, sizes, 1.5)["changed"] for _ in range(200)
    ]
    assert np.mean(alarms) <= 0.06


def test_rows_without_a_decision_are_flagged_from_the_threshold_on(tmp_path, capsys):
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", [{"score": 0.3 if i < n else 0.1 + i / 10_000} for i in range(1_000)])
        for name, n in (("a", 50), ("b", 100))
    ]
    assert call(drift, [*files, "--max-psi", 9]) == 0
    assert call(drift, [*files, "--max-psi", 9, "--threshold", 0.3]) == 3
    assert "flag rate: CHANGED; 2 (" in capsys.readouterr().out


def test_the_interval_of_a_ratio_of_flag_rates_encloses_it():
    before, now = np.arange(1_000) < 50, np.arange(1_000) < 150
    found = flag_change(before, now, (1_000, 1_000), 1.5)
    low, high = found["interval"]
    assert found["value"] == pytest.approx(3) and 2 < low < 3 < high < 5
    low, high = flag_change(before, now, (10, 1_000), 1.5)["interval"]
    assert low < 1 < high  # of ten different texts
