"""A smaller model learns what finished models say of many texts (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

Each epoch trains on every article in full and on passages of it, cut to the length of a feed's snippet, that are drawn
anew: a teacher can say something of any text, so that a few articles and unlabelled traffic give as many as are wanted.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prefilter_common.articles import CUT_TO, Article, cut
from prefilter_common.processes import own_device
from prefilter_common.training.sampling import TrainingTexts

Teacher = Callable[[Sequence[Article]], np.ndarray]

# Passages of each article per epoch.
PASSAGES = 3
# Share of the label, or of what --soft-labels makes of its score, in the target of an article that has one. The teacher
# has mostly learnt these labels.
LABEL_SHARE = 0.5


def load_teacher(directories: Sequence[Path], batch_size: int, precision: str) -> Teacher:
    """The mean calibrated P(commerce) of the models in ``directories``: n articles in, (n,) float64 out.

    They read in full, also what they would leave to another model, and compute in bf16 where training does
    (``precision``) and the device has it. Raises InputError for a directory that contains no trained model.
    """
    from prefilter_common.scoring import Scorer
    from prefilter_common.scoring.engines.interface import has_bf16

    device = own_device()
    engine = "pytorch-bf16" if precision == "bf16" and has_bf16("pytorch", device) else "pytorch-fp32"
    scorers = [Scorer.load(directory, device, engine) for directory in directories]
    for scorer in scorers:
        scorer.contract = replace(scorer.contract, max_unknown=None)
    return lambda articles: np.mean([scorer.score(articles, batch_size) for scorer in scorers], axis=0)


class DistillationTexts(TrainingTexts):
    """Articles and passages of them as token ids, with the teacher's scores as targets.

    Args:
        teacher: what the targets come from.
    """

    def __init__(self, teacher: Teacher, *settings: Any):
        super().__init__(*settings)
        self.teacher = teacher
        said = teacher(self.articles)
        known = np.array([(a.label, a.commerce_score) != (None, None) for a in self.articles])
        self.of_whole = np.where(known, LABEL_SHARE * np.array(self.targets) + (1 - LABEL_SHARE) * said, said)

    def start_epoch(self, epoch: int) -> np.ndarray:
        """Draw this epoch's passages and ask the teacher. Returns (n,) tokens of each text."""
        rng = np.random.default_rng((self.seed, epoch, 3))
        drawn = [passage(article, rng) for article in self.articles for _ in range(PASSAGES)]
        self.ids = [*self.whole, *self.encode(drawn)]
        self.targets = [*self.of_whole.tolist(), *self.teacher(drawn).tolist()]
        return np.array([len(ids) for ids in self.ids])

    def __len__(self) -> int:
        return (1 + PASSAGES) * len(self.articles)


def passage(article: Article, rng: np.random.Generator) -> Article:
    """The article with a random passage as its content, from a random word on, its length uniform over ``CUT_TO``."""
    length = int(rng.integers(*CUT_TO, endpoint=True))
    start = int(rng.integers(0, max(1, len(article.content) - length)))
    # From the next word on; mid-word where the words are long, as in text without spaces.
    space = article.content.find(" ", start, start + 40) if start else -1
    return replace(article, content=cut(article.content[max(start, space + 1) :], length))
