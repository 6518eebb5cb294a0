import numpy as np
import pytest

from prefilter_common.articles import Article, capped
from prefilter_common.errors import InputError
from prefilter_common.training.fine_tuning import resolve_precision
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


def test_auto_precision_on_cuda_is_the_recipes(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_precision(Recipe()) == "fp16"
    assert resolve_precision(Recipe(cuda_precision="bf16")) == "bf16"
