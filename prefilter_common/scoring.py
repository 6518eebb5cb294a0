"""Articles -> P(commerce), with any model directory."""

import inspect
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce

from prefilter_common.articles import Article, format_input
from prefilter_common.checkpoints import Checkpoint, commerce_index, load_checkpoint
from prefilter_common.cli import InputError

# Articles that are tokenised at once: enough to find ones of like length, few enough to keep memory constant.
CHUNK = 4096

Encoding = dict[str, list[int]]


class Scorer:
    """Scores articles with one classifier: tokenise, forward pass, probability.

    >>> scorer = Scorer.load("models/multilingual-e5-small")
    >>> scorer.score([Article(title="Half price today", content="Order now ...")])
    array([0.98])
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device):
        self.checkpoint = checkpoint
        self.device = device
        self.model = checkpoint.model.to(device).eval()
        # DistilBERT takes no token_type_ids, yet its tokenizer may emit them.
        accepted = inspect.signature(self.model.forward).parameters
        self._input_names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in accepted]
        self._commerce = commerce_index(self.model.config)

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device | None = None) -> "Scorer":
        """Load a model directory onto ``device`` (default: CUDA where there is one, else the CPU)."""
        if device is None:
            local_rank = os.environ.get("LOCAL_RANK", "0")
            device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
        return cls(load_checkpoint(Path(directory)), torch.device(device))

    def tokenize(self, articles: Sequence[Article]) -> list[Encoding]:
        """Token ids of each article, cut at the contract's ``max_length``, not padded."""
        texts = [format_input(article) for article in articles]
        encoded = self.checkpoint.tokenizer(texts, truncation=True, max_length=self.checkpoint.contract.max_length)
        names = [name for name in self._input_names if name in encoded]
        return [
            dict(zip(names, values, strict=True)) for values in zip(*(encoded[name] for name in names), strict=True)
        ]

    @torch.inference_mode()
    def forward(self, encodings: Sequence[Encoding]) -> np.ndarray:
        """P(commerce) of one batch, padded to its longest article: (n,) float64.

        Returns once the numbers are on the host, so that a clock around it sees the whole of the work.
        """
        batch = self.checkpoint.tokenizer.pad(list(encodings), return_tensors="pt").to(self.device)
        logits = self.model(**batch).logits.double() / self.checkpoint.contract.temperature
        probabilities = logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(dim=1)[:, self._commerce]
        return probabilities.cpu().numpy()

    def score(self, articles: Sequence[Article], batch_size: int = 32) -> np.ndarray:
        """P(commerce) of each article, in the order given: (n,) float64.

        Batches are made of articles of like length, so that hardly any arithmetic is spent on padding.
        """
        return self._score_shard(articles, batch_size, 0, 1)

    def score_together(self, articles: Sequence[Article], batch_size: int = 32) -> np.ndarray:
        """``score``, its batches shared out among the processes of a torchrun or accelerate job.

        Every process has to call it with the same articles and gets all their scores. The batches are those of
        ``score``, so the scores are the same to the bit.
        """
        state = PartialState(cpu=self.device.type == "cpu")
        scores = self._score_shard(articles, batch_size, state.process_index, state.num_processes)
        # Each process leaves the others' scores at zero.
        total = torch.from_numpy(scores).to(state.device)
        return reduce(total, "sum").cpu().numpy() if state.num_processes > 1 else scores

    def _score_shard(self, articles: Sequence[Article], batch_size: int, index: int, count: int) -> np.ndarray:
        scores = np.zeros(len(articles))
        for first in range(0, len(articles), CHUNK):
            encodings = self.tokenize(articles[first : first + CHUNK])
            by_length = sorted(range(len(encodings)), key=lambda i: len(encodings[i]["input_ids"]))
            for start in range(index * batch_size, len(by_length), count * batch_size):
                batch = by_length[start : start + batch_size]
                scores[[first + i for i in batch]] = self.forward([encodings[i] for i in batch])
        return scores

    def is_commerce(self, article: Article, threshold: str = "default") -> bool:
        """Whether the article's score reaches the named operating point of the contract.

        Every model has ``default``; evaluation adds ``best_f1`` and, where validation supports it, ``high_precision``.
        Raises InputError for one that the model does not have.
        """
        thresholds = self.checkpoint.contract.thresholds
        if threshold not in thresholds:
            raise InputError(f"no operating point {threshold!r}; this model has {', '.join(thresholds)}")
        return bool(self.score([article])[0] >= thresholds[threshold])


def time_single_articles(
    scorer: Scorer, articles: Sequence[Article], rounds: int = 1, warmup: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to tokenise and seconds to score each article on its own, as a pipeline does that scores on arrival.

    Returns:
        Two arrays of (rounds * n,), tokenising and forward pass. ``warmup`` articles, the longest ones, which make
        the libraries allocate all they will need, are scored before and not counted.
    """
    by_length = sorted(articles, key=lambda article: len(article.title) + len(article.content))
    for article in by_length[-warmup:]:
        scorer.score([article])
    tokenize, forward = [], []
    for _ in range(rounds):
        for article in articles:
            start = time.perf_counter()
            encodings = scorer.tokenize([article])
            tokenized = time.perf_counter()
            scorer.forward(encodings)  # its result is on the host, so a GPU has finished
            tokenize.append(tokenized - start)
            forward.append(time.perf_counter() - tokenized)
    return np.array(tokenize), np.array(forward)
