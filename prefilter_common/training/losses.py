"""What training minimises where articles count differently or targets are probabilities."""

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from prefilter_common.articles import COMMERCE, JOURNALISM


def weighted_log_loss(
    outputs: SequenceClassifierOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | None = None,
    *,
    cost_of_blocking: float,
) -> torch.Tensor:
    """Mean log loss against (n,) targets in [0, 1], journalism weighted ``cost_of_blocking`` times as much."""
    commerce = labels.float()
    journalism = cost_of_blocking * (1 - commerce)
    log_p = torch.nn.functional.log_softmax(outputs.logits.float(), dim=-1)
    return -(journalism * log_p[:, JOURNALISM] + commerce * log_p[:, COMMERCE]).sum() / (journalism + commerce).sum()
