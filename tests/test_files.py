import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from prefilter_common import outputs
from prefilter_common.errors import InputError
from prefilter_common.files import parse_json, write_json
from prefilter_common.models.directory import model_directories
from prefilter_common.outputs import new_directory


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_directory_appears_only_when_its_block_ends_well(tmp_path):
    with new_directory(tmp_path / "m") as partial:
        (partial / "f").write_text("new")
        assert not (tmp_path / "m").exists()
    assert names(tmp_path) == ["m"] and names(tmp_path / "m") == ["f"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_the_old_directory_as_it_was(tmp_path, error):
    with new_directory(tmp_path / "m") as partial:
        (partial / "f").write_text("old")
    with pytest.raises(error), new_directory(tmp_path / "m", overwrite=True) as partial:
        (partial / "f").write_text("new")
        raise error
    assert names(tmp_path) == ["m"] and (tmp_path / "m" / "f").read_text() == "old"


def test_a_finished_directory_is_replaced_only_when_told_to(tmp_path):
    for text in ("old", "new"):
        with new_directory(tmp_path / "m", overwrite=text == "new") as partial:
            (partial / text).write_text(text)
    assert names(tmp_path) == ["m"] and names(tmp_path / "m") == ["new"]
    with pytest.raises(InputError, match="pass --overwrite"), new_directory(tmp_path / "m"):
        pass


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replaced_directory_that_cannot_be_deleted_is_named(tmp_path, monkeypatch, caplog, exchange):
    if not exchange:
        monkeypatch.setattr(outputs, "_exchange", lambda first, second: False)
    with new_directory(tmp_path / "m") as partial:
        (partial / "f").write_text("old")
    caplog.clear()
    monkeypatch.setattr(outputs.shutil, "rmtree", lambda path, ignore_errors: None)  # as of a folder that is read-only
    with new_directory(tmp_path / "m", overwrite=True) as partial:
        (partial / "f").write_text("new")
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir() and path.name != "m")
    assert (left / "f").read_text() == "old" and (tmp_path / "m" / "f").read_text() == "new"
    assert caplog.messages == [f"{left}: what was replaced could not be deleted; delete it"]


def test_a_directory_that_another_live_process_writes_is_refused_and_a_dead_ones_cleared(tmp_path):
    script = (
        "import sys; from pathlib import Path; from prefilter_common.outputs import new_directory\n"
        f"with new_directory(Path({str(tmp_path / 'm')!r})) as p:\n"
        "    (p / 'half').write_text('x'); print('ready', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "ready\n"
    with pytest.raises(InputError, match="another process is writing it"), new_directory(tmp_path / "m"):
        pass
    other.kill()
    other.communicate()
    assert names(tmp_path) == [".m.lock", ".m.partial"]
    with pytest.raises(InputError, match="contains no models"):
        model_directories(tmp_path)  # what a killed run leaves is not taken for a model
    with new_directory(tmp_path / "m") as partial:
        (partial / "f").write_text("new")
    assert names(tmp_path) == ["m"] and names(tmp_path / "m") == ["f"]


def test_model_directories_by_name(tmp_path):
    for name in ("b", "a", ".a.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    assert [p.name for p in model_directories(tmp_path)] == ["a", "b"]
    assert [p.name for p in model_directories(tmp_path, ["b"])] == ["b"]
    with pytest.raises(InputError, match="has no c; it has a, b"):
        model_directories(tmp_path, ["a", "c"])
    with pytest.raises(InputError, match="none: no such directory; train a model first"):
        model_directories(tmp_path / "none")
    (tmp_path / "a" / "onnxruntime-int8").mkdir()
    (tmp_path / "a" / "onnxruntime-int8" / "engine.json").write_text("{}")
    with pytest.raises(InputError, match="a: is a model itself; pass the folder that it is in"):
        model_directories(tmp_path / "a")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "r.json"
    write_json(path, {"a": "é"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"} and names(path.parent) == ["r.json"]


def test_a_name_that_is_not_utf_8_is_written_and_read_back(tmp_path):
    name = os.fsdecode(b"spl\xe9its")
    write_json(tmp_path / "run.json", {"file": name})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"file": name}


def test_a_linked_directory_or_file_is_replaced_where_it_really_is(tmp_path):
    with new_directory(tmp_path / "disk" / "m") as partial:
        (partial / "f").write_text("old")
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "m")
    with new_directory(tmp_path / "m", overwrite=True) as partial:
        (partial / "f").write_text("new")
    assert (tmp_path / "m").is_symlink() and (tmp_path / "disk" / "m" / "f").read_text() == "new"
    (tmp_path / "r.json").symlink_to(tmp_path / "disk" / "r.json")
    write_json(tmp_path / "r.json", {})
    assert names(tmp_path / "disk") == ["m", "r.json"] and (tmp_path / "r.json").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_files_follow_the_umask(tmp_path):
    earlier = os.umask(0o027)
    try:
        with new_directory(tmp_path / "m") as partial:
            (partial / "deep").mkdir()
            os.close(os.open(partial / "deep" / "weights", os.O_CREAT, 0o600))
        write_json(tmp_path / "r.json", {})
    finally:
        os.umask(earlier)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "m" / "deep" / "weights", tmp_path / "r.json")]
    assert modes == [0o640, 0o640]


def test_a_complete_output_that_cannot_be_moved_is_kept(tmp_path):
    with pytest.raises(OSError) as failed, new_directory(tmp_path / "m") as partial:
        (partial / "f").write_text("hours of work")
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "g").write_text("another program's")
    assert failed.value.__notes__ == [f"the complete output is in {tmp_path / '.m.partial'}: rename it to m"]
    assert names(tmp_path / "m") == ["g"] and names(tmp_path / ".m.partial") == ["f"]


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', "[" * 100_000, "", "nul"])
def test_json_is_read_strictly(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}')["b"][1] == {"a": 2}


def test_processes_that_check_the_same_new_path_do_not_meet(tmp_path):
    """As the processes of one job do; the folder in which the output will be is missing."""
    check = "import sys; from pathlib import Path; from prefilter_common.outputs import require_free\n"
    check += f"for i in range(300): require_free(Path({str(tmp_path / 'models' / 'm')!r}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", check], env=env, stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in running] == [b""] * 4
    assert [path for path in tmp_path.rglob("*") if path.name != "models"] == []
