"""The order in which articles are trained on: shuffled batches of similar length."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# Articles are sorted by length within pools of this many batches: enough to drop nearly all padding, few enough
# that batches still differ from epoch to epoch.
POOL_BATCHES = 16


class LengthGroupedSampler(Sampler[int]):
    """Shuffled batches of articles of similar length.

    transformers' own grouping draws from the global random generator, whose state differs between the processes of a
    job after their first dropout, and goes through each pool from its longest batch to its shortest. Here the order
    depends on seed and epoch alone, and the batches of a pool are shuffled.

    Args:
        lengths: (n,) tokens of each article.
        batch_size: articles per optimiser step, on all devices together.
        seed: seeds the shuffling.
        epoch: the epoch of the first pass; each further pass is the next one.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: int = 0):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = rng.permutation(len(self.lengths))
        pool = self.batch_size * POOL_BATCHES
        order = np.concatenate([
            part[np.argsort(self.lengths[part], kind="stable")]
            for part in np.split(order, range(pool, len(order), pool))
        ])  # fmt: skip
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        # An incomplete last batch stays last: elsewhere it would shift the borders of those after it.
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        for i in rng.permutation(len(batches)):
            yield from batches[i].tolist()
        for batch in last:
            yield from batch.tolist()
