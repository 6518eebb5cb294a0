"""A latency that was measured after an evaluation in, its results with another choice and page out."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefilter_common.evaluation.report.content import Results
from prefilter_common.evaluation.results import RESULTS_FILE, choice_of, write_results
from prefilter_common.evaluation.sections import benchmarked
from prefilter_common.models.directory import fingerprints

log = logging.getLogger(__name__)


def refresh_latency(output: Path, directory: Path, record: Mapping[str, Any]) -> bool:
    """Add a latency measured after the evaluation to its results, and write its choice and page again.

    Args:
        record: what ``cpu_benchmark.json`` says.

    Returns whether ``output`` has results of this very model. Results of an earlier version are left alone.
    """
    path, model = output / RESULTS_FILE, directory.name
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        found[model]["f1"], found["_worst_errors"], (found["_audit"] or {"of_traffic": False})["of_traffic"]
        same = found[model]["files"] == fingerprints(directory)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not same:
        log.warning(f"{path}: holds results of a different {model}; its latency was not updated")
        return False
    found[model] |= {"cpu_benchmark_ms": record["avg_ms"], **benchmarked(record)}
    found["models"] = {name: found.pop(name) for name in list(found) if not name.startswith("_")}
    results: Results = found
    results["_choice"] = choice_of(results)
    write_results(output, results)
    return True
