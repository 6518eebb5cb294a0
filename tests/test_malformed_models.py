"""Model directories, adapters, contracts and engines that are damaged or somebody else's: refused in one line."""

import builtins
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import call, write_jsonl
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import evaluate_models
import train_qwen_lora
from prefilter_common.articles import Article, load_articles
from prefilter_common.errors import InputError
from prefilter_common.files import read_record
from prefilter_common.models.checkpoints import Checkpoint, load_base_model, load_checkpoint
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.models.directory import cpu_benchmark_ms, fingerprints, read_contract
from prefilter_common.scoring import streaming
from prefilter_common.scoring.engines import conversion
from prefilter_common.scoring.engines.interface import EngineName
from prefilter_common.scoring.scorer import Scorer

pytestmark = pytest.mark.slow

DEEP = '{"a":' * 100_000
NOT_A_RECORD = {
    "empty": b"", "a list": b"[]", "null": b"null", "cut": b'{"a": ', "deep": DEEP.encode(), "text": b"hello",
    "twice": b'{"a": 1, "a": 2}', "not UTF-8": b'{"a": "\xff"}', "zeros": bytes(100),
}  # fmt: skip
CONTRACT = [
    ("temperature", 0), ("temperature", -1), ("temperature", float("nan")), ("temperature", float("inf")),
    ("temperature", True), ("temperature", "1"), ("temperature", None), ("temperature", 10**400), ("max_length", 0),
    ("max_length", 1), ("max_length", True), ("max_length", 64.0), ("max_length", "64"), ("max_length", None),
    ("max_length", 10**6), ("thresholds", {"default": 2}), ("thresholds", {"default": -0.1}), ("thresholds", {}),
    ("thresholds", {"default": float("nan")}), ("thresholds", {"default": True}), ("thresholds", {"default": "0.5"}),
    ("thresholds", {"default": 0.5, "best_f1": 1.5}), ("thresholds", {"best_f1": 0.5}), ("thresholds", [0.5]),
    ("thresholds", 0.5), ("thresholds", None), ("input_format", "{title}"), ("input_format", 1), ("base_model", 5),
    ("base_revision", []), ("tokenizer_sha256", 5), ("tokenizer_sha256", "0" * 64), ("two_pass", 5),
    ("two_pass", {}), ("two_pass", {"max_length": 16, "temperature": 0, "low": 0.1, "high": 0.9}),
    ("two_pass", {"max_length": 16, "temperature": 1, "low": 0.9, "high": 0.1}), ("treshold", 0.5), ("stages", 5),
    ("max_unknown", 1.5), ("max_unknown", -0.1), ("max_unknown", True), ("max_unknown", "0.3"),
    ("max_unknown", float("nan")), ("stages", {}), ("stages", [5]), ("stages", [{}]), ("stages", None),
    ("stages", [{"reader": "encoder", "max_length": 16, "temperature": 1, "low": 0.9, "high": 0.1}]),
    ("stages", [{"reader": "linear", "temperature": 1, "low": 0.1, "high": 0.9, "coverage": 2, "sha256": ""}]),
]  # fmt: skip


def weights(change, file="model.safetensors"):
    """A damage: ``change`` is given the tensors by name."""

    def damage(path):
        tensors = load_file(path / file)
        change(tensors)
        save_file(tensors, path / file, {"format": "pt"})

    return damage


def record(file, **values):
    """A damage: these values in a JSON file."""

    def damage(path):
        found = json.loads((path / file).read_text(encoding="utf-8"))
        (path / file).write_text(json.dumps({**found, **values}), encoding="utf-8")

    return damage


def content(file, data):
    return lambda path: (path / file).write_bytes(data)


def without(*files):
    return lambda path: [(path / file).unlink() for file in files]


def both(*damages):
    return lambda path: [damage(path) for damage in damages]


def pop(name):
    return lambda tensors: tensors.pop(name)


def fill(name, value):
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


def grow(name):
    return lambda tensors: tensors.update({name: torch.cat([tensors[name]] * 2)})


def cut(file, share=0.5):
    def damage(path):
        data = (path / file).read_bytes()
        (path / file).write_bytes(data[: int(len(data) * share)])

    return damage


EARLIER = without("prefilter.json")  # no hash is recorded
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
SWAPPED = {"id2label": {"0": "commerce", "1": "journalism"}}
LAYER = "bert.encoder.layer.1.output.dense.weight"
ENCODER = {
    **{f"{file}: {kind}": content(file, data) for file in ("config.json", "prefilter.json")
       for kind, data in NOT_A_RECORD.items()},
    **{f"tokenizer.json: {kind}": both(EARLIER, content("tokenizer.json", data))
       for kind, data in NOT_A_RECORD.items()},
    "tokenizer.json is missing": without("tokenizer.json"),
    "no tokenizer": both(EARLIER, without("tokenizer.json", "tokenizer_config.json")),
    "no tokenizer.json": both(EARLIER, without("tokenizer.json")),
    "tokenizer_config.json: deep": content("tokenizer_config.json", DEEP.encode()),
    "tokenizer_config.json: cut": cut("tokenizer_config.json"),
    "no weights": without("model.safetensors"),
    "weights: empty": content("model.safetensors", b""),
    "weights: cut": cut("model.safetensors"),
    "weights: no header": cut("model.safetensors", 0.0001),
    "weights: text": content("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
    "weights: a pickle": lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"),
    "head missing": weights(lambda tensors: [tensors.pop(f"classifier.{kind}") for kind in ("weight", "bias")]),
    "bias missing": weights(pop("classifier.bias")),
    "layer missing": weights(pop(LAYER)),
    "layer left over": record("config.json", num_hidden_layers=1),
    "layer too many": record("config.json", num_hidden_layers=3),
    "layer of another shape": weights(grow(LAYER)),
    "head of another shape": weights(grow("classifier.weight")),
    "another width": record("config.json", hidden_size=64),
    "another vocabulary": record("config.json", vocab_size=77),
    "three labels": both(record("config.json", **LABELS),
                         weights(lambda t: t.update({"classifier.weight": torch.zeros(3, 32),
                                                     "classifier.bias": torch.zeros(3)}))),
    "labels that contradict each other": record("config.json", **SWAPPED),
    "a label beyond": record("config.json", label2id={"commerce": 5, "journalism": 0}),
    "NaN in the head": weights(fill("classifier.weight", float("nan"))),
    "NaN in an embedding": weights(fill("bert.embeddings.word_embeddings.weight", float("nan"))),
    "infinity in a layer": weights(fill(LAYER, float("inf"))),
    "unknown architecture": record("config.json", model_type="martian"),
    "no architecture": record("config.json", model_type=None),
    "a vision model": record("config.json", model_type="vit"),
    "heads that do not divide": record("config.json", num_attention_heads=5),
    "text for a number": record("config.json", num_hidden_layers="two"),
    "positions that are text": record("config.json", max_position_embeddings="many"),
    "a kernel from a hub": record("config.json", attn_implementation="someone/kernel"),
    "a quantised model": record("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
    **{f"contract: {key} {str(value)[:30]}": record("prefilter.json", **{key: value}) for key, value in CONTRACT},
}  # fmt: skip

A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight" for x in "AB")
HEAD = "base_model.model.score.weight"
FILE = "adapter_model.safetensors"
ADAPTER = {
    **{f"adapter_config.json: {kind}": content("adapter_config.json", data) for kind, data in NOT_A_RECORD.items()},
    "no weights": without(FILE),
    "weights: cut": cut(FILE),
    "weights: empty": content(FILE, b""),
    "a pickle": lambda path: (path / FILE).rename(path / "adapter_model.bin"),
    "no head": weights(pop(HEAD), FILE),
    "a matrix missing": weights(pop(B), FILE),
    "a matrix of another rank": weights(grow(A), FILE),
    "all of another rank": record("adapter_config.json", r=8),
    "rank that is text": record("adapter_config.json", r="four"),
    "rank 0": record("adapter_config.json", r=0),
    "other layers": record("adapter_config.json", target_modules=["k_proj"]),
    "fewer layers": record("adapter_config.json", target_modules=["q_proj"]),
    "no such layers": record("adapter_config.json", target_modules=["nothing"]),
    "NaN": weights(fill(B, float("nan")), FILE),
    "NaN in the head": weights(fill(HEAD, float("nan")), FILE),
    "three labels": weights(lambda t: t.update({HEAD: torch.zeros(3, 32)}), FILE),
    "a head of another width": weights(lambda t: t.update({HEAD: torch.zeros(2, 16)}), FILE),
    "another kind of adapter": record("adapter_config.json", peft_type="PROMPT_TUNING"),
    "no kind": record("adapter_config.json", peft_type=None),
    "another task": record("adapter_config.json", task_type="CAUSAL_LM"),
    "no base": record("adapter_config.json", base_model_name_or_path=None),
    "a base that is a number": record("adapter_config.json", base_model_name_or_path=5),
    "a base that is gone": record("adapter_config.json", base_model_name_or_path="nowhere/at-all"),
    "lora_config.json: deep": both(record("adapter_config.json", base_model_name_or_path=None),
                                   content("lora_config.json", DEEP.encode())),
    "tokenizer.json is missing": without("tokenizer.json"),
}  # fmt: skip


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, tiny_models):
    """A LoRA adapter of two labels as training saves it; not to be changed by a test."""
    path = tmp_path_factory.mktemp("adapter") / "adapter"
    base = load_base_model(str(tiny_models["qwen"]), max_length=64, seed=1)
    torch.manual_seed(0)
    model = get_peft_model(base.model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]))
    Checkpoint(model, base.tokenizer, base.contract).save(path)
    return path


@pytest.fixture
def articles_file(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("in") / "a.jsonl", [{"title": "t", "content": "c", "label": 0}])


@pytest.fixture
def score(refused, articles_file, tmp_path):
    """Score with a model directory that must be refused; the rest is as ``refused``."""

    def run(path, words=""):
        return refused(streaming, [path, articles_file, articles_file.parent / "out.jsonl"], path.parent, words=words)

    return run


@pytest.mark.parametrize("case", ENCODER)
def test_an_encoder_that_cannot_be_trusted(classifiers, tmp_path, score, case):
    path = shutil.copytree(classifiers["minilm"], tmp_path / "models" / "m")
    ENCODER[case](path)
    assert str(path) in score(path) and not list(path.parent.glob(".*"))


@pytest.mark.parametrize("case", ADAPTER)
def test_an_adapter_that_cannot_be_trusted(adapter, tmp_path, score, case):
    path = shutil.copytree(adapter, tmp_path / "models" / "m")
    ADAPTER[case](path)
    score(path)


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta", "qwen"])
def test_a_base_model_is_not_a_trained_one(tiny_models, tmp_path, score, family):
    path = shutil.copytree(tiny_models[family], tmp_path / "models" / "m")
    score(path, "not a trained classifier, its weights have no")


def test_a_tokenizer_of_another_model(classifiers, tmp_path, score):
    path = shutil.copytree(classifiers["distilbert"], tmp_path / "models" / "m")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(classifiers["qwen"] / file, path)
    score(path, "tokenizer.json: not the one that the model was trained with")


def test_a_base_model_that_lacks_a_layer_is_not_trained(tiny_models, tmp_path, data_dir, refused):
    import train_encoder

    path = shutil.copytree(tiny_models["minilm"], tmp_path / "base" / "m")
    weights(pop("encoder.layer.1.output.dense.weight"))(path)
    flags = ["--model", path, "--output", tmp_path / "out", "--data-dir", data_dir, "--max-length", "64"]
    refused(train_encoder, flags, path.parent, words="1 missing, such as bert.encoder.layer.1")
    assert not (tmp_path / "out").exists()


def test_what_is_legitimate_still_loads(classifiers, adapter, tmp_path, tiny_models):
    """Buffers of earlier versions, no contract, a contract without the newest keys, one label, labels without names."""
    articles = [Article("a", "b"), Article("c", "d e f")]
    expected = {name: Scorer.load(path, "cpu").score(articles) for name, path in classifiers.items()}
    expected["adapter"] = Scorer.load(adapter, "cpu").score(articles)
    buffers = {
        "distilbert": "distilbert.embeddings.position_ids", "minilm": "bert.embeddings.position_ids",
        "xlm-roberta": "roberta.embeddings.position_ids", "qwen": "model.layers.0.self_attn.rotary_emb.inv_freq",
    }  # fmt: skip
    for name, buffer in buffers.items():
        path = shutil.copytree(classifiers[name], tmp_path / name)
        weights(lambda tensors, buffer=buffer: tensors.update({buffer: torch.arange(4)}))(path)
        (path / "prefilter.json").write_text('{"max_length": 64, "temperature": 1, "thresholds": {"default": 0}}')
        np.testing.assert_allclose(Scorer.load(path, "cpu").score(articles), expected[name], atol=1e-6)
        (path / "prefilter.json").unlink()
        record("config.json", id2label=None, label2id=None)(path)
        np.testing.assert_allclose(Scorer.load(path, "cpu").score(articles), expected[name], atol=1e-6)
    path = shutil.copytree(adapter, tmp_path / "adapter")
    without("prefilter.json", "tokenizer.json", "tokenizer_config.json")(path)
    np.testing.assert_allclose(Scorer.load(path, "cpu").score(articles), expected["adapter"], atol=1e-6)


def test_the_hash_of_the_tokenizer_is_recorded_and_survives_what_writes_the_contract(trained, adapter, tmp_path):
    sha256 = read_contract(trained / "tiny").tokenizer_sha256
    assert sha256 == fingerprints(trained / "tiny")["tokenizer.json"]
    path = shutil.copytree(adapter, tmp_path / "a")
    train_qwen_lora.merge(path, overwrite=False)
    assert load_checkpoint(tmp_path / "a-merged").contract.tokenizer_sha256


MARTIAN = "open(r'{}', 'w').write('executed')\nclass C: pass\n"


@pytest.mark.parametrize("model_type", ["bert", "martian"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_directory_is_neither_executed_nor_offered(
    classifiers, adapter, tiny_models, tmp_path, monkeypatch, model_type, file
):
    """Where a model, a base model and an adapter's base and tokenizer are loaded."""

    def asked(prompt=""):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", asked)
    names = {"AutoConfig": "evil.C", "AutoModel": "evil.C", "AutoModelForSequenceClassification": "evil.C"}
    auto_map = {**names, "AutoTokenizer": ["evil.C", "evil.C"]}
    mark = tmp_path / "executed"

    def spoil(path):
        (path / "evil.py").write_text(MARTIAN.format(mark))
        record(file, auto_map=auto_map)(path)
        record("config.json", model_type=model_type)(path)
        return path

    def attempt(load):
        try:
            load()
        except InputError as error:
            assert "\n" not in str(error)

    model = spoil(shutil.copytree(classifiers["minilm"], tmp_path / "m"))
    base = spoil(shutil.copytree(tiny_models["minilm"], tmp_path / "b"))
    lora = shutil.copytree(adapter, tmp_path / "a")
    record("adapter_config.json", base_model_name_or_path=str(base), auto_mapping={"parent_library": "evil"})(lora)
    record("tokenizer_config.json", auto_map=auto_map)(lora)
    attempt(lambda: load_checkpoint(model))
    attempt(lambda: load_base_model(str(base), 64, 0))
    attempt(lambda: load_checkpoint(lora))
    assert not mark.exists()


class NoNumbers:
    name, precision, width_step, places = "stub", "fp32", 1, ()

    def __init__(self, value, at_most):
        self.value, self.at_most = value, at_most

    def __call__(self, input_ids, attention_mask):
        return np.full(len(input_ids), self.value if input_ids.shape[1] <= self.at_most else 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("at_most", "stages"), [(64, []), (16, [Stage("encoder", 1.0, 0.2, 0.8, max_length=16)])])
def test_a_score_that_is_no_number_is_never_a_decision(classifiers, value, at_most, stages):
    """Neither of the full read nor of a short one."""
    scorer = Scorer.load(classifiers["minilm"], "cpu")
    broken = Scorer(NoNumbers(value, at_most), scorer.tokenizer, scorer.contract, "models/m").reading(stages=stages)
    with pytest.raises(InputError, match=r"^models/m: yields scores that are not numbers with stub"):
        broken.is_commerce(Article("a", "b " * 40))


def test_broken_models_are_error_rows_and_the_others_are_evaluated(classifiers, adapter, tmp_path, data_dir, capsys):
    models = tmp_path / "models"
    shutil.copytree(classifiers["minilm"], models / "good")
    (models / "good" / "cpu_benchmark.json").write_text('{"avg_ms": NaN}')
    for case in ("head missing", "NaN in the head", "weights: cut", "config.json: deep", "three labels"):
        name = case.replace(":", "").replace(" ", "-")
        ENCODER[case](shutil.copytree(classifiers["minilm"], models / name))
    flags = ["--models-dir", models, "--test-data", data_dir / "test.jsonl", "--output", tmp_path / "r"]
    assert call(evaluate_models, flags) == 1
    assert "Traceback" not in capsys.readouterr().err
    results = json.loads((tmp_path / "r" / "evaluation_results.json").read_text())
    rows = {name: row for name, row in results.items() if not name.startswith("_")}
    assert {name for name, row in rows.items() if "error" not in row} == {"good"} and len(rows) == 6
    assert results["good"]["cpu_benchmark_ms"] is None
    assert all(row["error"].startswith("InputError: ") for row in rows.values() if "error" in row)


@pytest.mark.parametrize("name", ["_choice", "_run", "_x"])
def test_a_directory_named_as_a_section_of_the_results(classifiers, tmp_path, data_dir, refused, name):
    models = tmp_path / "models"
    shutil.copytree(classifiers["minilm"], models / name)
    shutil.copytree(classifiers["minilm"], models / "good")
    flags = ["--models-dir", models, "--test-data", data_dir / "test.jsonl", "--output", tmp_path / "r"]
    refused(evaluate_models, flags, models, words=f"{name}: names that begin with _ are reserved")
    assert call(evaluate_models, [*flags, "--models", "good"]) == 0


@pytest.mark.parametrize("text", ["", "[]", DEEP, '{"avg_ms": NaN}', '{"avg_ms": 1e999}', '{"avg_ms": true}',
                                  '{"avg_ms": -1}', '{"avg_ms": "5"}', '{"avg_ms": 1' + "0" * 400 + "}",
                                  '{"avg_ms": 1, "avg_ms": 2}'])  # fmt: skip
def test_a_benchmark_that_is_no_number_is_none(tmp_path, text):
    (tmp_path / "cpu_benchmark.json").write_text(text)
    assert cpu_benchmark_ms(tmp_path, Contract()) is None


@pytest.mark.parametrize("text", ['{"label": 1, "score": NaN}', '{"label": true, "score": 0.5}', "[1]", DEEP,
                                  '{"label": 2, "score": 0.5}', '{"label": 0, "score": 1.5}', '{"label": 0}',
                                  '{"label": 0, "score": "0.5"}'])  # fmt: skip
def test_validation_scores_that_training_did_not_write(classifiers, tmp_path, data_dir, refused, text):
    path = shutil.copytree(classifiers["minilm"], tmp_path / "models" / "m")
    (path / "validation_predictions.jsonl").write_text(text + "\n")
    flags = ["--models-dir", path.parent, "--test-data", data_dir / "test.jsonl", "--output", tmp_path / "r"]
    words = "validation_predictions.jsonl: not written by training"
    refused(evaluate_models, flags, path.parent, code=1, words=words, prefix="m: ")


@pytest.fixture(scope="module")
def converted(classifiers, tmp_path_factory):
    """A model with an OpenVINO engine; not to be changed by a test."""
    pytest.importorskip("openvino")
    path = shutil.copytree(classifiers["minilm"], tmp_path_factory.mktemp("converted") / "m")
    conversion.convert(path, EngineName.parse("openvino-fp32"), None)
    return path


def copy_engine(folder, checkpoint, target, *rest):
    """In place of ``to_openvino``."""
    for file in (*folder.glob("*.xml"), *folder.glob("*.bin")):
        shutil.copy(file, target)
    return {"openvino": read_record(folder / "engine.json")["openvino"]}


def flip(file, at=0.5):
    def damage(folder):
        data = bytearray((folder / file).read_bytes())
        data[int(len(data) * at)] ^= 1
        (folder / file).write_bytes(data)

    return damage


ENGINE = {
    **{f"engine.json: {kind}": content("engine.json", data) for kind, data in NOT_A_RECORD.items()},
    **{f"flipped: {file}": flip(file) for file in ("model.xml", "model.bin", "tokenizer.json")},
    **{f"cut: {file}": cut(file) for file in ("model.xml", "model.bin", "tokenizer.json", "engine.json")},
    **{f"missing: {file}": without(file) for file in ("model.xml", "model.bin", "tokenizer.json", "engine.json")},
    **{f"{key}: {value}": record("engine.json", **{key: value}) for key, value in [
        ("files", {}), ("files", None), ("files", {"model.xml": 5}), ("source", {}), ("source", 5),
        ("pad_token_id", "1"), ("pad_token_id", True), ("max_length", None), ("max_positions", None),
    ]},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", ENGINE)
def test_an_engine_that_cannot_be_trusted(converted, tmp_path, refused, articles_file, case, monkeypatch):
    if case != "missing: model.bin":  # once it is traced anew, which takes longest
        monkeypatch.setattr(conversion, "to_openvino", partial(copy_engine, converted / "openvino-fp32"))
    path = shutil.copytree(converted, tmp_path / "models" / "m")
    ENGINE[case](path / "openvino-fp32")
    argv = [path, articles_file, articles_file.parent / "out.jsonl", "--engine", "openvino-fp32"]
    refused(
        streaming, argv, path.parent, words="has no intact openvino-fp32 made from this checkpoint; python benchmark"
    )
    conversion.convert(path, EngineName.parse("openvino-fp32"), None)
    assert call(streaming, argv) == 0


@pytest.mark.slow
def test_an_engine_with_another_models_tokenizer_or_contract(converted, classifiers, tmp_path, data_dir):
    path = shutil.copytree(converted, tmp_path / "m")
    shutil.copy(classifiers["qwen"] / "tokenizer.json", path / "openvino-fp32")
    assert not conversion.is_current(path / "openvino-fp32")
    path = shutil.copytree(converted, tmp_path / "n")
    record("prefilter.json", max_length=512)(path)
    with pytest.raises(InputError, match="max_length 512, but it reads at most 128 tokens"):
        Scorer.load(path, engine="openvino-fp32")
    assert len(load_articles(data_dir / "test.jsonl")) == 16  # the data are there: the refusal is the model's


def test_a_contract_that_was_valid_stays_valid():
    earlier = {
        "input_format": Contract.input_format, "max_length": 512, "base_model": None, "base_revision": None,
        "temperature": 2, "thresholds": {"default": 0.5, "best_f1": 1, "high_precision": 0}, "two_pass": None,
    }  # fmt: skip
    contract = Contract.from_record(earlier)
    assert contract.tokenizer_sha256 is None and contract.max_unknown is None
