"""The head that starts as a linear probe: exact in every family, and a plain checkpoint."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from prefilter_common.articles import labels_of, load_articles
from prefilter_common.models.checkpoints import load_base_model, load_checkpoint
from prefilter_common.models.encoder_layers import Layer, compute_first_token_only, keep_lowest, layers_of
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import EngineName
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.training import probe
from prefilter_common.training.data import Data
from prefilter_common.training.recipe import LP_FT
from prefilter_common.training.run import prepare

FAMILIES = ["distilbert", "minilm", "xlm-roberta"]


@pytest.fixture(params=FAMILIES)
def base(request, tiny_models):
    return load_base_model(str(tiny_models[request.param]), max_length=64, seed=1)


@pytest.fixture
def articles(data_dir):
    return [load_articles(data_dir / f"{name}.jsonl") for name in ("train", "val", "test")]


def states(model, input_ids, attention_mask):
    with torch.no_grad():
        return model.eval().base_model(input_ids=input_ids, attention_mask=attention_mask)[0]


def test_the_added_layer_gives_the_mean_of_the_tokens_that_are_no_padding(base):
    input_ids = torch.randint(5, 100, (3, 20), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 12:] = 0
    before = states(base.model, input_ids, attention_mask)
    mean = (before * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
    wanted = torch.nn.functional.layer_norm(before[:, 0] + probe.MEAN_WEIGHT * mean, before.shape[-1:], eps=1e-12)
    probe.add_mean_layer(base.model)
    torch.testing.assert_close(states(base.model, input_ids, attention_mask)[:, 0], wanted, atol=1e-5, rtol=1e-5)


def test_what_the_added_layer_leaves_free_is_the_same_in_every_run(base):
    """So that the weights of several runs can be averaged."""
    again = copy.deepcopy(base.model)
    for seed, model in ((1, base.model), (2, again)):
        torch.manual_seed(seed)
        probe.add_mean_layer(model)
    one, other = (Layer.of(layers_of(model)[-1]) for model in (base.model, again))
    assert one.key.weight.any() and torch.equal(one.key.weight, other.key.weight)
    assert one.up.weight.any() and torch.equal(one.up.weight, other.up.weight)


def test_a_model_that_is_trained_again_does_not_grow(base, tmp_path):
    probe.add_mean_layer(base.model)
    base.save(tmp_path)
    again = load_base_model(str(tmp_path), max_length=64, seed=1).model
    kept = layers_of(again)[0]
    probe.add_mean_layer(again)
    assert len(layers_of(again)) == again.config.num_hidden_layers == 3 and layers_of(again)[0] is kept
    query = Layer.of(layers_of(again)[-1]).query
    assert not query.weight.any()
    keep_lowest(again, 2)  # the mean layer is not among them
    probe.add_mean_layer(again)
    assert len(layers_of(again)) == 3


def test_the_last_layer_computes_the_first_token_alone_and_the_same_as_before(base):
    input_ids = torch.randint(5, 100, (3, 20), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 12:] = 0
    before = states(base.model, input_ids, attention_mask)
    logits = base.model(input_ids=input_ids, attention_mask=attention_mask).logits
    compute_first_token_only(base.model)
    after = states(base.model, input_ids, attention_mask)
    assert after.shape == (3, 1, before.shape[2])
    torch.testing.assert_close(after, before[:, :1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(base.model(input_ids=input_ids, attention_mask=attention_mask).logits, logits)


def test_a_decoder_computes_every_token(tiny_models):
    qwen = load_base_model(str(tiny_models["qwen"]), max_length=64, seed=1)
    compute_first_token_only(qwen.model)
    assert states(qwen.model, torch.ones(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.long)).shape[1] == 7


def test_the_head_decides_as_the_probe_does(base, articles):
    train, val, test = articles
    probe.add_mean_layer(base.model)
    probe.start_from_probe(base, train, val, LP_FT)
    # The same regression, fitted here on the same features.
    rng = np.random.default_rng((LP_FT.seed, 0, 2))
    known, checked = (probe._features(base, [*part, *probe.cut_at_random(part, rng)], "fp32") for part in (train, val))
    *_, figures = probe.fit_probe(known, np.tile(labels_of(train), 2), checked, np.tile(labels_of(val), 2))
    own = LogisticRegression(C=figures["inverse_penalty"], max_iter=2000)
    own.fit(known - known.mean(axis=0), np.tile(labels_of(train), 2))
    wanted = own.decision_function(probe._features(base, test, "fp32") - known.mean(axis=0))
    scores = Scorer.of(base, "cpu").score(test)
    given = np.log(scores / (1 - scores))
    largest = np.abs(own.decision_function(known - known.mean(axis=0))).max()
    if base.model.config.model_type == "distilbert":
        np.testing.assert_allclose(given, wanted, atol=1e-3)
    else:
        np.testing.assert_allclose(given, largest * np.tanh(wanted / largest), atol=1e-3)
    assert ((given >= 0) == (wanted >= 0)).all()


def test_the_probe_reads_a_bounded_number_of_articles_and_cut_copies_in_the_precision_of_training(
    base, articles, monkeypatch
):
    train, val, _ = articles
    probe.add_mean_layer(base.model)
    read, features = [], probe._features

    def recorded(checkpoint, texts, precision):
        found = features(checkpoint, texts, precision)
        read.append((texts, precision, found))
        return found

    monkeypatch.setattr(probe, "_features", recorded)
    monkeypatch.setattr(probe, "MOST_ARTICLES", 12)
    probe.start_from_probe(base, train, val, replace(LP_FT, precision="bf16"))
    for texts, precision, found in read:
        assert len(texts) == 24 and precision == "bf16"
        for whole, short in zip(texts[:12], texts[12:], strict=True):
            assert whole.title == short.title and whole.content.startswith(short.content)
        assert any(short.content != whole.content for whole, short in zip(texts[:12], texts[12:], strict=True))
        exact = features(base, texts, "fp32")
        assert 0 < np.abs(found - exact).max() < 0.1 * exact.std()


def test_the_probe_and_its_cost_of_blocking_come_from_the_recipe(base, articles, monkeypatch):
    train, val, _ = articles
    probe.add_mean_layer(base.model)
    costs, fit_probe = [], probe.fit_probe
    monkeypatch.setattr(probe, "fit_probe", lambda *args: costs.append(args[4]) or fit_probe(*args))
    probe.start_from_probe(base, train, val, replace(LP_FT, cost_of_blocking=7.0))
    assert costs == [7.0]


def test_the_penalty_is_chosen_on_validation():
    """Labels that only one of a hundred features explains, from few articles: the strongest penalty is not the best."""
    rng = np.random.default_rng(0)
    train, val = rng.normal(size=(60, 100)), rng.normal(size=(2_000, 100))
    labels, val_labels = (features[:, 0] > 0 for features in (train, val))
    weights, intercept, figures = probe.fit_probe(train, labels, val, val_labels)
    losses = {}
    for strength in probe.STRENGTHS:
        other = LogisticRegression(C=strength, max_iter=2000).fit(train - train.mean(axis=0), labels)
        scores = other.predict_proba(val - train.mean(axis=0))[np.arange(2_000), val_labels.astype(int)]
        losses[strength] = -np.log(scores).mean()
    assert figures["inverse_penalty"] == min(losses, key=losses.get)
    assert figures["log_loss"] == pytest.approx(min(losses.values()))
    assert np.argmax(np.abs(weights)) == 0 and weights.shape == (100,)
    assert np.isfinite(intercept)


def test_a_cost_of_blocking_makes_the_probe_call_less_commerce():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    features = rng.normal(size=(500, 4)) + labels[:, None]
    shares = []
    for cost in (1.0, 10.0):
        weights, intercept, _ = probe.fit_probe(features, labels, features, labels, cost)
        shares.append((features @ weights + intercept > 0).mean())
    assert shares[1] < shares[0]


def test_the_lowest_third_and_the_embeddings_are_not_trained(base, articles):
    train, val, _ = articles
    prepare(base, Data(train, val, train, labels_of(train)), LP_FT, fit=False)
    trained = {name for name, weight in base.model.named_parameters() if weight.requires_grad}
    assert not any("embeddings" in name for name in trained)
    first, second, mean = layers_of(base.model)
    assert not any(weight.requires_grad for weight in first.parameters())
    assert all(weight.requires_grad for layer in (second, mean) for weight in layer.parameters())


def test_a_family_without_a_probe_starts_from_a_random_head_and_says_so(tiny_models, articles, caplog):
    train, val, _ = articles
    qwen = load_base_model(str(tiny_models["qwen"]), max_length=64, seed=1)
    before = qwen.model.score.weight.clone()
    prepare(qwen, Data(train, val, train, labels_of(train)), LP_FT, fit=True)
    assert "no probe for models of type qwen2" in caplog.text
    assert torch.equal(qwen.model.score.weight, before) and qwen.model.config.num_hidden_layers == 2
    assert not qwen.model.get_input_embeddings().weight.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino-fp32", "onnxruntime-fp32"])
def test_it_loads_and_converts_as_any_other_checkpoint(base, articles, tmp_path, engine):
    pytest.importorskip(engine.split("-")[0])
    train, val, test = articles
    probe.add_mean_layer(base.model)
    probe.start_from_probe(base, train, val, LP_FT)
    base.save(tmp_path)
    expected = Scorer.of(base, "cpu").score(test)
    assert load_checkpoint(tmp_path).model.config.num_hidden_layers == base.model.config.num_hidden_layers == 3
    np.testing.assert_allclose(Scorer.load(tmp_path, device="cpu").score(test), expected, atol=1e-6)
    convert(tmp_path, EngineName.parse(engine), None)
    np.testing.assert_allclose(Scorer.load(tmp_path, engine=engine).score(test), expected, atol=1e-4)
