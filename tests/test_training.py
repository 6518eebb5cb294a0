import os
from pathlib import Path

import numpy as np
import pytest

from prefilter_common.articles import Article, capped, format_input
from prefilter_common.errors import InputError
from prefilter_common.models.checkpoints import load_base_model
from prefilter_common.runinfo import peak_memory_mib
from prefilter_common.training.fine_tuning import _encode, resolve_precision
from prefilter_common.training.recipe import Recipe
from prefilter_common.training.sampling import LengthGroupedSampler


def test_every_article_once_an_epoch_in_batches_of_like_length():
    lengths = np.random.default_rng(0).integers(10, 500, size=1_003).tolist()
    sampler = LengthGroupedSampler(lengths, batch_size=8, seed=1)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(1_003)) and first != second
    padded = sum(max(lengths[i] for i in first[s : s + 8]) * len(first[s : s + 8]) for s in range(0, 1_003, 8))
    assert padded / sum(lengths) < 1.1
    # long and short batches are mixed, not sorted
    means = [np.mean([lengths[i] for i in first[s : s + 8]]) for s in range(0, 1_000, 8)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


def test_the_order_depends_on_seed_and_epoch_alone():
    orders = [list(LengthGroupedSampler(list(range(100)), 8, seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("n", [1, 7, 8, 9])
def test_fewer_articles_than_a_pool(n):
    assert sorted(LengthGroupedSampler([5] * n, 8, 0)) == list(range(n))


def test_a_cap_takes_articles_from_the_whole_file():
    articles = [Article("t", "c", label=int(i >= 50)) for i in range(100)]  # sorted by label
    assert sum(a.label for a in capped(articles, 10)) == 5
    assert capped(articles, None) is articles and len(capped(articles, 1_000)) == 100


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
    encoded = _encode(checkpoint, articles)
    assert peak_memory_mib() - before < 400  # the text and its copy after the title are 20 MB each
    texts = [format_input(articles[0])[:10_000], format_input(articles[1])]
    expected = checkpoint.tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    assert [list(ids) for ids in encoded["input_ids"]] == expected and list(encoded["labels"]) == [1, 0]


def test_auto_precision_on_cuda_is_the_recipes(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_precision(Recipe()) == "fp16"
    assert resolve_precision(Recipe(cuda_precision="bf16")) == "bf16"
