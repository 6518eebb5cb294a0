"""What each epoch trains on, and in what order: shuffled batches of articles of similar length, some of them cut."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from prefilter_common.articles import Article, cut_at_random
from prefilter_common.scoring.tokenization import ArticleTokenizer

# Articles are sorted by length within pools of this many batches: enough to drop nearly all padding, few enough
# that batches still differ from epoch to epoch.
POOL_BATCHES = 16


class TrainingTexts(Dataset):
    """Articles as token ids, each epoch with a random share of them cut to the length of a feed's snippet.

    The order of the draws depends on seed and epoch alone, so that a continued run trains on the same texts.

    Args:
        targets: (n,) what the model is to say of each: 0 or 1, or a probability of commerce.
        max_length: tokens read of each article.
        cut_share: the share of articles that are cut, from 0 to 1.
    """

    def __init__(
        self,
        tokenizer: ArticleTokenizer,
        articles: Sequence[Article],
        targets: np.ndarray,
        max_length: int,
        cut_share: float = 0.0,
        seed: int = 0,
    ):
        self.articles, self.targets, self.cut_share, self.seed = articles, targets.tolist(), cut_share, seed
        self.encode = lambda part: tokenizer.encode(part, max_length)
        self.whole = self.encode(articles)
        self.ids = self.whole

    def start_epoch(self, epoch: int) -> np.ndarray:
        """Cut this epoch's share of the articles. Returns (n,) tokens of each."""
        if self.cut_share:
            rng = np.random.default_rng((self.seed, epoch, 1))  # the order of the articles draws from (seed, epoch)
            chosen = np.flatnonzero(rng.random(len(self.articles)) < self.cut_share).tolist()
            self.ids = list(self.whole)
            copies = cut_at_random([self.articles[i] for i in chosen], rng)
            for i, ids in zip(chosen, self.encode(copies), strict=True):
                self.ids[i] = ids
        return np.array([len(ids) for ids in self.ids])

    def __len__(self) -> int:
        return len(self.articles)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "labels": self.targets[i]}


class LengthGroupedSampler(Sampler[int]):
    """Shuffled batches of articles of similar length.

    transformers' own grouping draws from the global random generator, whose state differs between the processes of a
    job after their first dropout, and goes through each pool from its longest batch to its shortest. Here the order
    depends on seed and epoch alone, and the batches of a pool are shuffled.

    Args:
        texts: whose ``start_epoch`` gives the lengths.
        batch_size: articles per optimiser step, on all devices together.
        seed: seeds the shuffling.
        epoch: the epoch of the first pass; each further pass is the next one.
    """

    def __init__(self, texts: TrainingTexts, batch_size: int, seed: int, epoch: int = 0):
        self.texts, self.batch_size, self.seed, self.epoch = texts, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[int]:
        lengths = self.texts.start_epoch(self.epoch)
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = rng.permutation(len(lengths))
        pool = self.batch_size * POOL_BATCHES
        order = np.concatenate([
            part[np.argsort(lengths[part], kind="stable")]
            for part in np.split(order, range(pool, len(order), pool))
        ])  # fmt: skip
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        # An incomplete last batch stays last: elsewhere it would shift the borders of those after it.
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        for i in rng.permutation(len(batches)):
            yield from batches[i].tolist()
        for batch in last:
            yield from batch.tolist()


def padded(
    tokenizer: ArticleTokenizer, step: int, max_length: int, rows: Sequence[dict[str, Any]]
) -> dict[str, torch.Tensor]:
    """A batch of what ``TrainingTexts`` gives; transformers' own collator takes 3 ms."""
    encodings = [row["input_ids"] for row in rows]
    input_ids, attention_mask = map(torch.from_numpy, tokenizer.pad(encodings, step, max_length))
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
