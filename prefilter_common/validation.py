"""What a finished model says about the validation articles: its temperature, and the scores to choose thresholds by."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prefilter_common.articles import Article
from prefilter_common.calibration import at_temperature, fit_temperature
from prefilter_common.checkpoints import Checkpoint
from prefilter_common.files import write_json_lines
from prefilter_common.operating_points import VALIDATION_FILE
from prefilter_common.scoring import Scorer

log = logging.getLogger(__name__)


def calibrate(checkpoint: Checkpoint, val: Sequence[Article], directory: Path) -> Checkpoint:
    """Fit the temperature on the validation articles; write their calibrated scores into ``directory``.

    Returns:
        The same model with the temperature in its contract. 1.0 where only one label occurs: nothing to fit on.
    """
    contract = replace(checkpoint.contract, temperature=1.0)
    scores = Scorer.of(replace(checkpoint, contract=contract), checkpoint.model.device).score(val)
    labels = np.array([article.label for article in val])
    temperature = round(fit_temperature(labels, scores), 4) if len(np.unique(labels)) == 2 else 1.0
    log.info(f"temperature {temperature:.2f}, fitted on {len(val)} validation articles")
    calibrated = at_temperature(scores, temperature)
    write_json_lines(directory / VALIDATION_FILE, prediction_rows(val, calibrated))
    return replace(checkpoint, contract=replace(contract, temperature=temperature))


def prediction_rows(articles: Sequence[Article], scores: np.ndarray) -> list[dict]:
    """Rows of ``predictions/<model>.jsonl`` and of the validation predictions: id, label, score, language."""
    return [
        {"id": article.id, "label": article.label, "score": round(float(score), 6), "language": article.language}
        for article, score in zip(articles, scores, strict=True)
    ]
