import errno
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call, write_jsonl

from prefilter_common.articles import Article, load_articles
from prefilter_common.models.contract import Stage
from prefilter_common.models.directory import read_contract, write_contract
from prefilter_common.outputs import kept_directory
from prefilter_common.scoring import delivery, rows, streaming
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import EngineName
from prefilter_common.scoring.scorer import Scorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory, trained, data_dir):
    """Blocks about half of the articles: what a tiny model decides at 0.5 differs from one processor to the next."""
    scores = np.unique(Scorer.load(trained / "tiny").score(load_articles(data_dir / "train.jsonl")))
    return with_thresholds(tmp_path_factory.mktemp("model"), trained / "tiny", default=float(scores[23:25].mean()))


@pytest.fixture
def source(tmp_path, data_dir):
    """48 articles, as a file that a test may change."""
    return shutil.copy(data_dir / "train.jsonl", tmp_path / "in.jsonl")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 10)


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(path):
    return sorted(p.name for p in path.iterdir())


def error_line(capsys):
    """What the run printed: one line, which starts with ``error:``."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def break_off(monkeypatch, error, chunks=2):
    """Let a run score that many chunks, then raise ``error``. Returns the ids that are scored, as they come."""
    scored, real = [], Scorer.decide

    def decide(self, articles, batch_size):
        if len(scored) == 10 * chunks:
            raise error
        scored.extend(article.id for article in articles)
        return real(self, articles, batch_size)

    monkeypatch.setattr(Scorer, "decide", decide)
    return scored


@pytest.fixture
def broken_off(tmp_path, model, source, monkeypatch, capsys):
    """What an interrupted run leaves: 20 of 48 rows in the output's neighbour."""
    with monkeypatch.context() as patch:
        break_off(patch, KeyboardInterrupt)
        assert call(streaming, [model, source, tmp_path / "out.jsonl"]) == 130
    folder = tmp_path / ".out.jsonl.partial"
    assert f"interrupted: the same command continues with the rows in {folder}\n" in capsys.readouterr().err
    assert names(tmp_path) == [".out.jsonl.partial", "in.jsonl"]
    assert names(tmp_path / ".out.jsonl.partial") == ["rows.jsonl", "run.json"]
    return tmp_path / ".out.jsonl.partial"


def test_rows_in_the_order_of_the_input_with_the_scorers_scores(tmp_path, model, source, capsys):
    articles = load_articles(source)
    write_jsonl(source, [{"id": a.id, "title": a.title, "text": a.content} for a in articles[::-1] + articles[:5]])
    articles = load_articles(source)  # out of the order of their ids, five of which occur twice
    output = tmp_path / "new" / "out.jsonl"
    scorer = Scorer.load(model)
    scores = scorer.score(articles)
    assert call(streaming, [model, source, output, "--batch-size", "4"]) == 0
    rows = read_rows(output)
    assert [row["id"] for row in rows] == [article.id for article in articles]
    assert [row["score"] for row in rows] == pytest.approx(scores.tolist(), abs=1e-5)
    assert rows == [{**row, "score": round(row["score"], 6)} for row in rows]
    flags = [row["is_commerce"] for row in rows]
    assert flags == [scorer.is_commerce(article) for article in articles] and 0 < sum(flags) < 53
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary["articles"] == 53 and summary["commerce"] == sum(flags)
    assert (summary["engine"], summary["stages"]) == ("pytorch-fp32", [])
    assert summary["seconds"] >= 0 and summary["articles_per_second"] > 0 and summary["peak_memory_mib"] > 10
    assert "10/53 (19%) | " in captured.err and " articles/s | eta " in captured.err
    assert "53/53 (100%) | " in captured.err
    assert names(output.parent) == ["out.jsonl"]


@pytest.mark.parametrize("n", [48, 47])
def test_an_input_that_is_replaced_before_it_is_divided_is_not_divided(tmp_path, model, source, monkeypatch, capsys, n):
    """A feed that is rotated: the rows of the one would be in the lines of the other."""
    write = streaming.write_rows

    def rotated(*args):
        summary = write(*args)
        write_jsonl(source, [{"id": f"b{i}", "title": "t", "content": "other"} for i in range(n)])
        return summary

    monkeypatch.setattr(streaming, "write_rows", rotated)
    parts = ["--passed", tmp_path / "passed.jsonl", "--blocked", tmp_path / "blocked.jsonl"]
    for argv in ([], parts):
        original = source.read_bytes()
        assert call(streaming, [model, source, tmp_path / "out.jsonl", *argv]) == 2
        assert "in.jsonl: changed while it was being scored; delete " in error_line(capsys)
        assert names(tmp_path) == [".out.jsonl.partial", "in.jsonl"]
        source.write_bytes(original)
        shutil.rmtree(tmp_path / ".out.jsonl.partial")


def test_an_input_that_is_replaced_while_it_is_divided_is_not_delivered(tmp_path, model, source, monkeypatch, capsys):
    write = delivery.write_parts

    def rotated(*args):
        write(*args)
        write_jsonl(source, [{"id": f"b{i}", "title": "t", "content": "other"} for i in range(48)])

    monkeypatch.setattr(delivery, "write_parts", rotated)
    assert call(streaming, [model, source, "--passed", tmp_path / "p.jsonl"]) == 2
    assert "changed while it was being scored" in error_line(capsys) and not (tmp_path / "p.jsonl").exists()


def test_an_output_on_another_disk_is_complete_and_follows_no_link(tmp_path, model, source, monkeypatch):
    """Where a file cannot be renamed from one to the other."""
    folder, replace = tmp_path / "other", Path.replace
    folder.mkdir()
    (tmp_path / "precious").write_text("mine")
    (folder / ".p.jsonl.partial").symlink_to(tmp_path / "precious")

    def across(self, target):
        if Path(target).parent == folder != self.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", across)
    assert call(streaming, [model, source, tmp_path / "out.jsonl", "--passed", folder / "p.jsonl"]) == 0
    assert (tmp_path / "precious").read_text() == "mine" and names(folder) == ["p.jsonl"]
    assert 0 < len(read_rows(folder / "p.jsonl")) < 48 and not (folder / "p.jsonl").is_symlink()


@pytest.mark.parametrize("paths", [["-", "out.jsonl"], ["in.jsonl", "-"]])
def test_a_closed_standard_stream_is_one_line_before_the_work(tmp_path, model, source, monkeypatch, capsys, paths):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streaming.sys, "stdin", None)
    if "out.jsonl" not in paths:
        monkeypatch.setattr(streaming.sys, "stdout", None)
    assert call(streaming, [model, *paths]) == 2
    assert "standard input or output is closed; name a file instead" in error_line(capsys)
    assert names(tmp_path) == ["in.jsonl"]


def with_thresholds(tmp_path, model, **thresholds):
    """A copy of the model with more operating points."""
    copy = shutil.copytree(model, tmp_path / "copy")
    record = json.loads((copy / "prefilter.json").read_text(encoding="utf-8"))
    record["thresholds"] |= thresholds
    (copy / "prefilter.json").write_text(json.dumps(record), encoding="utf-8")
    assert read_contract(copy).thresholds.keys() == {"default", *thresholds}
    return copy


def test_is_commerce_at_the_named_operating_point(tmp_path, model, source, capsys):
    copy = with_thresholds(tmp_path, model, never=1.0)
    assert call(streaming, [copy, source, tmp_path / "out.jsonl", "--threshold", "never"]) == 0
    assert not any(row["is_commerce"] for row in read_rows(tmp_path / "out.jsonl"))
    capsys.readouterr()
    assert call(streaming, [copy, source, tmp_path / "other.jsonl", "--threshold", "best"]) == 2
    assert f"{copy}: no operating point 'best'; this model has default, never" in error_line(capsys)
    assert names(tmp_path) == ["copy", "in.jsonl", "out.jsonl"]


def test_as_many_threads_as_are_asked_for(tmp_path, model, source, request):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    assert call(streaming, [model, source, tmp_path / "out.jsonl", "--threads", 1]) == 0
    assert torch.get_num_threads() == 1


def test_an_interrupted_run_is_resumed_where_it_was(tmp_path, model, source, broken_off, monkeypatch, capsys):
    rows = broken_off / "rows.jsonl"
    with rows.open("ab") as file:
        file.write('{"id": "é'.encode()[:-1])  # cut off in the middle of a character
    scored = break_off(monkeypatch, AssertionError, chunks=99)
    assert call(streaming, [model, source, tmp_path / "out.jsonl"]) == 0
    captured = capsys.readouterr()
    assert "resuming: 20 of 48 rows exist, continuing with row 21" in captured.err
    assert scored == [article.id for article in load_articles(source)[20:]]
    assert names(tmp_path) == ["in.jsonl", "out.jsonl"]
    assert call(streaming, [model, source, tmp_path / "whole.jsonl"]) == 0
    assert read_rows(tmp_path / "out.jsonl") == read_rows(tmp_path / "whole.jsonl")
    first, second = (json.loads(text.splitlines()[-1]) for text in (captured.out, capsys.readouterr().out))
    assert (first["articles"], first["commerce"]) == (48, second["commerce"])


def test_a_run_killed_after_its_last_row_is_only_renamed(tmp_path, model, source, monkeypatch):
    output, partial = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial"
    with monkeypatch.context() as patch:
        break_off(patch, KeyboardInterrupt, chunks=4)
        assert call(streaming, [model, source, output]) == 130
    expected = [article.id for article in load_articles(source)]
    rows = read_rows(partial / "rows.jsonl")
    write_jsonl(partial / "rows.jsonl", [*rows, *({**rows[0], "id": i} for i in expected[40:])])
    break_off(monkeypatch, AssertionError, chunks=0)
    assert call(streaming, [model, source, output]) == 0
    assert [row["id"] for row in read_rows(output)] == expected


def test_a_killed_process_is_resumed(tmp_path, with_onnx, source):
    output = tmp_path / "out.jsonl"
    script = (
        "import os, signal; from prefilter_common.scoring import rows, scorer, streaming\n"
        "rows.CHUNK, real, calls = 10, scorer.Scorer.decide, []\n"
        "def decide(self, *args):\n"
        "    calls.append(1)\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 3 else real(self, *args)\n"
        "scorer.Scorer.decide = decide\n"
        f"streaming.main([{str(with_onnx)!r}, {str(source)!r}, {str(output)!r}])"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    partial = tmp_path / ".out.jsonl.partial"
    assert not output.exists() and names(partial) == ["rows.jsonl", "run.json"]
    assert len(read_rows(partial / "rows.jsonl")) == 20
    assert call(streaming, [with_onnx, source, output]) == 0
    assert [row["id"] for row in read_rows(output)] == [article.id for article in load_articles(source)]
    assert names(tmp_path) == ["in.jsonl", "out.jsonl"]


def another_model(tmp_path, model, source):
    copy = shutil.copytree(model, tmp_path / "copy")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    return [copy, source], "model.safetensors was"


def another_threshold(tmp_path, model, source):
    copy = with_thresholds(tmp_path, model, best_f1=0.7)
    default = read_contract(model).thresholds["default"]
    return [copy, source, "--threshold", "best_f1"], f'threshold was ["default", {default}], now ["best_f1", 0.7]'


def another_temperature(tmp_path, model, source):
    copy = shutil.copytree(model, tmp_path / "copy")
    record = json.loads((copy / "prefilter.json").read_text(encoding="utf-8"))
    (copy / "prefilter.json").write_text(json.dumps({**record, "temperature": 9.0}), encoding="utf-8")
    return [copy, source], "now 9.0"


def other_stages(tmp_path, model, source):
    copy = shutil.copytree(model, tmp_path / "copy")
    write_contract(copy, replace(read_contract(copy), stages=(Stage("encoder", 1.0, 0.0, 1.0, max_length=16),)))
    recommended = {"engine": "pytorch-fp32", "max_length": 64, "stages": ["16 tokens"]}
    (copy / "cpu_benchmark.json").write_text(json.dumps(recommended), encoding="utf-8")
    return [copy, source], "stages was [], now [{"


def another_input(tmp_path, model, source):
    text = source.read_text(encoding="utf-8")
    source.write_text(text[: text.rindex("a")] + "e" + text[text.rindex("a") + 1 :], encoding="utf-8")  # as long
    return [model, source], "input was"


def no_record(tmp_path, model, source):
    (tmp_path / ".out.jsonl.partial" / "run.json").unlink()
    return [model, source], "run.json cannot be read"


@pytest.mark.parametrize(
    "change", [another_model, another_threshold, another_temperature, other_stages, another_input, no_record]
)
def test_rows_made_with_something_else_are_not_mixed(tmp_path, model, source, broken_off, capsys, change):
    (model_dir, input_file, *flags), message = change(tmp_path, model, source)
    before = (broken_off / "rows.jsonl").read_bytes()
    assert call(streaming, [model_dir, input_file, tmp_path / "out.jsonl", *flags]) == 2
    line = error_line(capsys)
    assert message in line and line.count(" was ") <= 2 and f"{broken_off}: " in line and "delete it" in line
    assert (broken_off / "rows.jsonl").read_bytes() == before and not (tmp_path / "out.jsonl").exists()
    shutil.rmtree(broken_off)
    assert call(streaming, [model_dir, input_file, tmp_path / "out.jsonl", *flags]) == 0


def test_the_recommended_engine_and_what_it_was_converted_to(tmp_path, model, source, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    copy, output = shutil.copytree(model, tmp_path / "copy"), tmp_path / "out.jsonl"
    folder = convert(copy, EngineName("onnxruntime", "fp32"), None)
    recommended = {"engine": "onnxruntime-fp32", "max_length": 32, "stages": []}
    (copy / "cpu_benchmark.json").write_text(json.dumps(recommended), encoding="utf-8")
    with monkeypatch.context() as patch:
        break_off(patch, KeyboardInterrupt)
        assert call(streaming, [copy, source, output]) == 130
    capsys.readouterr()
    assert call(streaming, [copy, source, output, "--engine", "pytorch-fp32"]) == 2
    line = error_line(capsys)
    assert 'engine was "onnxruntime-fp32", now "pytorch-fp32"' in line and "max_length was 32, now 64" in line
    converted = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(converted.replace(b"pytorch", b"pytorcH"))  # the name of who exported it
    assert call(streaming, [copy, source, output]) == 2
    # A damaged engine is not used, so the rows would be PyTorch's.
    assert 'engine was "onnxruntime-fp32", now "pytorch-fp32"' in error_line(capsys)
    (folder / "model.onnx").write_bytes(converted)
    assert call(streaming, [copy, source, output]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["engine"], summary["stages"], summary["articles"]) == ("onnxruntime-fp32", [], 48)


@pytest.mark.parametrize(
    ("line", "number"),
    [('{"id": "other", "score": 0.5, "is_commerce": true}', 2), ("[]", 1), ("\0\0", 21), ('{"id": "x"}', 60)],
)
def test_rows_of_other_articles_are_not_kept(tmp_path, model, source, broken_off, capsys, line, number):
    path = broken_off / "rows.jsonl"
    articles = load_articles(source)
    rows = [json.dumps({"id": a.id, "score": 0.5, "is_commerce": False}) for a in articles]
    rows = [*rows[: number - 1], line]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert call(streaming, [model, source, tmp_path / "out.jsonl"]) == 2
    message = error_line(capsys)
    assert f"{path}, line {min(number, 49)}: " in message and f"delete {broken_off}" in message
    assert not (tmp_path / "out.jsonl").exists()


def meanwhile(monkeypatch, act):
    """Let ``act`` be called in every chunk."""
    real = Scorer.decide
    monkeypatch.setattr(Scorer, "decide", lambda *args: (act(), real(*args))[1])


def test_an_input_that_grows_while_it_is_scored_gives_no_output(tmp_path, model, source, monkeypatch, capsys):
    text = source.read_text(encoding="utf-8")
    meanwhile(monkeypatch, lambda: source.write_text(text + '{"title": "t", "content": "c"}\n', encoding="utf-8"))
    assert call(streaming, [model, source, tmp_path / "out.jsonl"]) == 2
    assert "changed while it was being scored" in error_line(capsys)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path, model, source, monkeypatch, capsys):
    output = tmp_path / "out.jsonl"
    meanwhile(monkeypatch, lambda: output.write_text("another program's"))
    assert call(streaming, [model, source, output]) == 2
    assert "already exists" in error_line(capsys) and output.read_text() == "another program's"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "out.jsonl").write_text("kept"), "out.jsonl: already exists; move it away"),
        (lambda p: os.link(p / "in.jsonl", p / "out.jsonl"), "out.jsonl: is the input"),
        (lambda p: (p / "in.jsonl").unlink(), "in.jsonl: no such file"),
        (lambda p: ((p / "in.jsonl").unlink(), os.mkfifo(p / "in.jsonl")), "in.jsonl: not a file"),
        (lambda p: (p / "in.jsonl").write_text('{"title": "t"}\n'), "in.jsonl: 1 of 1 lines are bad, fix or delete"),
        (lambda p: (p / "in.jsonl").open("ab").write(b"{}\n"), "in.jsonl: 1 of 49 lines are bad, fix or delete"),
        (
            lambda p: (p / ".out.jsonl.partial").write_text(""),
            "out.jsonl: cannot be created (.out.jsonl.partial: File exists)",
        ),
    ],
)
def test_what_is_wrong_with_the_paths_is_said_before_a_model_is_loaded(
    tmp_path, model, source, monkeypatch, capsys, make, message
):
    make(tmp_path)
    monkeypatch.setattr(Scorer, "load", None)
    before = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    assert call(streaming, [model, source, tmp_path / "out.jsonl"]) == 2
    assert message in error_line(capsys)
    assert {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_not_a_model_is_named_and_leaves_nothing(tmp_path, source, capsys):
    assert call(streaming, [tmp_path / "none", source, tmp_path / "out.jsonl"]) == 2
    assert "none: no such model directory" in error_line(capsys)
    assert call(streaming, [tmp_path, source, tmp_path / "out.jsonl"]) == 2
    assert "no config.json" in error_line(capsys)
    assert names(tmp_path) == ["in.jsonl"]


def test_a_second_run_at_once_is_refused(tmp_path, model, source, broken_off, monkeypatch, capsys):
    before = (broken_off / "rows.jsonl").read_bytes()
    with monkeypatch.context() as patch, kept_directory(tmp_path / "out.jsonl"):
        patch.setattr(Scorer, "load", None)
        assert call(streaming, [model, source, tmp_path / "out.jsonl"]) == 2
    assert "another process is writing it; wait, or name another output" in error_line(capsys)
    assert (broken_off / "rows.jsonl").read_bytes() == before
    assert call(streaming, [model, source, tmp_path / "out.jsonl"]) == 0
    assert names(tmp_path) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("ours", ["--passed", "--blocked"])
def test_a_file_that_another_run_is_writing_is_not_replaced(tmp_path, model, source, capsys, ours):
    """It would be under way to --blocked of the one, and --passed of the other."""
    shared = tmp_path / "shared.jsonl"
    with streaming.rows_folder(
        streaming.parse_args([str(part) for part in (model, source, tmp_path / "a.jsonl", "--blocked", shared)])
    ):
        assert call(streaming, [model, source, tmp_path / "b.jsonl", ours, shared]) == 2
    assert f"{shared}: another process is writing it; wait, or name another output" in error_line(capsys)
    assert call(streaming, [model, source, tmp_path / "b.jsonl", ours, shared]) == 0


def test_the_articles_are_divided_with_their_score(tmp_path, model, source, capsys):
    rows_of = {"out": tmp_path / "out.jsonl", "passed": tmp_path / "passed.jsonl", "blocked": tmp_path / "b.jsonl"}
    argv = [model, source, rows_of["out"], "--passed", rows_of["passed"], "--blocked", rows_of["blocked"]]
    with source.open("ab") as end:
        end.write(b'{"title": "\\ud800", "content": "", "page": {"n": [1, 2.50]}, "score": "mine"}\n')
    assert call(streaming, argv) == 0
    scored, passed, blocked = map(read_rows, rows_of.values())
    assert len(passed) > 0 and len(blocked) > 0 and len(passed) + len(blocked) == len(scored) == 49
    for part, decided in ((passed, False), (blocked, True)):
        expected = [row for row in scored if row["is_commerce"] is decided]
        assert [row.pop("prefilter_score") for row in part] == [row["score"] for row in expected]
    originals = read_rows(source)
    key = json.dumps
    for row in originals:
        row["title"] = row["title"].replace("\ud800", "?")
    assert sorted(map(key, passed + blocked)) == sorted(map(key, originals))
    assert names(tmp_path) == ["b.jsonl", "in.jsonl", "out.jsonl", "passed.jsonl"]
    assert json.loads(capsys.readouterr().out)["commerce"] == len(blocked)


def test_only_what_is_asked_for_is_written_and_folders_are_made_for_it(tmp_path, model, source):
    parts = {flag: tmp_path / flag[2:] / "part.jsonl" for flag in ("--passed", "--blocked")}
    assert call(streaming, [model, source, *(word for part in parts.items() for word in part)]) == 0
    assert names(tmp_path) == ["blocked", "in.jsonl", "passed"]
    assert [names(path.parent) for path in parts.values()] == [["part.jsonl"]] * 2


def test_a_run_whose_reader_has_gone_can_be_repeated(tmp_path, model, source, monkeypatch):
    class Closed(io.StringIO):
        @property
        def buffer(self):
            raise BrokenPipeError

    for output in ([], [tmp_path / "out.jsonl"]):
        argv = [model, source, *output, "--passed", tmp_path / "p.jsonl", "--blocked", "-"]
        there = sorted(["in.jsonl", "p.jsonl", *(path.name for path in output)])
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Closed())
            assert call(streaming, argv) == 1
        assert names(tmp_path) == [f".{'out' if output else 'p'}.jsonl.partial", *there]
        assert call(streaming, argv) == 0
        assert names(tmp_path) == there
        (tmp_path / "p.jsonl").unlink()


def test_standard_output_is_delivered_when_all_files_are(tmp_path, model, source, monkeypatch, capsysbinary):
    """What has gone down a pipe would go there again when the run is repeated."""
    out, blocked = tmp_path / "out.jsonl", tmp_path / "b.jsonl"
    argv = [model, source, out, "--passed", "-", "--blocked", blocked]
    assert call(streaming, argv) == 0
    expected = (capsysbinary.readouterr().out, out.read_bytes(), blocked.read_bytes())
    assert expected[0].count(b"\n") == 48 - expected[2].count(b"\n") > 0
    real = delivery._put_in_place
    for failing in (blocked, out):
        out.unlink(missing_ok=True), blocked.unlink(missing_ok=True)

        def full(part, target, record, failing=failing):
            if target == failing:
                raise OSError(28, "No space left on device")
            real(part, target, record)

        with monkeypatch.context() as patch:
            patch.setattr(delivery, "_put_in_place", full)
            assert call(streaming, argv) == 1
        assert capsysbinary.readouterr().out == b""
        assert call(streaming, argv) == 0
        assert (capsysbinary.readouterr().out, out.read_bytes(), blocked.read_bytes()) == expected
        assert names(tmp_path) == ["b.jsonl", "in.jsonl", "out.jsonl"]


def test_it_stands_in_a_pipe(tmp_path, model, source, monkeypatch):
    expected = tmp_path / "expected.jsonl"
    monkeypatch.setattr(rows, "CHUNK", 48)  # all in one, as in the other process
    assert call(streaming, [model, source, "--passed", expected]) == 0
    command = [sys.executable, "-m", "prefilter_common.scoring", str(model), "-", "--passed", "-"]
    with source.open("rb") as articles:
        done = subprocess.run(command, cwd=ROOT, stdin=articles, capture_output=True)
    assert done.returncode == 0 and done.stdout == expected.read_bytes()
    assert json.loads(done.stderr.splitlines()[-1])["articles"] == 48
    bad = subprocess.run(command, cwd=ROOT, input=b'{"title": 1}\n', capture_output=True)
    assert (bad.returncode, bad.stdout) == (2, b"") and b"1 of 1 lines are bad" in bad.stderr
    none = subprocess.run(command, cwd=ROOT, input=b"", capture_output=True)
    assert none.returncode == 2 and none.stderr.startswith(b"error: standard input: ")


def test_one_article_is_counted(tmp_path, model, source, capsys):
    one = tmp_path / "one.jsonl"
    one.write_text(source.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    flags = [model, one, tmp_path / "out.jsonl", "--shadow", model, tmp_path / "d.jsonl"]
    assert call(streaming, flags) == 0
    summary = json.loads(capsys.readouterr().out)
    assert type(summary["commerce"]) is int and summary["differ"] == 0 and type(summary["differ"]) is int


def test_a_shadow_scores_too_and_what_it_disputes_is_written(tmp_path, model, source, capsys):
    """The same weights at another threshold, so that they dispute what lies between the two."""
    threshold = float(np.unique(Scorer.load(model).score(load_articles(source)))[10:12].mean())
    shadow = with_thresholds(tmp_path, model, default=threshold)
    out, differ = tmp_path / "out.jsonl", tmp_path / "differ.jsonl"
    assert call(streaming, [model, source, out, "--shadow", shadow, differ]) == 0
    rows_ = read_rows(out)
    disputed = [row for row in rows_ if row["is_commerce"] != row["shadow_is_commerce"]]
    assert [row["shadow_score"] for row in rows_] == [row["score"] for row in rows_]
    assert [row["shadow_is_commerce"] for row in rows_] == [row["score"] >= threshold for row in rows_]
    assert [row["id"] for row in read_rows(differ)] == [row["id"] for row in disputed] != []
    assert json.loads(capsys.readouterr().out)["differ"] == len(disputed)
    assert len(load_articles(differ)) == len(disputed)  # as evaluation reads its traffic


def test_what_the_shadow_cannot_read_is_not_disputed(tmp_path, model, source, capsys):
    rows_ = [{"title": f"ꙮ{i}", "content": "ꙮꙮ" * 30} for i in range(3)]
    write_jsonl(source, rows_)
    shadow = shutil.copytree(model, tmp_path / "shadow")
    record = json.loads((shadow / "prefilter.json").read_text(encoding="utf-8"))
    (shadow / "prefilter.json").write_text(json.dumps({**record, "max_unknown": 0.1}), encoding="utf-8")
    flagging = with_thresholds(tmp_path, model, default=1e-6)
    out, differ = tmp_path / "out.jsonl", tmp_path / "differ.jsonl"
    assert call(streaming, [flagging, source, out, "--shadow", shadow, differ]) == 0
    found = read_rows(out)
    assert all(row["is_commerce"] and not row["shadow_is_commerce"] and row["shadow_unread"] for row in found)
    assert json.loads(capsys.readouterr().out)["differ"] == 0 and read_rows(differ) == []


def test_a_divided_run_is_resumed(tmp_path, model, source, monkeypatch):
    out, blocked = tmp_path / "out.jsonl", tmp_path / "b.jsonl"
    assert call(streaming, [model, source, out, "--blocked", blocked]) == 0
    expected = (out.read_bytes(), blocked.read_bytes())
    out.unlink(), blocked.unlink()
    with monkeypatch.context() as patch:
        break_off(patch, KeyboardInterrupt)
        assert call(streaming, [model, source, out, "--blocked", blocked]) == 130
    assert names(tmp_path) == [".out.jsonl.partial", "in.jsonl"]
    assert call(streaming, [model, source, out, "--blocked", blocked]) == 0
    assert (out.read_bytes(), blocked.read_bytes()) == expected
    assert names(tmp_path) == ["b.jsonl", "in.jsonl", "out.jsonl"]


def test_a_run_killed_between_two_outputs_is_resumed(tmp_path, model, source, monkeypatch, capsys):
    out, passed, blocked = (tmp_path / name for name in ("out.jsonl", "p.jsonl", "b.jsonl"))
    argv = [model, source, out, "--passed", passed, "--blocked", blocked]
    assert call(streaming, argv) == 0
    expected = [path.read_bytes() for path in (out, passed, blocked)]
    out.unlink(), passed.unlink(), blocked.unlink()
    real = delivery._put_in_place

    def killed(part, target, record):
        real(part, target, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(delivery, "_put_in_place", killed)
        assert call(streaming, argv) == 130
    assert names(tmp_path) == [".out.jsonl.partial", "in.jsonl", "p.jsonl"]
    shutil.copy(passed, blocked)  # somebody else's
    capsys.readouterr()
    assert call(streaming, argv) == 2
    assert "b.jsonl: already exists" in error_line(capsys)
    blocked.unlink()
    assert call(streaming, argv) == 0
    assert [path.read_bytes() for path in (out, passed, blocked)] == expected
    assert names(tmp_path) == ["b.jsonl", "in.jsonl", "out.jsonl", "p.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to write; name an output, --passed or --blocked"),
        (["x.jsonl", "--passed", "x.jsonl"], "x.jsonl: is named for two outputs"),
        (["x.jsonl", "--passed", "./more/../x.jsonl"], "x.jsonl: is named for two outputs"),
        (["-", "--blocked", "-"], "-: is named for two outputs"),
        (["--passed", "in.jsonl"], "in.jsonl: is the input; name another output"),
        (["--shadow", "none", "d.jsonl"], "none: no such model directory"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_a_model_is_loaded(
    tmp_path, model, source, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Scorer, "load", None)
    assert call(streaming, [model, "in.jsonl", *flags]) == 2
    assert message in error_line(capsys)
    assert names(tmp_path) == ["in.jsonl"]


def run_command(*arguments):
    command = [sys.executable, "-m", "prefilter_common.scoring", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_bad_input_is_answered_without_torch(tmp_path, model, source):
    script = (
        "import sys; from prefilter_common.cli import exit_code; from prefilter_common.scoring.streaming import main\n"
        f"code = exit_code(lambda: main([{str(model)!r}, 'no.jsonl', 'out.jsonl']))\n"
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 []\n" and done.stderr == "error: no.jsonl: no such file; check the path\n"


def test_a_chunk_ends_after_so_many_articles_or_characters(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_CHARACTERS", 100)
    lengths = [10] * 12 + [60, 60, 60, 500, 1, 99, 1]
    articles = [Article("", "c" * n, id=str(i), extra={"page": "x"}) for i, n in enumerate(lengths)]
    chunks = list(rows.chunks(iter(articles)))
    assert [len(chunk) for chunk in chunks] == [10, 4, 2, 2, 1]
    assert [article.id for chunk in chunks for article in chunk] == [article.id for article in articles]
    assert not any(article.extra for chunk in chunks for article in chunk)


def test_memory_does_not_grow_with_the_file(tmp_path, with_onnx):
    """Keeping the articles of the longer file would take some 40 MiB more."""
    peaks = []
    for n in (5_000, 15_000):
        path = tmp_path / f"{n}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            # What the model does not read costs no time. Digits differ, so that no two rows share a string.
            file.writelines(f'{{"title": "t", "content": "c {i % 7}", "page": "{i:04000}"}}\n' for i in range(n))
        done = run_command(with_onnx, path, tmp_path / f"{n}.scores.jsonl")
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["articles"] == n
        peaks.append(summary["peak_memory_mib"])
    print(f"peak memory {peaks} MiB")
    assert peaks[1] - peaks[0] < 25
