"""Articles in, P(commerce) out.

In: a model directory and articles. Out: scores, from whichever engine runs the model; ``Scorer`` is all that a
deployment needs. As a command it scores a JSON Lines file of any size: ``python -m prefilter_common.scoring``. Does not
belong here: labels, and what a score is worth.
"""

from prefilter_common.scoring.scorer import Scorer

__all__ = ["Scorer"]
