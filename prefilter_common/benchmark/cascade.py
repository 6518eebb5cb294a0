"""Validation articles in, the stages before the full read out; and how a model directory keeps them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prefilter_common.articles import Article, capped, cut_at_random, labels_of
from prefilter_common.benchmark.first_stage import choose_first_stage, fit_first_stage
from prefilter_common.benchmark.limits import StageNote, choose_short_read
from prefilter_common.files import write_bytes
from prefilter_common.models.contract import LINEAR, Stage
from prefilter_common.models.directory import (
    CONTRACT_FILE,
    FIRST_STAGE_FILE,
    RECOMMENDATION_FILE,
    read_contract,
    write_contract,
)
from prefilter_common.scoring.first_stage import read_first_stage
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.statistics.calibration import at_temperature

log = logging.getLogger(__name__)

# Lengths of a short read to try, in tokens.
SHORT_LENGTHS = (48, 64, 96, 128, 192)
# The most articles that a first stage is fitted on: the encoder reads each, and a copy of it.
MAX_FITTING = 5_000
CUT_SEED = 0  # of the lengths to which copies are cut


@dataclass(frozen=True)
class Cascade:
    """The stages before the full read, how each did on validation articles, and where a first stage was fitted now, the
    content of its file.
    """

    stages: tuple[Stage, ...]
    notes: dict[str, StageNote]
    first_stage: bytes | None = None


def cascade_of(
    directory: Path, scorer: Scorer, val: Sequence[Article] | None, fitting: Sequence[Article], batch_size: int
) -> Cascade:
    """``choose_cascade`` where there are validation articles, else what the model directory has."""
    contract = read_contract(directory)
    if contract is None:
        return Cascade((), {"stages": {"reason": f"no {CONTRACT_FILE} to store them in; train the model again"}})
    if val:
        return choose_cascade(scorer, val, fitting, batch_size)
    first = read_first_stage(directory, contract.stages)
    usable = tuple(stage for stage in contract.stages if stage.reader != LINEAR or first)
    reason = "no validation articles to choose them on; pass --val-data"
    return Cascade(usable, {} if usable else {"stages": {"reason": reason}})


def choose_cascade(scorer: Scorer, val: Sequence[Article], fitting: Sequence[Article], batch_size: int) -> Cascade:
    """The first stage and the short read that are worth it.

    Args:
        scorer: reads in full.
        val: labelled articles that the weights were not trained on.
        fitting: articles, labelled or not, for a first stage to learn what the model says of them.
    """
    val, fitting = readable(scorer, val), readable(scorer, fitting)
    labels, thresholds = labels_of(val), scorer.contract.thresholds
    rng = np.random.default_rng(CUT_SEED)
    both = [*val, *cut_at_random(val, rng)]
    encodings = scorer.tokenize(both)
    full = scorer.read(encodings, batch_size)[0]
    lengths = [length for length in SHORT_LENGTHS if length < scorer.contract.max_length]
    calibrated = {length: scorer.reading(length).score(both, batch_size) for length in lengths}
    short = {length: at_temperature(scores, 1 / scorer.contract.temperature) for length, scores in calibrated.items()}
    n_tokens = np.array([len(ids) for ids in encodings])
    read, read_note = choose_short_read(labels, full, short, n_tokens, thresholds)
    reads = (read,) if read else ()
    if not fitting:
        reason = "no training articles to fit it on; pass --train-data"
        return Cascade(reads, {"first stage": {"reason": reason}, "short read": read_note})

    articles = capped(fitting, MAX_FITTING)
    texts = scorer.tokenize([*articles, *cut_at_random(articles, rng)])
    log.info(f"first stage: taking the model's scores of {len(texts):,} texts to fit it on")
    own, known = ([scorer.tokenizer.own(ids) for ids in part] for part in (texts, encodings))
    first = fit_first_stage(own, scorer.read(texts, batch_size)[0])
    stage, note = choose_first_stage(first, known, labels, full, thresholds)
    note["fitted_texts"] = len(texts)
    notes = {"first stage": note, "short read": read_note}
    return Cascade((stage, *reads), notes, first.content()) if stage else Cascade(reads, notes)


def readable(scorer: Scorer, articles: Sequence[Article]) -> list[Article]:
    """Without those of which the model says nothing, so that no stage ever sees them."""
    unknown = scorer.tokenizer.unknown(articles, scorer.contract.max_length, scorer.contract.max_unknown)
    return [articles[i] for i in np.flatnonzero(~unknown).tolist()]


def store_cascade(directory: Path, cascade: Cascade) -> None:
    """Write the stages into prefilter.json, and the first stage beside it; a directory without one is left as it is."""
    contract = read_contract(directory)
    if contract is None:
        return
    if contract.stages != cascade.stages:  # what was measured with other limits is recommended no longer
        (directory / RECOMMENDATION_FILE).unlink(missing_ok=True)
    if cascade.first_stage is not None:  # first: until the contract has its hash, it is not used
        write_bytes(directory / FIRST_STAGE_FILE, cascade.first_stage)
    if contract.stages != cascade.stages:
        write_contract(directory, replace(contract, stages=cascade.stages))
    if not any(stage.reader == LINEAR for stage in cascade.stages):
        (directory / FIRST_STAGE_FILE).unlink(missing_ok=True)
