"""Running the models: from loaded articles to each model's scores and row of the results."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, final

import numpy as np

from prefilter_common.articles import Article, labels_of, spread_by_length
from prefilter_common.cli import summary_of
from prefilter_common.errors import InputError
from prefilter_common.evaluation import sections
from prefilter_common.evaluation.baseline import FloorComparison
from prefilter_common.evaluation.sections import Benchmarked, QualityRow, Scored
from prefilter_common.evaluation.traffic.answers import Audit
from prefilter_common.models.contract import Contract
from prefilter_common.models.directory import (
    cpu_benchmark_ms,
    fingerprints,
    read_contract,
    read_recommendation,
    read_validation,
)
from prefilter_common.processes import connection, is_main_process, process_count, wait_for_all
from prefilter_common.scoring.engines.interface import Engine, EngineName
from prefilter_common.scoring.latency import time_single_articles
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.statistics.metrics import latency_summary
from prefilter_common.statistics.operating_points import BEST_F1, HIGH_PRECISION, choose_thresholds
from prefilter_common.statistics.prevalence import Costs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The articles of one evaluation; None where there is no such file.

    On ``val`` thresholds are chosen; ``beside`` are validation articles that are only checked for duplicates.
    """

    test: list[Article]
    train: list[Article] | None
    val: list[Article] | None
    traffic: list[Article] | None
    beside: list[Article] | None = None
    audit: Audit | None = None


@dataclass(frozen=True)
class Options:
    """How to evaluate, and the folder to write.

    ``traffic_models`` is None to compare every two on the traffic; ``prevalence`` are shares of commerce in production,
    the first of which thresholds are chosen for; ``audit`` says how many flagged and unflagged articles to draw.
    """

    output: Path
    engine: EngineName
    batch_size: int
    latency_samples: int
    target_precision: float
    traffic_models: tuple[str, str] | None
    seed: int
    prevalence: tuple[float, ...] = (0.05,)
    costs: Costs | None = None
    audit: tuple[int, int] | None = None


@final
class ModelRow(QualityRow, Benchmarked):
    """What running one model showed: quality, and milliseconds for one article at a time, of ``latency_articles``.

    ``cpu_benchmark_ms`` is the benchmark's, None where it has not run or its stages are gone; ``floor`` is added once
    the models are compared, None without a baseline.
    """

    avg_inference_ms: float
    p50_inference_ms: float
    p95_inference_ms: float
    latency_articles: int
    files: dict[str, str]
    cpu_benchmark_ms: float | None
    n_articles: int
    engine: str
    device: str
    max_length: int
    floor: NotRequired[FloorComparison | None]


@final
class ErrorRow(TypedDict):
    """Why a model could not be evaluated."""

    error: str


def evaluate_each(
    directories: Sequence[Path], data: Data, options: Options
) -> tuple[dict[str, Scored], dict[str, ModelRow | ErrorRow]]:
    """Run every model; writes nothing.

    Returns its scores, where it has some, and its row of the results, except in processes other than the main one.
    """
    models: dict[str, Scored] = {}
    rows: dict[str, ModelRow | ErrorRow] = {}
    for number, directory in enumerate(directories, start=1):
        log.info(f"model {number}/{len(directories)}: {directory}")
        try:
            models[directory.name], row = evaluate(directory, data, options)
        except Exception as error:
            # Whatever is wrong with one directory, the others must still be evaluated.
            log.error(f"{directory.name}: {summary_of(error)}")
            log.debug("", exc_info=True)
            rows[directory.name] = {"error": f"{type(error).__name__}: {error}"}
        else:
            if row is not None:
                rows[directory.name] = row
    return models, rows


def evaluate(directory: Path, data: Data, options: Options) -> tuple[Scored, ModelRow | None]:
    """Run one model on all articles.

    Returns its scores and its row of the results, which is None except in the main process.
    """
    scorer = Scorer.load(directory, engine=options.engine)
    contract = scorer.contract
    test = _scores(scorer, data.test, "test", options)
    traffic = _scores(scorer, data.traffic, "traffic", options) if data.traffic else None
    audited = _scores(scorer, data.audit.articles, "audited", options) if data.audit else None
    validation = read_validation(directory)
    if validation is None and data.val:
        validation = labels_of(data.val), _scores(scorer, data.val, "validation", options)
    model = Scored(
        scores=test,
        n_tokens=np.array([len(ids) for ids in scorer.tokenizer.encode(data.test)]),
        max_length=contract.max_length,
        temperature=contract.temperature,
        thresholds=operating_points(contract, validation, options),
        traffic=traffic,
        audited=audited,
        validation=validation,
        unread={
            role: float(scorer.unread(articles).mean())
            for role, articles in (("test", data.test), ("traffic", data.traffic))
            if articles
        },
    )
    row: ModelRow | None = None
    stored = read_contract(directory) or contract  # that of the scorer has no stages
    if is_main_process():  # only one process measures; the rest wait
        seconds = time_single_articles(scorer, spread_by_length(data.test, options.latency_samples))
        latency = latency_summary(seconds)
        row = {
            **sections.model_row(data.test, model, options.seed, data.train),
            "avg_inference_ms": latency["avg_ms"],
            "p50_inference_ms": latency["p50_ms"],
            "p95_inference_ms": latency["p95_ms"],
            "latency_articles": len(seconds),
            "files": fingerprints(directory),
            "cpu_benchmark_ms": cpu_benchmark_ms(directory, stored.with_thresholds(model.thresholds)),
            **sections.benchmarked(read_recommendation(directory) or {}),
            "n_articles": len(data.test),
            "engine": str(scorer.engine.name),
            "device": str(getattr(scorer.engine, "device", "cpu")),
            "max_length": contract.max_length,
        }
    wait_for_all()
    del scorer
    free_memory()
    return model, row


def _scores(scorer: Scorer, articles: Sequence[Article], role: str, options: Options) -> np.ndarray:
    scores = score_together(scorer, articles, options.batch_size)
    if bad := int((~np.isfinite(scores)).sum()):
        raise InputError(f"{bad} {role} articles have scores that are not numbers")
    return scores


def free_memory() -> None:
    """Free what the last model took, on the GPU too, before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _EveryNth:
    """The share of one process in a job of ``count``: every ``count``-th batch; the others get log-odds of -inf."""

    places: tuple[int, ...] = ()

    def __init__(self, engine: Engine, index: int, count: int):
        self.engine, self.name, self.precision = engine, engine.name, engine.precision
        self.width_step = engine.width_step
        self.index, self.count, self.calls = index, count, 0

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        self.calls += 1
        if (self.calls - 1) % self.count != self.index:
            return np.full(len(input_ids), -np.inf)
        return self.engine(input_ids, attention_mask)

    def part(self, number: int, inputs: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """The only one is the whole model."""
        return self(inputs, attention_mask)


def score_together(scorer: Scorer, articles: Sequence[Article], batch_size: int) -> np.ndarray:
    """``scorer.score`` in one pass, with the batches divided among the processes of the job: (n,) float64.

    Every process has to call it with the same articles and gets all scores. The batches are those of ``score``, and so
    are the scores, bit for bit: each process scores the others' articles 0, and the results are added.
    """
    if process_count() == 1:
        return scorer.score(articles, batch_size)
    import torch
    from accelerate.utils import reduce

    state = connection()
    share = _EveryNth(scorer.engine, state.process_index, state.num_processes)
    own = Scorer(share, scorer.tokenizer, scorer.contract).score(articles, batch_size)
    return reduce(torch.from_numpy(own).to(state.device), "sum").cpu().numpy()


def operating_points(
    contract: Contract, validation: tuple[np.ndarray, np.ndarray] | None, options: Options
) -> dict[str, float]:
    """The model's thresholds by name, chosen on (n,) validation labels and scores; without, those of the contract.

    Points of other names in the contract are the user's own, and stay.
    """
    if validation is None:
        return dict(contract.thresholds)
    own = {name: value for name, value in contract.thresholds.items() if name not in (BEST_F1, HIGH_PRECISION)}
    return own | choose_thresholds(*validation, options.target_precision, options.prevalence[0])
