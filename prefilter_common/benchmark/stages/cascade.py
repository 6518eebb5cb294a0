"""Validation articles in, the stages before the full read out; and how a model directory keeps them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from prefilter_common.articles import Article, capped, cut_at_random, format_input, labels_of
from prefilter_common.benchmark.stages.early_exit import choose_exits, states_of
from prefilter_common.benchmark.stages.first_stage import (
    choose_first_stage,
    decided_by_first,
    fit_first_stage,
    out_of_fold,
)
from prefilter_common.benchmark.stages.limits import StageNote, changed_share, choose_short_read
from prefilter_common.benchmark.stages.soft_labels import FOLDS, stories_of
from prefilter_common.files import write_bytes
from prefilter_common.models.contract import LAYERS, LINEAR, Stage
from prefilter_common.models.directory import (
    CONTRACT_FILE,
    EARLY_EXITS_FILE,
    FIRST_STAGE_FILE,
    RECOMMENDATION_FILE,
    read_contract,
    write_contract,
)
from prefilter_common.scoring.scorer import Scorer
from prefilter_common.statistics.calibration import at_temperature

log = logging.getLogger(__name__)

# Lengths of a short read to try, in tokens.
SHORT_LENGTHS = (48, 64, 96, 128, 192)
# The most articles that a first stage and exits are fitted on: the encoder reads each, and a copy of it.
MAX_FITTING = 5_000
# The most of these texts on which limits of a short read are chosen: each is read at every length.
MAX_CHOOSING = 1_000
# All stages together may change this share of what is tolerated, on the texts that their limits are chosen on. On other
# texts three students' stages then changed about half of it (TRAINING_PLAN.md); if they changed all of it, no number of
# texts could show that they do not exceed it.
BUDGET = 1 / 3
CUT_SEED = 0  # of the lengths to which copies are cut


@dataclass(frozen=True)
class Cascade:
    """The stages before the full read, how each did on validation articles, and the files with what was fitted now.

    ``full`` maps the input text of each article that was read in full to choose them to its P(commerce).
    """

    stages: tuple[Stage, ...]
    notes: dict[str, StageNote]
    files: Mapping[str, bytes] = field(default_factory=dict)
    full: Mapping[str, float] = field(default_factory=dict)


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
    usable = scorer.with_files_of(directory, contract.stages)
    reason = "the model has none; on the CPU they are chosen on validation articles; pass --val-data"
    return Cascade(usable, {} if usable else {"stages": {"reason": reason}})


def choose_cascade(
    scorer: Scorer, val: Sequence[Article], fitting: Sequence[Article], batch_size: int, max_changed: float
) -> Cascade:
    """The stages that are worth it: a first stage and early exits or, of a model that has none, a short read.

    Args:
        scorer: reads in full.
        val: labelled articles that the weights were not trained on.
        fitting: articles, labelled or not, from which a first stage and exits learn what the model says of them.
            Whether a stage decides them as the full read does counts too, and a validation set is too small to show it:
            on training articles short reads changed no fewer decisions than on others.
        max_changed: the tolerated share of changed decisions.
    """
    val, fitting = readable(scorer, val), readable(scorer, fitting)
    labels, thresholds = labels_of(val), scorer.contract.thresholds
    budget = max_changed * BUDGET
    change = budget / 4  # of each of two sides of two stages
    rng = np.random.default_rng(CUT_SEED)
    chosen = capped(fitting, MAX_FITTING)
    stories = np.tile(stories_of(chosen), 2)  # of copies as well
    if len(np.unique(stories)) < FOLDS:
        chosen = []
    known, texts = (scorer.tokenize([*part, *cut_at_random(part, rng)]) for part in (val, chosen))
    if texts:
        log.info(f"stages: taking the model's scores of {len(texts):,} texts to fit and choose them on")
    (full, states), (targets, fitting_states) = (states_of(scorer, part, batch_size) for part in (known, texts))
    scored = dict(zip(map(format_input, [*val, *chosen]), [*full[: len(val)], *targets[: len(chosen)]], strict=True))
    reads: tuple[Stage, ...] = ()
    notes: dict[str, StageNote] = {}
    if not (texts and states):  # exits change fewer decisions than short reads do
        read, notes["short read"] = _short_read(scorer, labels, known, full, texts, targets, batch_size, change)
        reads = (read,) if read else ()
    if not texts:
        reason = "too few articles to fit it on; pass --train-data or --traffic"
        return Cascade(reads, {"first stage": {"reason": reason}, **notes}, full=scored)
    known_own, own = ([scorer.tokenizer.own(ids) for ids in part] for part in (known, texts))
    (nothing,) = scorer.tokenizer.encode([Article("", "")])
    input_format = scorer.tokenizer.own(nothing)
    first, unseen = fit_first_stage(own, targets, input_format), out_of_fold(own, targets, stories, input_format)
    both = np.concatenate([full, targets])
    # Where no other stage is possible, its share goes to the first stage.
    share = change if reads or states else 2 * change
    stage, note = choose_first_stage(first, known_own, labels, both, unseen, thresholds, share)
    note["fitted_texts"] = len(texts)
    files, left = {}, np.ones(len(both), dtype=bool)
    if stage:
        files[FIRST_STAGE_FILE] = first.content()
        decided, scores = decided_by_first(stage, first, known_own, unseen)
        left, budget = ~decided, budget - changed_share(both, scores, decided, thresholds)
    if states:
        exits = choose_exits(states, fitting_states, stories, labels, both, left, thresholds, budget)
        reads, notes = exits.stages, exits.notes
        if reads:
            files[EARLY_EXITS_FILE] = exits.content
    return Cascade((*([stage] if stage else []), *reads), {"first stage": note, **notes}, files, scored)


def _short_read(
    scorer: Scorer,
    labels: np.ndarray,
    known: Sequence[list[int]],
    full: np.ndarray,
    texts: Sequence[list[int]],
    targets: np.ndarray,
    batch_size: int,
    change: float,
) -> tuple[Stage | None, StageNote]:
    """``choose_short_read`` on validation articles and some of the texts, at every length."""
    some = np.linspace(0, len(texts) - 1, min(MAX_CHOOSING, len(texts)), dtype=int)
    encodings = [*known, *(texts[i] for i in some.tolist())]
    short = {}
    for length in (length for length in SHORT_LENGTHS if length < scorer.contract.max_length):
        scores = scorer.read([scorer.tokenizer.cut(ids, length) for ids in encodings], batch_size)[0]
        short[length] = at_temperature(scores, 1 / scorer.contract.temperature)
    n_tokens, both = np.array([len(ids) for ids in encodings]), np.concatenate([full, targets[some]])
    return choose_short_read(labels, both, short, n_tokens, scorer.contract.thresholds, change)


def readable(scorer: Scorer, articles: Sequence[Article]) -> list[Article]:
    """Without those of which the model says nothing, so that no stage ever sees them."""
    return [articles[i] for i in np.flatnonzero(~scorer.unread(articles)).tolist()]


@contextmanager
def folder_of(cascade: Cascade, directory: Path) -> Iterator[Path]:
    """Where the weights of these stages are: the model's directory, or a temporary one for what was fitted now.

    So a benchmark that is stopped, or fails, leaves the model with the stages and the recommendation that it had.
    """
    contract = read_contract(directory)
    if contract is None or not cascade.files:
        yield directory
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_contract(folder, contract)
        store_cascade(folder, cascade)
        yield folder


def store_cascade(directory: Path, cascade: Cascade) -> None:
    """Write the stages into prefilter.json, and their weights beside it; a directory without one is left as it is."""
    contract = read_contract(directory)
    if contract is None:
        return
    if contract.stages != cascade.stages:  # what was measured with other limits is recommended no longer
        (directory / RECOMMENDATION_FILE).unlink(missing_ok=True)
    for name, content in cascade.files.items():  # first: until the contract has its hash, it is not used
        write_bytes(directory / name, content)
    if contract.stages != cascade.stages:
        write_contract(directory, replace(contract, stages=cascade.stages))
    readers = {stage.reader for stage in cascade.stages}
    for reader, name in ((LINEAR, FIRST_STAGE_FILE), (LAYERS, EARLY_EXITS_FILE)):
        if reader not in readers:
            (directory / name).unlink(missing_ok=True)
