import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SPLITS, TRAIN_FLAGS, call
from transformers import TrainingArguments

import train_encoder
from prefilter_common.articles import (
    JOURNALISM,
    Article,
    capped,
    cut,
    cut_at_random,
    format_input,
    labels_of,
    load_articles,
)
from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import load_base_model
from prefilter_common.models.records import model_card
from prefilter_common.processes import own_device
from prefilter_common.runinfo import peak_memory_mib
from prefilter_common.scoring.tokenization import ArticleTokenizer
from prefilter_common.training import fine_tuning
from prefilter_common.training.acceleration import resolve_precision
from prefilter_common.training.data import Source, load, soft_targets
from prefilter_common.training.fine_tuning import weighted_loss
from prefilter_common.training.interruption.saver import CheckpointSaver
from prefilter_common.training.progress import ProgressLog
from prefilter_common.training.recipe import Recipe
from prefilter_common.training.sampling import LengthGroupedSampler, TrainingTexts, padded


class Lengths:
    """Stands for ``TrainingTexts`` where only lengths matter."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def __len__(self):
        return len(self.lengths)

    def start_epoch(self, epoch):
        return self.lengths


def test_every_article_once_an_epoch_in_batches_of_like_length():
    lengths = np.random.default_rng(0).integers(10, 500, size=1_003).tolist()
    sampler = LengthGroupedSampler(Lengths(lengths), batch_size=8, seed=1)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(1_003)) and first != second
    padded = sum(max(lengths[i] for i in first[s : s + 8]) * len(first[s : s + 8]) for s in range(0, 1_003, 8))
    assert padded / sum(lengths) < 1.1
    # long and short batches are mixed, not sorted
    means = [np.mean([lengths[i] for i in first[s : s + 8]]) for s in range(0, 1_000, 8)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


def test_the_order_depends_on_seed_and_epoch_alone():
    orders = [list(LengthGroupedSampler(Lengths(range(100)), 8, seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_base_model_from_the_hub_is_pinned_to_its_commit(tmp_path, monkeypatch, tiny_models):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--me--tiny"
    shutil.copytree(tiny_models["minilm"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    contract = load_base_model("me/tiny", max_length=64, seed=1).contract
    assert (contract.base_model, contract.base_revision) == ("me/tiny", commit)
    metrics = {"train_articles": 1, "val_articles": 1, "best_epoch": 1.0}
    metrics |= dict.fromkeys(("eval_f1", "eval_precision", "eval_recall", "eval_accuracy"), 0.5)
    run = {"data": {}, "command": "python train_encoder.py"}
    assert "\nbase_model: me/tiny\n" in model_card("m", contract, metrics, run)
    # the hub refuses what is no name there
    assert "base_model:" not in model_card("m", replace(contract, base_revision=None), metrics, run)
    packaged = replace(contract, base_model="multilingual-e5-small", base_revision=None)
    assert "\nbase_model: intfloat/multilingual-e5-small\n" in model_card("m", packaged, metrics, run)


def test_what_a_base_model_was_trained_for_does_not_change_the_loss(tmp_path, tiny_models):
    shutil.copytree(tiny_models["minilm"], tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    config |= {"problem_type": "regression", "output_hidden_states": True, "output_attentions": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_base_model(str(tmp_path / "base"), max_length=64, seed=1).model
    outputs = model(input_ids=torch.tensor([[5, 6, 7]] * 3), labels=torch.tensor([0, 1, 1]))
    assert sorted(outputs) == ["logits", "loss"] and model.config.problem_type == "single_label_classification"


def test_a_base_model_with_a_sentencepiece_file_alone(tmp_path, tiny_models):
    """As Multilingual MiniLM may be on the hub: BERT's architecture, XLM-R's tokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [format_input(article) for article in load_articles(SPLITS / "train.jsonl")]
    settings = {"vocab_size": 1_998, "hard_vocab_limit": False, "minloglevel": 2}
    base = shutil.copytree(tiny_models["minilm"], tmp_path / "base")
    for path in base.glob("*token*"):
        path.unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(base / "sentencepiece.bpe"), **settings
    )
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "XLMRobertaTokenizer"}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load_base_model(str(base), max_length=64, seed=1).tokenizer
    ids = ArticleTokenizer.of(tokenizer).encode([Article("Half price today", "Κάτι ελληνικό")])[0]
    assert tokenizer.unk_token_id not in ids and ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("[TITLE] Half price today [CONTENT] Κάτι")


def test_a_file_that_is_read_more_than_once_is_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    source = Source(SPLITS, None, None, False, None, unlabelled=tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is not a regular file, and is read more than once"):
        load(source)


@pytest.mark.parametrize(("visible", "device"), [(1, "cuda:0"), (4, "cuda:3")])
def test_a_process_computes_on_its_own_gpu(monkeypatch, visible, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device() == device


def test_a_tokenizer_written_in_python_is_refused(tmp_path, tiny_models, monkeypatch):
    monkeypatch.setattr("prefilter_common.models.checkpoints.AutoTokenizer.from_pretrained", lambda *_, **__: object())
    with pytest.raises(InputError, match="its tokenizer, object, has no fast version"):
        load_base_model(str(tiny_models["minilm"]), max_length=64, seed=1)


def test_a_launchers_precision_and_other_gpus_do_not_change_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    saver = CheckpointSaver(tmp_path, {}, 1, None)
    recipe = Recipe(precision="fp32", weight_decay=0.3, warmup_ratio=0.4)
    args = fine_tuning._training_arguments(recipe, saver, "f1")
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no" and args._n_gpu == 1
    assert not args.fp16 and not args.bf16
    assert args.weight_decay == 0.3 and args.get_warmup_steps(10) == 4


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_fewer_articles_than_a_pool(n):
    assert sorted(LengthGroupedSampler(Lengths([5] * n), 8, 0)) == list(range(n))


@pytest.fixture(scope="module")
def long_articles():
    words = np.random.default_rng(0).choice(["news", "price", "order", "city"], size=(40, 300))
    return [Article(f"Title {i}", " ".join(row), label=i % 2) for i, row in enumerate(words)]


@pytest.fixture(scope="module")
def training_texts(tiny_encoder, long_articles):
    tokenizer = ArticleTokenizer.of(load_base_model(str(tiny_encoder), max_length=128, seed=1).tokenizer)

    def make(cut_share, seed=1):
        return TrainingTexts(tokenizer, long_articles, labels_of(long_articles), 2_000, cut_share, seed)

    return make


def test_each_epoch_cuts_other_articles_to_other_lengths(training_texts):
    halved = training_texts(0.5)
    whole = training_texts(0.0).start_epoch(0)
    cut = [halved.start_epoch(epoch) < whole for epoch in range(20)]
    assert 0.4 < np.mean(cut) < 0.6 and len({tuple(row) for row in cut}) == 20
    assert np.all(np.mean(cut, axis=0) > 0) and np.all(np.mean(cut, axis=0) < 1)


def test_the_cuts_depend_on_seed_and_epoch_alone(training_texts):
    first, again, other = training_texts(0.5), training_texts(0.5), training_texts(0.5, seed=2)
    for made in (first, other):
        made.start_epoch(0)
    for made in (first, again, other):
        made.start_epoch(3)
    assert first.ids == again.ids != other.ids


def test_without_cuts_every_epoch_is_the_same(training_texts):
    made = training_texts(0.0)
    before = made.start_epoch(0).tolist()
    assert made.start_epoch(1).tolist() == before and made.ids is made.whole
    assert made[3] == {"input_ids": made.whole[3], "labels": 1}


def test_a_cut_ends_at_a_word_and_keeps_the_title(long_articles):
    cut = cut_at_random(long_articles, np.random.default_rng(0))
    for article, short in zip(long_articles, cut, strict=True):
        assert short.title == article.title and short.label == article.label
        assert 55 <= len(short.content) <= 400 and article.content.startswith(short.content + " ")
    assert len({len(short.content) for short in cut}) > 20


def test_a_cut_of_a_text_without_spaces_is_exact():
    assert cut("文" * 100, 60) == "文" * 60 and cut("short", 60) == "short"


def test_the_weighted_loss_counts_journalism_as_often_as_it_costs():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(32, 2, generator=generator), torch.randint(0, 2, (32,), generator=generator)
    usual = torch.nn.functional.cross_entropy
    torch.testing.assert_close(weighted_loss(1.0, labels.numpy())(logits, labels), usual(logits, labels))
    copies = torch.where(labels == JOURNALISM, 5, 1)
    repeated = usual(logits.repeat_interleave(copies, dim=0), labels.repeat_interleave(copies))
    torch.testing.assert_close(weighted_loss(5.0, labels.numpy())(logits, labels), repeated)


def test_the_weighted_loss_is_the_same_however_a_batch_is_divided():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(32, 2, generator=generator), torch.randint(0, 2, (32,), generator=generator)
    loss = weighted_loss(5.0, labels.numpy())
    alone = torch.stack([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(32)])
    torch.testing.assert_close(alone.mean(), loss(logits, labels))


def test_the_weighted_loss_takes_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(8, 2, generator=generator), torch.rand(8, generator=generator)
    log_p = torch.log_softmax(logits, dim=1)
    expected = -((1 - targets) * log_p[:, 0] + targets * log_p[:, 1]).mean()
    torch.testing.assert_close(weighted_loss(1.0, targets.numpy())(logits, targets), expected)
    labels = (targets > 0.5).long()
    loss = weighted_loss(5.0, labels.numpy())
    torch.testing.assert_close(loss(logits, labels.float()), loss(logits, labels))


def test_soft_targets_follow_the_score_unless_the_label_was_corrected():
    articles = [
        Article("t", "c", label=1, commerce_score=10),
        Article("t", "c", label=0, commerce_score=3),
        Article("t", "c", commerce_score=5),
        Article("t", "c", label=0, commerce_score=9.5),  # corrected by hand
        Article("t", "c", label=1),
    ]
    np.testing.assert_allclose(soft_targets(articles), [0.9933, 0.1192, 0.5, 0.0, 1.0], atol=1e-4)


@pytest.mark.parametrize("label_of", [lambda i: int(i >= 50), lambda i: i % 2, lambda i: None])
def test_a_cap_takes_articles_from_the_whole_file_and_of_each_label_its_share(label_of):
    articles = [Article("t", "c", label=label_of(i), id=str(i)) for i in range(100)]
    some = capped(articles, 10)
    places = [int(article.id) for article in some]
    assert len(some) == 10 and places == sorted(places) and places[0] < 10 and places[-1] >= 80
    assert articles[0].label is None or sum(article.label for article in some) == 5
    assert capped(articles, None) is articles and len(capped(articles, 1_000)) == 100 and capped(articles, 0) == []


def test_precision_on_a_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="fp16 needs a CUDA device"):
        resolve_precision(Recipe(precision="fp16"))
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        assert resolve_precision(Recipe()) == expected
    assert resolve_precision(Recipe(precision="bf16")) == "bf16"


def test_an_article_of_20_mb_takes_no_memory(tiny_encoder):
    """Tokenised whole it would take 70 to 300 bytes per character."""
    reset = Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        pytest.skip("only Linux lets a process reset its peak")
    checkpoint = load_base_model(str(tiny_encoder), max_length=64, seed=1)
    articles = [Article("t", "half price today " * 1_200_000, label=1), Article("a", "b", label=0)]
    reset.write_text("5")
    before = peak_memory_mib()
    encoded = TrainingTexts(ArticleTokenizer.of(checkpoint.tokenizer), articles, labels_of(articles), 64)
    assert peak_memory_mib() - before < 400  # the text and its copy after the title are 20 MB each
    texts = [format_input(articles[0])[:10_000], format_input(articles[1])]
    expected = checkpoint.tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    assert encoded.whole == expected and [encoded[i]["labels"] for i in range(2)] == [1, 0]


def test_auto_precision_on_cuda_is_the_recipes(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for native, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda native=native, **_: native)
        assert resolve_precision(Recipe()) == "fp16"
        assert resolve_precision(Recipe(cuda_precision="bf16")) == expected


def test_on_a_gpu_no_step_waits_to_be_timed(monkeypatch):
    clock, waited = iter(range(0, 1000, 250)), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def synchronize(self):
            waited.append(self.at)

        def elapsed_time(self, end):
            return end.at - self.at  # milliseconds

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: waited.append("all"))
    progress = ProgressLog(step_seconds=[1.0])
    for _ in range(2):
        progress.on_step_begin(None, None, None)
        progress.on_step_end(None, None, None)
    assert waited == []
    assert progress.step_seconds == [1.0, 0.25, 0.25] == progress.step_seconds and waited == [250, 750]


def test_a_batch_is_padded_to_its_longest_article_or_to_the_next_step_of_a_graph(tiny_models):
    tokenizer = ArticleTokenizer.of(load_base_model(str(tiny_models["minilm"]), max_length=64, seed=1).tokenizer)

    def width(longest, step):
        rows = [{"input_ids": [5] * n, "labels": n % 2} for n in (3, longest)]
        batch = padded(tokenizer, step, 100, rows)
        assert batch["attention_mask"].sum(dim=1).tolist() == [3, longest] and batch["labels"].tolist() == [
            1,
            longest % 2,
        ]
        return batch["input_ids"].shape[1]

    assert [width(longest, 1) for longest in (7, 64, 100)] == [7, 64, 100]
    assert [width(longest, 64) for longest in (7, 64, 65)] == [64, 64, 100]


@pytest.mark.slow
def test_freed_memory_is_kept_until_it_is_returned():
    script = """
import numpy as np, psutil
from prefilter_common.training.acceleration import keep_freed_memory, return_freed_memory
def mib(): return psutil.Process().memory_info().rss >> 20
keep_freed_memory()
before = mib()
tensors = [np.ones(1 << 20) for _ in range(40)]
last = np.ones(1 << 10)  # after them, so that they are not at the end of what is allocated
del tensors
kept = mib()
return_freed_memory()
print(kept - before, mib() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    assert kept > 250 and returned < 50


def test_each_save_returns_freed_memory(tmp_path, tiny_models, data_dir, monkeypatch):
    saves = []
    monkeypatch.setattr("prefilter_common.training.interruption.saver.return_freed_memory", lambda: saves.append(1))
    flags = ["--model", tiny_models["minilm"], "--output", tmp_path / "m", "--data-dir", data_dir, *TRAIN_FLAGS]
    assert call(train_encoder, flags) == 0
    assert len(saves) == 2
