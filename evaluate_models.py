#!/usr/bin/env python3
"""Score every model under models/ on the test set and compare them.

For each model directory: batched scoring of all articles (quality), and one article at a time of a sample spread over
the lengths (latency, tokenising included, synchronised on a GPU). Writes results/evaluation_results.json and
results/predictions/<model>.jsonl (one row per article, in the test file's order). A model that cannot be loaded or
scored gets an error row, does not stop the others, and makes the exit code 1.

    python evaluate_models.py
    python evaluate_models.py --test-data splits/test.jsonl --models-dir models --output results
    python evaluate_models.py --models distilbert minilm --test-data ../production/test.jsonl

The table goes to stdout, everything else to stderr.
"""

import argparse
import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prefilter_common.articles import Article, load_articles
from prefilter_common.cli import (
    HelpFormatter,
    InputError,
    configure_logging,
    exit_code,
    is_main_process,
    positive_int,
)
from prefilter_common.files import model_directories, write_json, write_json_lines
from prefilter_common.processes import wait_for_all
from prefilter_common.report import percent, table

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Check the input, evaluate each model, write the results, print the table. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    articles = load_articles(args.test_data, require_labels=True)
    directories = model_directories(args.models_dir, args.models)
    # Imported only now: torch and transformers take seconds, for which bad input need not wait.
    from prefilter_common.runinfo import run_info

    results = {"_run": run_info(argv, {"test": args.test_data})}
    for number, directory in enumerate(directories, start=1):
        log.info(f"model {number}/{len(directories)}: {directory}")
        try:
            scores, results[directory.name] = evaluate(directory, articles, args)
        except Exception as error:
            # Whatever is wrong with one directory, the others are still to be evaluated.
            log.error(f"{directory.name}: {error}", exc_info=not isinstance(error, InputError))
            results[directory.name] = {"error": f"{type(error).__name__}: {error}"}
        else:
            if is_main_process():
                path = args.output / "predictions" / f"{directory.name}.jsonl"
                write_json_lines(path, predictions(articles, scores))
    models = {name: row for name, row in results.items() if name != "_run"}
    if is_main_process():
        write_json(args.output / "evaluation_results.json", results)
        print(summary(models, len(articles)))
    return 1 if any("error" in row for row in models.values()) else 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--test-data", type=Path, default=Path("splits/test.jsonl"), help="labelled articles")
    parser.add_argument("--models-dir", type=Path, default=Path("models"), help="folder of the model directories")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these of them, by name")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder to write")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="articles a batch")
    parser.add_argument("--latency-samples", type=positive_int, default=50, help="articles timed one at a time")
    return parser.parse_args(argv)


def evaluate(directory: Path, articles: list[Article], args: argparse.Namespace) -> tuple["np.ndarray", dict]:
    """Score and time one model. Returns the (n,) scores and the model's row of the results file."""
    import numpy as np
    import torch

    from prefilter_common.metrics import classification_metrics, latency_summary
    from prefilter_common.scoring import Scorer, time_single_articles

    scorer = Scorer.load(directory)
    scores = scorer.score_together(articles, args.batch_size)
    labels = np.array([article.label for article in articles])
    # Every process of a job times, but only the first one's row is written: the others wait, so as not to disturb.
    if not is_main_process():
        wait_for_all()
    tokenize, forward = time_single_articles(scorer, spread_by_length(articles, args.latency_samples))
    if is_main_process():
        wait_for_all()
    latency = latency_summary(tokenize + forward)
    row = {
        **classification_metrics(labels, scores, scorer.checkpoint.contract.thresholds["default"]),
        **{f"{name}_inference_ms": latency[f"{name}_ms"] for name in ("avg", "p50", "p95")},
        "latency_articles": len(forward),
        "n_articles": len(articles),
        "device": str(scorer.device),
        "max_length": scorer.checkpoint.contract.max_length,
    }
    del scorer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return scores, row


def spread_by_length(articles: list[Article], limit: int) -> list[Article]:
    """At most ``limit`` articles, evenly spaced from the shortest to the longest."""
    ordered = sorted(articles, key=lambda article: len(article.title) + len(article.content))
    n = min(limit, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * n)] for i in range(n)]


def predictions(articles: list[Article], scores: "np.ndarray") -> list[dict]:
    """Rows of ``predictions/<model>.jsonl``."""
    return [
        {"id": article.id, "label": article.label, "score": round(float(score), 6), "language": article.language}
        for article, score in zip(articles, scores, strict=True)
    ]


def summary(models: dict[str, dict], n_articles: int) -> str:
    """The table for the terminal, best F1 first, models that failed last."""
    ranked = sorted(models.items(), key=lambda item: -item[1].get("f1", -1))
    rows = [["model", "F1", "precision", "recall", "accuracy", "ms/article"]]
    for name, row in ranked:
        if "error" in row:
            rows.append([name, "error", "", "", "", ""])
        else:
            quality = [percent(row[key]) for key in ("f1", "precision", "recall", "accuracy")]
            rows.append([name, *quality, f"{row['avg_inference_ms']:.1f}"])
    return f"{table(rows)}\n{n_articles} test articles; ms/article: one at a time, tokenising included"


if __name__ == "__main__":
    sys.exit(exit_code(main))
