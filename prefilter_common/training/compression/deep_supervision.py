"""Heads that are trained along with a student, on the states at its exits (Lee et al. 2015,
https://arxiv.org/abs/1409.5185), so that its lower layers know more and exits there decide more articles.

They are thrown away: ``benchmark.stages.early_exit`` fits the exits to the scores of the finished model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from prefilter_common.models.encoder_layers import places_to_part

# Of each head's loss, where the model's own counts once.
HEAD_WEIGHT = 0.25
# States are multiplied by it, so that a head, which starts from zero, learns fast enough at the model's rate.
STATE_SCALE = 8.0


class ExitHeads(torch.nn.Module):
    """A linear head for each place where ``model`` may be divided; none where that is nowhere."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.places = places_to_part(model)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(model.config.hidden_size, 2) for _ in self.places)
        for parameter in self.heads.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, hidden_states: Sequence[torch.Tensor], attention_mask: torch.Tensor) -> list[torch.Tensor]:
        """(n, 2) logits of each head.

        Args:
            hidden_states: the embeddings and the states after each layer, (n, t, width).
            attention_mask: (n, t), 1 for tokens and 0 for padding.
        """
        mask = attention_mask[..., None].float()
        means = [(hidden_states[layers] * mask).sum(1) / mask.sum(1) for layers in self.places]
        return [head(STATE_SCALE * mean) for head, mean in zip(self.heads, means, strict=True)]


@contextmanager
def exit_heads(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, heads are a part of ``model``, so that they are optimised and saved in checkpoints with it."""
    model.exit_heads = ExitHeads(model).to(model.device)
    try:
        yield
    finally:
        del model.exit_heads
