"""What a step computes does not change with the precision of its attention, but for rounding."""

import pytest
import torch

from prefilter_common.models.checkpoints import load_base_model
from prefilter_common.training.cpu import ATTENTION, faster_attention


def losses_and_gradients(model, inputs):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["distilbert", "minilm", "xlm-roberta", "qwen"])
def test_a_step_is_the_same_but_for_rounding(tiny_models, family):
    model = load_base_model(str(tiny_models[family]), max_length=64, seed=1).model.eval()
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[1:, 12:] = 0
    inputs = {"input_ids": torch.randint(5, 200, mask.shape), "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}
    loss, gradient = losses_and_gradients(model, inputs)
    with faster_attention(model, "bf16"):
        assert model.config._attn_implementation == ATTENTION
        ours, own = losses_and_gradients(model, inputs)
    assert ours == pytest.approx(loss, rel=0.02)
    assert torch.nn.functional.cosine_similarity(own, gradient, dim=0) > 0.99
    assert model.config._attn_implementation == "sdpa"


def test_other_precisions_are_left_alone(tiny_models):
    model = load_base_model(str(tiny_models["minilm"]), max_length=64, seed=1).model
    for precision in ("fp32", "fp16"):
        with faster_attention(model, precision):
            assert model.config._attn_implementation == "sdpa"
