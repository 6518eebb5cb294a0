"""An engine without a model; as a program, each of the processes that share its articles.

Imports neither transformers nor what does, which each of the processes would wait for.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from prefilter_common.articles import load_articles
from prefilter_common.evaluation.run import score_together
from prefilter_common.models.contract import Contract
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.scoring.tokenization import ArticleTokenizer

FULL = 90
PLAIN = Contract(max_length=FULL, temperature=2.0)


class StubEngine:
    """Log-odds that are drawn from the token ids, whatever the padding, and a list of the rows it was given."""

    name, precision, width_step, places = "stub", "fp32", 1, ()

    def __init__(self):
        self.rows = []

    def __call__(self, input_ids, attention_mask):
        found = [tuple(ids[mask == 1]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        self.rows += found
        return np.array([np.random.default_rng(row).normal(scale=2) for row in found])


def main(data, folder):
    tokenizer = ArticleTokenizer(Tokenizer.from_file(f"{folder}/tokenizer.json"), 1)
    scorer = Scorer(StubEngine(), tokenizer, PLAIN)
    scores = score_together(scorer, load_articles(data), batch_size=3)
    found = json.dumps([scores.tolist(), len(scorer.engine.rows)])
    Path(folder, f"rank{os.environ['RANK']}").write_text(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
