#!/usr/bin/env python3
"""Time one model on the CPU as production uses it: one article at a time, at the articles' real lengths.

Tokenising and the forward pass are timed apart and together, after a warm-up, in several rounds over the same
articles. Conditions are printed before the figures. Writes models/<name>/cpu_benchmark.json; the top-level figures
there are end to end, in milliseconds an article.

    python benchmark_inference.py
    python benchmark_inference.py --model models/distilbert --test-data splits/test.jsonl --threads 4

The last line on stdout is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

from prefilter_common.articles import load_articles
from prefilter_common.cli import HelpFormatter, InputError, configure_logging, exit_code, positive_int
from prefilter_common.files import model_directories, write_json
from prefilter_common.report import table

# Mean milliseconds an article on the CPU, end to end (TRAINING_PLAN.md).
MINIMUM_MS, TARGET_MS = 100, 50


def main(argv: list[str] | None = None) -> int:
    """Check the input, load, time, write, print. Returns the exit code."""
    args = parse_args(argv)
    configure_logging()
    articles = load_articles(args.test_data)[: args.n_samples]
    directory = args.model or only_model()
    # Imported only now: torch and transformers take seconds, for which bad input need not wait.
    import psutil
    import torch

    from prefilter_common.metrics import latency_summary
    from prefilter_common.runinfo import peak_memory_mib, run_info
    from prefilter_common.scoring import Scorer, time_single_articles

    if args.threads:
        torch.set_num_threads(args.threads)
    run = run_info(argv, {"articles": args.test_data})
    load_before = psutil.cpu_percent(interval=0.5)
    scorer = Scorer.load(directory, device="cpu")
    tokens = [len(encoding["input_ids"]) for encoding in scorer.tokenize(articles)]
    conditions = {
        "engine": "pytorch",
        "precision": "fp32",
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "cpu_load_before_percent": load_before,
        "mean_tokens": round(sum(tokens) / len(tokens), 1),
        "max_tokens": max(tokens),
    }
    print(card(directory, len(articles), conditions, run["hardware"]))
    tokenize, forward = time_single_articles(scorer, articles, args.rounds)
    total = latency_summary(tokenize + forward)
    result = {
        "model": directory.name,
        "n_samples": len(articles),
        **total,
        "tokenize": latency_summary(tokenize),
        "forward": latency_summary(forward),
        "peak_memory_mib": round(peak_memory_mib()),
        "verdict": verdict(total["avg_ms"]),
        **conditions,
    }
    write_json(directory / "cpu_benchmark.json", {**result, "run": run})
    print(figures(result))
    print(json.dumps(result, separators=(",", ":")))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory; may be left out where models/ holds only one")
    parser.add_argument("--test-data", type=Path, default=Path("splits/test.jsonl"), help="articles, labels not needed")
    parser.add_argument("--n-samples", type=positive_int, metavar="N", help="the first N articles only")
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="passes over the articles")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="for arithmetic, if not one a core")
    return parser.parse_args(argv)


def only_model() -> Path:
    """The one directory under models/. Raises InputError when there is none, or a choice."""
    found = model_directories(Path("models"))
    if len(found) > 1:
        raise InputError(f"models/ holds several models; name one: {' '.join(f'--model {path}' for path in found)}")
    return found[0]


def card(directory: Path, n_articles: int, conditions: dict, hardware: dict) -> str:
    """The conditions, before any figure."""
    c = conditions
    return (
        f"{directory} | {c['engine']} {c['precision']} | {hardware['cpu']}, {hardware['cores']} cores, "
        f"{c['threads']} threads, load before {c['cpu_load_before_percent']:.0f} %\n"
        f"{n_articles} articles one at a time, {c['rounds']} rounds, tokens mean {c['mean_tokens']:.0f} "
        f"max {c['max_tokens']}"
    )


def figures(result: dict) -> str:
    """The table and the verdict."""
    columns = ["avg_ms", "p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms"]
    parts = {"tokenise": result["tokenize"], "forward": result["forward"], "end to end": result}
    rows = [["per article", *(name.removesuffix("_ms") + " ms" for name in columns)]]
    rows += [[name, *(f"{part[column]:.1f}" for column in columns)] for name, part in parts.items()]
    return f"{table(rows)}\npeak memory {result['peak_memory_mib']} MiB | {result['verdict']}"


def verdict(avg_ms: float) -> str:
    """The mean against the success criteria."""
    if avg_ms < TARGET_MS:
        return f"meets the target (< {TARGET_MS} ms)"
    if avg_ms < MINIMUM_MS:
        return f"meets the minimum (< {MINIMUM_MS} ms), not the target (< {TARGET_MS} ms)"
    return f"misses the minimum (< {MINIMUM_MS} ms)"


if __name__ == "__main__":
    sys.exit(exit_code(main))
