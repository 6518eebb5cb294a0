"""Validation articles in, the stages before the full read out; and how a model directory keeps them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prefilter_common.articles import Article, capped, cut_at_random, labels_of
from prefilter_common.benchmark.first_stage import choose_first_stage, fit_first_stage, out_of_fold
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
# The most of these texts on which limits of a short read are chosen: each is read at every length.
MAX_CHOOSING = 1_000
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
    directory: Path,
    scorer: Scorer,
    val: Sequence[Article] | None,
    fitting: Sequence[Article],
    batch_size: int,
    max_changed: float,
) -> Cascade:
    """``choose_cascade`` where there are validation articles, else what the model directory has."""
    contract = read_contract(directory)
    if contract is None:
        return Cascade((), {"stages": {"reason": f"no {CONTRACT_FILE} to store them in; train the model again"}})
    if val:
        return choose_cascade(scorer, val, fitting, batch_size, max_changed)
    first = read_first_stage(directory, contract.stages)
    usable = tuple(stage for stage in contract.stages if stage.reader != LINEAR or first)
    reason = "no validation articles to choose them on; pass --val-data"
    return Cascade(usable, {} if usable else {"stages": {"reason": reason}})


def choose_cascade(
    scorer: Scorer, val: Sequence[Article], fitting: Sequence[Article], batch_size: int, max_changed: float
) -> Cascade:
    """The first stage and the short read that are worth it.

    Args:
        scorer: reads in full.
        val: labelled articles that the weights were not trained on.
        fitting: articles, labelled or not, for a first stage to learn what the model says of them. Whether a stage
            decides them as the full read does counts too, and a validation set is too small to show it: on training
            articles short reads changed no fewer decisions than on others.
        max_changed: the tolerated share of changed decisions.
    """
    val, fitting = readable(scorer, val), readable(scorer, fitting)
    labels, thresholds = labels_of(val), scorer.contract.thresholds
    # For each of two sides of two stages, of which all together change half of what is tolerated: with all of it, no
    # number of texts could show that they change no more.
    change = max_changed / 2 / 4
    rng = np.random.default_rng(CUT_SEED)
    chosen = capped(fitting, MAX_FITTING)
    known, texts = (scorer.tokenize([*part, *cut_at_random(part, rng)]) for part in (val, chosen))
    full = scorer.read(known, batch_size)[0]
    if texts:
        log.info(f"stages: taking the model's scores of {len(texts):,} texts to fit and choose them on")
    targets = scorer.read(texts, batch_size)[0]
    some = np.linspace(0, len(texts) - 1, min(MAX_CHOOSING, len(texts)), dtype=int)
    read_twice = [*known, *(texts[i] for i in some.tolist())]
    lengths = [length for length in SHORT_LENGTHS if length < scorer.contract.max_length]
    short = {}
    for length in lengths:
        scores = scorer.read([scorer.tokenizer.cut(ids, length) for ids in read_twice], batch_size)[0]
        short[length] = at_temperature(scores, 1 / scorer.contract.temperature)
    n_tokens = np.array([len(ids) for ids in read_twice])
    both = np.concatenate([full, targets[some]])
    read, read_note = choose_short_read(labels, both, short, n_tokens, thresholds, change)
    reads = (read,) if read else ()
    if not texts:
        reason = "no articles to fit it on; pass --train-data or --traffic"
        return Cascade(reads, {"first stage": {"reason": reason}, "short read": read_note})
    known_own, own = ([scorer.tokenizer.own(ids) for ids in part] for part in (known, texts))
    first, unseen = fit_first_stage(own, targets), out_of_fold(own, targets)
    both = np.concatenate([full, targets])
    # Where there is no short read, its share goes to the first stage.
    stage, note = choose_first_stage(first, known_own, labels, both, unseen, thresholds, change if read else 2 * change)
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
