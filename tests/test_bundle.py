"""A model directory in one file, and back."""

import io
import json
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prefilter_common.articles import load_articles
from prefilter_common.cli import exit_code
from prefilter_common.errors import InputError
from prefilter_common.files import sha256_of
from prefilter_common.models.bundle import deployed, main, pack, unpack
from prefilter_common.models.contract import Stage
from prefilter_common.models.directory import CONTRACT_FILE, fingerprints
from prefilter_common.scoring import Scorer

CONTRACT = {"input_format": "[TITLE] {title} [CONTENT] {content}", "max_length": 64}


@pytest.fixture
def model(tmp_path):
    """The files of a model directory that the benchmark recommends a converted engine for."""
    folder = tmp_path / "models" / "m"
    contents = {
        "prefilter.json": json.dumps(CONTRACT),
        "cpu_benchmark.json": json.dumps({"engine": "openvino-bf16", "max_length": 64, "stages": []}),
        "run.json": "{}",
        "config.json": "{}",
        "tokenizer.json": "{}",
        "openvino-fp32/engine.json": "{}",
        "openvino-fp32/model.bin": "converted" * 1000,
        "openvino-fp32/tokenizer.json": "{}",
        "onnxruntime-int8/model.onnx": "another",
    }
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    save_file({"weights": np.zeros(1000)}, folder / "model.safetensors")
    engine = folder / "openvino-fp32"
    files = {name: sha256_of(engine / name) for name in ("model.bin", "tokenizer.json")}
    numbers = dict.fromkeys(("pad_token_id", "max_length", "max_positions"), 1)
    made = {"source": fingerprints(folder), "files": files, **numbers}
    (engine / "engine.json").write_text(json.dumps(made), encoding="utf-8")
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewritten(archive, change):
    """Write the archive again, with ``change(name, bytes)`` as the bytes of each file; None leaves it out."""
    with tarfile.open(archive) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(archive, "w") as tar:
        for name, old in members:
            if (new := change(name, old)) is not None:
                info = tarfile.TarInfo(name)
                info.size = len(new)
                tar.addfile(info, io.BytesIO(new))


def test_the_recommended_engine_goes_without_the_checkpoint(model):
    engine = ["openvino-fp32/engine.json", "openvino-fp32/model.bin", "openvino-fp32/tokenizer.json"]
    assert deployed(model) == ["cpu_benchmark.json", *engine, "prefilter.json", "run.json"]


def test_an_archive_is_not_overwritten(model, tmp_path):
    with pytest.raises(InputError, match="--overwrite is for --unpack"):
        main([str(model), str(tmp_path / "x.tar"), "--overwrite"])


def test_a_checkpoint_that_was_cut_short_is_not_packed(model, tmp_path):
    (model / "cpu_benchmark.json").unlink()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:900])
    with pytest.raises(InputError, match=r"m/model.safetensors: damaged or cut"):
        pack(model, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize(
    "recommended",
    [{"engine": "pytorch-fp32"}, {"engine": ".."}, {"engine": "../m"}, {"engine": ""}, {"engine": None}, {}],
)
def test_without_one_the_checkpoint_goes(model, recommended):
    (model / "cpu_benchmark.json").write_text(json.dumps(recommended), encoding="utf-8")
    files = {"cpu_benchmark.json", "config.json", "model.safetensors", "prefilter.json", "run.json", "tokenizer.json"}
    assert set(deployed(model)) == files


def test_no_pickle_is_packed_and_weights_in_one_are_refused(model, tmp_path):
    before = deployed(model)
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.pt", "scaler.pth", "vectorizer.pkl"):
        (model / name).write_bytes(b"\x80\x04.")
    engine = model / "openvino-fp32" / "engine.json"
    record = json.loads(engine.read_text(encoding="utf-8"))
    engine.write_text(json.dumps(record | {"source": fingerprints(model)}), encoding="utf-8")
    assert deployed(model) == before  # the engine's own .bin is OpenVINO's
    (model / "cpu_benchmark.json").unlink()
    assert set(deployed(model)) == {"config.json", "model.safetensors", "prefilter.json", "run.json", "tokenizer.json"}
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"m: has no weights in safetensors, and no others are loaded; write it with"):
        pack(model, tmp_path / "m.tar")
    assert not (tmp_path / "m.tar").exists()


REFUSED = r"openvino-fp32: recommended, but missing, damaged or not made from this checkpoint; python benchmark_inf"


def test_an_engine_that_is_damaged_or_missing_is_not_packed(model, tmp_path):
    with (model / "openvino-fp32" / "model.bin").open("r+b") as weights:
        weights.truncate(100)
    with pytest.raises(InputError, match=REFUSED):
        pack(model, tmp_path / "m.tar")
    shutil.rmtree(model / "openvino-fp32")
    with pytest.raises(InputError, match=REFUSED):
        pack(model, tmp_path / "m.tar")


def test_an_engine_made_from_other_weights_is_not_packed(model, tmp_path):
    (model / "model.safetensors").write_text("other weights", encoding="utf-8")
    with pytest.raises(InputError, match=REFUSED):
        pack(model, tmp_path / "m.tar")
    (model / "model.safetensors").unlink()  # a deployment has none, and can be packed again
    assert pack(model, tmp_path / "m.tar")


def test_an_adapter_is_not_packed_without_its_base(model, tmp_path):
    (model / "adapter_config.json").write_text("{}", encoding="utf-8")
    (model / "cpu_benchmark.json").unlink()
    with pytest.raises(InputError, match=r"m: an adapter without its base model; python train_qwen_lora\.py --merge"):
        pack(model, tmp_path / "m.tar")
    assert not (tmp_path / "m.tar").exists()


@pytest.mark.parametrize("name", ["first_stage.npz", "early_exits.npz"])
def test_the_weights_of_stages_go_with_either(model, name):
    before = deployed(model)
    (model / name).write_bytes(b"weights")
    assert deployed(model) == sorted([*before, name])
    (model / "cpu_benchmark.json").unlink()
    assert name in deployed(model) and "model.safetensors" in deployed(model)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"other")])
def test_a_recommended_stage_is_not_packed_without_its_weights(model, spoil):
    weights = model / "first_stage.npz"
    weights.write_bytes(b"weights")
    stage = asdict(Stage("linear", low=0.1, high=0.9, temperature=1.0, coverage=0.5, sha256=sha256_of(weights)))
    (model / "prefilter.json").write_text(json.dumps({**CONTRACT, "stages": [stage]}), encoding="utf-8")
    recommended = {"engine": "openvino-bf16", "max_length": 64, "stages": ["first stage"]}
    (model / "cpu_benchmark.json").write_text(json.dumps(recommended), encoding="utf-8")
    assert "first_stage.npz" in deployed(model)
    spoil(weights)
    with pytest.raises(
        InputError, match=r"first_stage\.npz: a recommended stage's, but missing or damaged; python bench"
    ):
        deployed(model)


def test_there_and_back(model, tmp_path, capsys):
    archive, target = tmp_path / "new" / "m.tar", tmp_path / "srv" / "m"
    assert main([str(model), str(archive)]) == 0 == main(["--unpack", str(archive), str(target)])
    before = content(model)
    assert content(target) == {name: before[name] for name in deployed(model)}
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == {"output": str(target), "files": 6, "bytes": sum(map(len, content(target).values()))}
    again = tmp_path / "again.tar"
    pack(target, again)
    assert again.read_bytes() == archive.read_bytes()


def test_yesterdays_model_is_put_back_only_where_that_is_asked_for(model, tmp_path):
    archive, target = tmp_path / "m.tar", tmp_path / "m"
    pack(model, archive)
    shutil.copytree(model, target)
    (target / "run.json").write_text('{"new": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="already exists; pass --overwrite"):
        unpack(archive, target)
    assert (target / "run.json").read_text(encoding="utf-8") == '{"new": 1}'
    unpack(archive, target, overwrite=True)
    assert set(content(target)) == set(deployed(model))


def test_yesterdays_model_of_an_earlier_script_is_put_back_too(model, tmp_path):
    """Its bundle has no contract, only an engine and what recommends it."""
    (model / CONTRACT_FILE).unlink()
    pack(model, tmp_path / "m.tar")
    for _ in range(2):
        unpack(tmp_path / "m.tar", tmp_path / "m", overwrite=True)
    assert set(content(tmp_path / "m")) == set(deployed(model)) and CONTRACT_FILE not in deployed(model)


def listed(old, new):
    """A change of the list, which names a file ``new`` instead of ``old``."""
    return lambda name, content: content.replace(old, new) if name == "bundle.json" else content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, old: old[:-1] + b"X" if name.endswith("model.bin") else old,
            "openvino-fp32/model.bin is damaged",
        ),
        (lambda name, old: None if name == "run.json" else old, "run.json is missing; copy the archive again"),
        (lambda name, old: None if name == "bundle.json" else old, "not a bundle, or damaged; copy it again"),
        (listed(b"run.json", b"../x.json"), "not a bundle, or damaged"),
        (listed(b"run.json", b"/x.json"), "not a bundle, or damaged"),
        (listed(b"run.json", b"C:x.json"), "not a bundle, or damaged"),
        (listed(b"run.json", b"..\\\\x.json"), "not a bundle, or damaged"),
        (listed(b'"bytes"', b'"size"'), "not a bundle, or damaged"),
        (lambda name, old: b'{"files": []}' if name == "bundle.json" else old, "not a bundle, or damaged"),
        (lambda name, old: b'{"files": null}' if name == "bundle.json" else old, "not a bundle, or damaged"),
        (lambda name, old: b"null" if name == "bundle.json" else old, "not a bundle, or damaged"),
        (listed(b"run.json", b"ran.json"), "'run.json' is not"),
        (listed(b"run.json", b"r" * 256), "not a bundle, or damaged"),
        (listed(b"run.json", b"prefilter.json/x"), "not a bundle, or damaged"),
        (lambda name, old: old + b" " if name == "run.json" else old, "run.json is damaged"),
    ],
    ids=[
        "damaged",
        "missing",
        "no list",
        "above",
        "absolute",
        "drive",
        "backslash",
        "no size",
        "list",
        "null files",
        "null",
        "unlisted",
        "long name",
        "file and folder",
        "size",
    ],
)
def test_a_bundle_that_is_not_whole_leaves_nothing(model, tmp_path, change, message):
    archive, target = tmp_path / "m.tar", tmp_path / "m"
    pack(model, archive)
    rewritten(archive, change)
    with pytest.raises(InputError) as error:
        unpack(archive, target)
    assert str(error.value).startswith(f"{archive}: ") and message in str(error.value)
    assert {path.name for path in tmp_path.iterdir() if "lock" not in path.name} == {"models", "m.tar"}


def test_headers_without_end_are_refused(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "m.tar").write_bytes(2_000 * header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(InputError, match="not a bundle, or damaged"):
        unpack(tmp_path / "m.tar", tmp_path / "m")


def test_a_file_that_unpacks_to_more_than_its_list_says_is_not_written(tmp_path, monkeypatch):
    """A sparse one of 64 MiB in an archive of 10 KiB."""
    listing = json.dumps({"files": {"config.json": {"bytes": 2, "sha256": ""}}}).encode()
    with tarfile.open(tmp_path / "m.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        first, second = tarfile.TarInfo("bundle.json"), tarfile.TarInfo("config.json")
        first.size = len(listing)
        second.pax_headers = {"GNU.sparse.size": str(64 << 20), "GNU.sparse.map": "0,0", "GNU.sparse.numblocks": "1"}
        tar.addfile(first, io.BytesIO(listing))
        tar.addfile(second)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", only_the_first(tarfile.TarFile.extractfile))
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        unpack(tmp_path / "m.tar", tmp_path / "m")


def only_the_first(extract):
    def extractfile(tar, member):
        assert member.name == "bundle.json"
        return extract(tar, member)

    return extractfile


def test_a_link_is_not_unpacked(model, tmp_path):
    archive = tmp_path / "m.tar"
    pack(model, archive)
    with tarfile.open(archive) as tar:
        manifest = tar.extractfile("bundle.json").read()
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("bundle.json")
        info.size = len(manifest)
        tar.addfile(info, io.BytesIO(manifest))
        link = tarfile.TarInfo("run.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"'run\.json' is not in its list"):
        unpack(archive, tmp_path / "m")


def test_a_truncated_archive_is_refused(model, tmp_path):
    archive = tmp_path / "m.tar"
    pack(model, archive)
    archive.write_bytes(archive.read_bytes()[:9_000])
    with pytest.raises(InputError, match=r"m\.tar: .*copy"):
        unpack(archive, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_what_is_wrong_with_the_paths_is_one_line(model, tmp_path, capsys):
    archive = tmp_path / "m.tar"
    archive.write_text("mine", encoding="utf-8")
    cases = {
        (str(model), str(archive)): "already exists; move it away, or name another output",
        (str(model), str(model / "x.tar")): "is inside the model directory; name a place outside",
        (str(tmp_path), str(tmp_path / "x.tar")): "is not a model directory; check the path",
        ("--unpack", str(archive), str(tmp_path / "m")): "not a bundle, or damaged",
        ("--unpack", str(model), str(tmp_path / "m")): "no such file; check the path",
        ("--unpack", str(tmp_path / "none.tar"), str(tmp_path / "m")): "no such file; check the path",
    }
    for argv, message in cases.items():
        assert exit_code(lambda argv=argv: main(list(argv))) == 2
        assert message in capsys.readouterr().err
    assert archive.read_text(encoding="utf-8") == "mine" and not (tmp_path / "m").exists()


def test_where_its_engine_cannot_run_a_bundle_says_so(model, tmp_path, monkeypatch):
    """With no checkpoint in it, it has nothing to fall back on."""
    pack(model, tmp_path / "m.tar")
    unpack(tmp_path / "m.tar", tmp_path / "m")
    monkeypatch.setattr("prefilter_common.scoring.engines.interface.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"openvino-fp32: openvino is not installed; pip install openvino"):
        Scorer.load(tmp_path / "m")


def test_a_bundle_of_an_engine_is_not_said_to_be_no_model(model, tmp_path):
    pack(model, tmp_path / "m.tar")
    unpack(tmp_path / "m.tar", tmp_path / "m")
    with pytest.raises(InputError, match=r"m: contains no checkpoint, only openvino-fp32; pass --engine with it to"):
        Scorer.load(tmp_path / "m", engine="pytorch-fp32")
    (tmp_path / "m" / "openvino-fp32" / "model.bin").unlink()
    with pytest.raises(InputError, match=r"m: has no intact openvino-fp32 .*; unpack its bundle again$"):
        Scorer.load(tmp_path / "m", engine="openvino-fp32")
    with pytest.raises(InputError, match=r"nowhere: no such model directory; check the path"):
        Scorer.load(tmp_path / "nowhere", engine="pytorch-fp32")


@pytest.mark.slow
def test_an_unpacked_model_scores_as_before(trained, data_dir, tmp_path):
    articles = load_articles(data_dir / "test.jsonl")
    pack(trained / "tiny", tmp_path / "tiny.tar")
    unpack(tmp_path / "tiny.tar", tmp_path / "tiny")
    both = (Scorer.load(path, engine="pytorch-fp32").score(articles) for path in (trained / "tiny", tmp_path / "tiny"))
    np.testing.assert_array_equal(*both)
    earlier = shutil.copytree(tmp_path / "tiny", tmp_path / "earlier")  # as the earlier scripts left a model
    (earlier / CONTRACT_FILE).unlink()
    pack(earlier, tmp_path / "earlier.tar")
    assert unpack(tmp_path / "earlier.tar", tmp_path / "back").keys() >= {"config.json", "model.safetensors"}
    both = (Scorer.load(path, engine="pytorch-fp32").score(articles) for path in (earlier, tmp_path / "back"))
    np.testing.assert_array_equal(*both)
