"""Numbers -> what people read: tables on the terminal, model cards."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it would load torch, which a table does not need
    from prefilter_common.contract import Contract


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the header, as aligned text: first column left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def summary_line(output: Path, metrics: dict) -> str:
    """A training run's last line on stdout: one compact JSON object."""
    keys = ("eval_f1", "eval_precision", "eval_recall", "best_epoch", "train_seconds", "train_articles_per_second")
    return json.dumps({"model": str(output), **{key: metrics[key] for key in keys}}, separators=(",", ":"))


def model_card(name: str, contract: "Contract", metrics: dict, run: dict, adapter: bool = False) -> str:
    """README.md of a model directory; ``adapter`` when it holds a LoRA adapter, not a whole checkpoint."""
    data = run["data"]["train"]
    loading = (
        f"""from peft import AutoPeftModelForSequenceClassification
    model = AutoPeftModelForSequenceClassification.from_pretrained("{name}")"""
        if adapter
        else f"""from transformers import pipeline
    classify = pipeline("text-classification", model="{name}", truncation=True)
    classify("[TITLE] Half price today [CONTENT] Order now and save.")"""
    )
    return f"""---
library_name: {"peft" if adapter else "transformers"}
pipeline_tag: text-classification
base_model: {contract.base_model}
---
# {name}

Tells commerce (deals, affiliate pieces, shopping guides, product promotion) from journalism.
Fine-tuned from `{contract.base_model}` on {metrics["train_articles"]} articles
(`{data["file"]}`, sha256 `{data["sha256"][:12]}`).

| validation ({metrics["val_articles"]} articles) | F1 | precision | recall | accuracy |
|---|---|---|---|---|
| best epoch ({metrics["best_epoch"]:.0f}), threshold 0.5 | {metrics["eval_f1"]:.3f} | {metrics["eval_precision"]:.3f} \
| {metrics["eval_recall"]:.3f} | {metrics["eval_accuracy"]:.3f} |

The epoch was chosen on these same articles, so the figures flatter; judge the model by its test results.

    {loading}

Input: `{contract.input_format}`, cut at {contract.max_length} tokens. Labels: 0 journalism, 1 commerce.
`prefilter.json` holds this contract, `training_metrics.json` the curve, `run.json` how it was made:

    {run["command"]}
"""
