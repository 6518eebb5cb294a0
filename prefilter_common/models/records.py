"""The records of a model: its metrics, where it comes from and, for people, its card, README.md."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from prefilter_common.errors import InputError
from prefilter_common.files import read_record, write_json, write_text
from prefilter_common.models.contract import Contract
from prefilter_common.models.directory import CARD_FILE, METRICS_FILE, RUN_FILE, VALIDATION_FILE
from prefilter_common.models.packaged_encoder import PACKAGED_ENCODER
from prefilter_common.runinfo import RunInfo

# What the hub calls a base model that did not come from there.
HUB_NAMES = {PACKAGED_ENCODER: "intfloat/multilingual-e5-small"}
# Roles of files, as run.json has them.
TRAINED_ON = ("train", "soft_labels", "unlabelled")


def model_card(name: str, contract: Contract, metrics: Mapping, run: RunInfo | Mapping, adapter: bool = False) -> str:
    """README.md of a model directory; ``adapter`` when it contains a LoRA adapter, not a whole checkpoint."""
    trained_on = [run["data"][role] for role in TRAINED_ON if role in run["data"]]
    files = " and ".join(f"`{data['file']}` (sha256 `{data['sha256'][:12]}`)" for data in trained_on)
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
pipeline_tag: text-classification{_base_model(contract)}
---
# {name}

Tells commerce (deals, affiliate pieces, shopping guides, product promotion) from journalism.
Fine-tuned from `{contract.base_model}` on {metrics["train_articles"]} articles of
{files}.

| validation ({metrics["val_articles"]} articles) | F1 | precision | recall | accuracy |
|---|---|---|---|---|
| {_chosen(metrics)}, threshold 0.5 | {metrics["eval_f1"]:.3f} | {metrics["eval_precision"]:.3f} \
| {metrics["eval_recall"]:.3f} | {metrics["eval_accuracy"]:.3f} |

{_several_runs(metrics)}\
The epoch was chosen on these same articles, so the figures are optimistic; judge the model by its test results.

    {loading}

Input: `{contract.input_format}`, cut at {contract.max_length} tokens. Labels: 0 journalism, 1 commerce.
`prefilter.json` contains this contract, `training_metrics.json` the curve, `run.json` how the model was made:

    {run["command"]}
"""


def _base_model(contract: Contract) -> str:
    """Its line, where the hub has the base model: it knows no directory."""
    name = HUB_NAMES.get(str(contract.base_model), contract.base_model if contract.base_revision else None)
    return f"\nbase_model: {name}" if name else ""


def _chosen(metrics: Mapping) -> str:
    if metrics.get("kept") == "mean":
        return "mean of the weights"
    return f"best epoch ({metrics['best_epoch']:.0f})"


def _several_runs(metrics: Mapping) -> str:
    if "seeds" not in metrics:
        return ""
    n, kept = len(metrics["seeds"]), metrics["kept"]
    which = f"The mean of the weights of {n} runs" if kept == "mean" else f"The best of {n} runs, seed {kept}"
    each = ", ".join(f"{row['eval_f1']:.3f}" for row in metrics["seeds"])
    return f"{which}; their validation F1: {each}.\n"


def write_records(
    directory: Path, name: str, contract: Contract, metrics: Mapping, run: Mapping, adapter: bool = False
) -> None:
    """Write the metrics, the provenance and the model card of a model that will be called ``name``."""
    write_json(directory / METRICS_FILE, metrics)
    write_json(directory / RUN_FILE, run)
    write_text(directory / CARD_FILE, model_card(name, contract, metrics, run, adapter))


def copy_records(source: Path, directory: Path, name: str, contract: Contract) -> None:
    """The records of ``source`` for the same model in another form; nothing where it is of an earlier script."""
    if not all((source / file).is_file() for file in (METRICS_FILE, RUN_FILE, VALIDATION_FILE)):
        return
    metrics, run = (read_record(source / file) for file in (METRICS_FILE, RUN_FILE))
    try:
        write_records(directory, name, contract, metrics, run)
    except (KeyError, TypeError, ValueError) as error:
        files = f"{METRICS_FILE} and {RUN_FILE}"
        raise InputError(f"{source}: {files} are not those of training ({error!r}); delete both") from None
    shutil.copy(source / VALIDATION_FILE, directory)
