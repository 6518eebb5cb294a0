"""A benchmark, from loaded articles to the rows of its results."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from prefilter_common.articles import Article, format_input, labels_of
from prefilter_common.benchmark.bounds import matrix_rates, operations
from prefilter_common.benchmark.conditions import Articles, Options
from prefilter_common.benchmark.data import Data, texts_worth_comparing
from prefilter_common.benchmark.rows import (
    BenchmarkRow,
    Configuration,
    Reference,
    WorkerFacts,
    refuse_with_their_engine,
    row_of,
)
from prefilter_common.benchmark.stages.cascade import Cascade, cascade_of, readable
from prefilter_common.benchmark.timing import Answer, Bulk, Single, Worker
from prefilter_common.cli import summary_of
from prefilter_common.errors import InputError
from prefilter_common.evaluation.traffic.coverage import distinct_texts
from prefilter_common.models.contract import Contract, Stage
from prefilter_common.models.directory import read_contract
from prefilter_common.scoring.engines.conversion import convert
from prefilter_common.scoring.engines.interface import REFERENCE, EngineName, Unavailable
from prefilter_common.scoring.engines.pytorch import TorchEngine
from prefilter_common.scoring.scorer import Scorer

log = logging.getLogger(__name__)


def take_reference(directory: Path, data: Data, options: Options) -> tuple[Reference, Data]:
    """Score the test articles and, on the CPU with validation articles, choose the stages before the full read.

    Returns:
        The reference, whose contract contains those stages; where none are chosen, the ones it had. And the data
        with ``more``, the other texts on which decisions are compared, as many as the reference has time for, and
        without what the model cannot read.

    Raises:
        InputError: the model cannot be loaded, yields scores that are not numbers, or reads none of the timed articles.
    """
    scorer = Scorer.load(directory, options.device, REFERENCE)
    assert isinstance(scorer.engine, TorchEngine)
    data = replace(data, timed=readable(scorer, data.timed))
    if not data.timed:
        raise InputError(f"{directory}: knows the characters of none of the test articles; pass others as --test-data")
    batch_size = options.batch_sizes[0]
    if options.no_stages:
        contract = read_contract(directory)
        cascade = Cascade(contract.stages if contract else (), {})
    else:
        # Stages are chosen for the CPU: what a GPU would fit replaces nothing that is deployed.
        val = data.val if options.device == "cpu" else []
        cascade = cascade_of(directory, scorer, val, data.fitting, batch_size, options.tolerance.changed)
    encodings = scorer.tokenize(data.test)
    start = time.perf_counter()
    scores = scorer.score(data.test, batch_size)
    per_second = len(scores) / (time.perf_counter() - start)
    data = data.comparing(texts_worth_comparing(options.tolerance, per_second), scorer.unread)
    distinct = distinct_texts(data.test)[0]
    reference = Reference(
        contract=replace(scorer.contract, stages=cascade.stages),
        scores=scores,
        labels=None if any(article.label is None for article in data.test) else labels_of(data.test),
        n_tokens=np.array([len(ids) for ids in encodings]),
        operations=operations(scorer.engine),
        cascade=cascade,
        more=_full_scores(scorer, data.all_more, cascade.full, batch_size),
        # On which texts the stages of an earlier run were fitted is not known.
        unseen=data.unseen & bool(cascade.notes),
        distinct=distinct[~scorer.unread([data.test[i] for i in distinct.tolist()])],
    )
    return reference, data


def _full_scores(
    scorer: Scorer, articles: Sequence[Article], known: Mapping[str, float], batch_size: int
) -> np.ndarray:
    """(n,) P(commerce) of each article; of some it is ``known``, by input text."""
    scores = np.array([known.get(format_input(article), np.nan) for article in articles])
    new = np.flatnonzero(np.isnan(scores))
    scores[new] = scorer.score([articles[i] for i in new.tolist()], batch_size)
    return scores


def articles_of(reference: Reference, data: Data) -> Articles:
    """A part of the conditions."""
    compared = {"test": len(reference.distinct), **{role: len(part) for role, part in data.more.items()}}
    return {
        "median_characters": round(float(np.median([len(article.content) for article in data.test]))),
        "lengths_like": None if data.lengths_like is None else str(data.lengths_like),
        "mean_tokens": round(float(reference.n_tokens.mean()), 1),
        "max_tokens": int(reference.n_tokens.max()),
        "timed_articles": len(data.timed),
        "compared_articles": sum(compared.values()),
        "compared": compared,
        "unread_articles": data.n_unread,
    }


def readings_of(contract: Contract, options: Options) -> list[tuple[int, tuple[Stage, ...]]]:
    """The requested ways of reading an article: tokens, and the stages before: none, each kind alone, all together.

    Raises InputError for a length beyond the model's.
    """
    lengths = list(dict.fromkeys(options.max_lengths or [contract.max_length]))
    if max(lengths) > contract.max_length:
        longest = f"the model reads at most {contract.max_length} tokens"
        raise InputError(f"--max-lengths {max(lengths)}: {longest}; pass that or less")
    stages = () if options.no_stages else contract.stages
    cascades = [tuple(alike) for _, alike in groupby(stages, lambda stage: stage.reader)]
    if len(cascades) > 1:
        cascades.append(stages)
    return [*((length, ()) for length in lengths), *((contract.max_length, cascade) for cascade in cascades)]


def open_workers(
    directory: Path, fitted: Path, data: Data, options: Options, stack: ExitStack
) -> tuple[dict[EngineName, Worker], dict[str, str]]:
    """A process for every available engine, and the reason for every other. The stack ends the processes."""
    workers: dict[EngineName, Worker] = {}
    skipped: dict[str, str] = {}
    for engine in (REFERENCE, *(name for name in options.engines if name != REFERENCE)):
        with _may_fail(engine, skipped):
            convert(directory, engine, data.whole_train, options.device)
            workers[engine] = stack.enter_context(Worker(directory, fitted, engine, options.device, options.threads))
    return workers, skipped


def to_compare(
    available: Sequence[EngineName],
    readings: Sequence[tuple[int, tuple[Stage, ...]]],
    max_length: int,
    options: Options,
) -> list[Configuration]:
    """Every requested engine that is available, with every way of reading; the reference first."""
    first = Configuration(REFERENCE, max_length)
    engines = [engine for engine in available if engine in options.engines]
    # What reads less is judged beside the full read of its engine.
    in_full: tuple[int, tuple[Stage, ...]] = (max_length, ())
    others = (Configuration(engine, *reading) for engine in engines for reading in dict.fromkeys([in_full, *readings]))
    return [first, *(c for c in others if c != first)]


def measure(
    directory: Path,
    configurations: Sequence[Configuration],
    workers: Mapping[EngineName, Worker],
    reference: Reference,
    data: Data,
    rates_before: Mapping[str, float | None],
    skipped: dict[str, str],
    options: Options,
) -> tuple[list[BenchmarkRow], dict[str, float | None]]:
    """Time the configurations in turn, then in bulk; an engine that fails joins those ``skipped``, with the reason.

    Returns a row for each of the others, and the machine's matrix rates.
    """

    def each(run: Callable[[Configuration, Worker], Answer]) -> dict[Configuration, Answer]:
        found = {}
        for c in configurations:
            if str(c.engine) not in skipped:
                with _may_fail(c.engine, skipped):
                    found[c] = run(c, workers[c.engine])
        return found

    def single(c: Configuration, worker: Worker) -> Single:
        return worker.single(data.timed, c.max_length, c.stages)

    log.info(f"one round that is not counted: {len(configurations)} configurations")
    each(single)  # engines allocate memory and, for each new width, some compile kernels
    rounds: dict[Configuration, list[Single]] = {c: [] for c in configurations}
    for number in range(options.rounds):
        log.info(f"round {number + 1}/{options.rounds}: {len(configurations)} configurations")
        for c, found in each(single).items():
            rounds[c].append(found)
    peak = each(lambda c, worker: worker.peak_memory_mib())
    scored = each(lambda c, worker: _score(c, worker, reference, data, options.batch_sizes))
    facts = each(
        lambda c, worker: WorkerFacts(
            precision=worker.opened["precision"],
            engine_sha256=worker.opened["engine_sha256"],
            load_s=worker.opened["load_s"],
            disk_mib=_disk_mib(directory, c.engine),
            peak_memory_mib=round(peak[c]),
            peak_memory_bulk_mib=round(worker.peak_memory_mib()),
        )
    )
    # Whatever else runs on the machine can only lower a rate, so the higher of two is closer to what it can do.
    after = matrix_rates(options.device)
    rates = {name: rate and max(rate, after[name] or 0.0) for name, rate in rates_before.items()}
    reference_ms = [found.mean_ms for found in rounds[configurations[0]]]
    rows = [
        row_of(c, rounds[c], scored[c][0], reference, reference_ms, rates, options.tolerance, facts[c], scored[c][1])
        for c in configurations
        if str(c.engine) not in skipped
    ]
    refuse_with_their_engine(rows, reference.contract.max_length)
    return rows, rates


def _score(
    configuration: Configuration, worker: Worker, reference: Reference, data: Data, batch_sizes: Sequence[int]
) -> tuple[dict[int, Bulk], np.ndarray]:
    """The test articles in batches of each size, timed, and the (k,) scores of the other texts."""
    log.info(f"{configuration.name}: scoring in batches of {' and '.join(map(str, batch_sizes))}")
    reading = configuration.max_length, configuration.stages
    bulk = {size: worker.bulk(data.test, *reading, size) for size in batch_sizes}
    if configuration == Configuration(REFERENCE, reference.contract.max_length):
        return bulk, reference.more
    return bulk, worker.scores(data.all_more, *reading, batch_sizes[0])


@contextmanager
def _may_fail(engine: EngineName, skipped: dict[str, str]) -> Iterator[None]:
    """Let what goes wrong end the benchmark only where it goes wrong with the reference."""
    try:
        yield
    except Unavailable as error:
        skipped[str(engine)] = error.reason
    except Exception as error:
        if engine == REFERENCE:
            raise
        skipped[str(engine)] = summary_of(error)
        log.warning(f"{engine}: {skipped[str(engine)]}")
        log.debug("", exc_info=True)


def _disk_mib(directory: Path, engine: EngineName) -> float:
    """Size of what the engine needs: its own folder, or the checkpoint's files."""
    folder = engine.folder(directory)
    names = ("model.safetensors", "adapter_model.safetensors", "config.json", "tokenizer.json")
    files = folder.iterdir() if folder else [directory / name for name in names if (directory / name).is_file()]
    return round(sum(path.stat().st_size for path in files) / 2**20, 1)
