"""The attention that bf16 training steps use: what it computes, and that models use it as they use their own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from prefilter_common.models.checkpoints import load_base_model
from prefilter_common.training.acceleration import ATTENTION, _attend, faster_attention


def losses_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta", "qwen"])
def test_a_step_in_fp32_is_the_same(tiny_models, family):
    torch.manual_seed(0)
    model = load_base_model(str(tiny_models[family]), max_length=64, seed=1).model.eval()
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[1:, 12:] = 0
    inputs = {"input_ids": torch.randint(5, 200, mask.shape), "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}
    loss, gradient = losses_and_gradients(model, inputs)
    with faster_attention(model, "bf16"):
        assert model.config._attn_implementation == ATTENTION
        ours, own = losses_and_gradients(model, inputs)
    assert ours == pytest.approx(loss, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(own, gradient, dim=0) > 0.9999
    assert model.config._attn_implementation == "sdpa"


def test_it_computes_in_fp32_and_returns_what_it_is_given():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 9, 8, generator=generator).bfloat16() for _ in range(3))
    mask = torch.zeros(2, 1, 9, 9, dtype=torch.bfloat16)
    mask[1, :, :, 5:] = -torch.inf
    mixed, _ = _attend(torch.nn.Module(), query, key, value, mask)
    exact = scaled_dot_product_attention(query.float(), key.float(), value.float(), mask.float())
    assert mixed.equal(exact.transpose(1, 2).bfloat16())


def test_other_precisions_are_left_alone(tiny_models):
    model = load_base_model(str(tiny_models["minilm"]), max_length=64, seed=1).model
    for precision in ("fp32", "fp16"):
        with faster_attention(model, precision):
            assert model.config._attn_implementation == "sdpa"
