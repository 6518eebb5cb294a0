"""How long does one article take?"""

import time
from collections.abc import Sequence

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.scoring.scorer import Scorer


def time_single_articles(scorer: Scorer, articles: Sequence[Article]) -> np.ndarray:
    """(n,) seconds that each article takes on its own, tokenising included, as in a pipeline that scores on arrival.

    All articles are read once before, uncounted: the libraries allocate memory and, for each new width, some compile
    kernels.
    """
    time_stages(scorer, articles)
    tokenize, stages = time_stages(scorer, articles)
    return tokenize + stages.sum(1)


def time_stages(scorer: Scorer, articles: Sequence[Article]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds per article, one at a time: (n,) to tokenise, and (n, stages + 1) in each stage and the full read."""
    tokenize, stages = [], []
    for article in articles:
        start = time.perf_counter()
        encodings = scorer.tokenize([article])
        tokenize.append(time.perf_counter() - start)
        stages.append(scorer.read(encodings)[2])  # its result is on the host, so a GPU has finished
    return np.array(tokenize), np.array(stages)
