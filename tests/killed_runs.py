"""Kill runs at moments spread over their whole duration, and run each again; what test_resume_killed runs.

Each run is a fork of one process that has imported everything and started no thread, which takes a second in place of
ten. The arguments of ``main``:

    {train_encoder,train_qwen_lora} FOLDER N WEIGHTS FLAG ...
    {score,convert,evaluate} FOLDER N MODELS_DIR ARTICLES

Prints one JSON object per kill: the moment, what was there after it, whether that was whole, what the run that followed
left hidden, and whether it ended as the uninterrupted one did.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path


class Training:
    """Checkpoints as often as possible, so that many moments fall into the writing of one."""

    often = ("--checkpoint-minutes", "1e-6")

    def __init__(self, script, weights, *flags):
        self.script, self.weights, self.flags = importlib.import_module(script), weights, flags

    def run(self, output, again=False):
        return self.script.main([*self.flags, "--output", str(output), *self.often, *(["--resume"] if again else [])])

    def whole(self, output):
        return names(output) == names(output.with_name("whole"))

    def outcome(self, output):
        metrics = json.loads((output / "training_metrics.json").read_text(encoding="utf-8"))
        kept = {key: metrics[key] for key in metrics if key.startswith("eval_") or "epoch" in key or key == "steps"}
        return (output / self.weights).read_bytes(), (output / "validation_predictions.jsonl").read_bytes(), kept


class Score:
    """The rows appear all of them or none."""

    def __init__(self, models_dir, articles):
        from prefilter_common.scoring import rows, streaming

        rows.CHUNK = 2
        self.main, self.arguments = streaming.main, [str(Path(models_dir) / "tiny"), articles]

    def run(self, output, again=False):
        return self.main([*self.arguments, str(output)])

    def whole(self, output):
        return output.read_text(encoding="utf-8").count("\n") == len(Path(self.arguments[1]).read_text().splitlines())

    def outcome(self, output):
        return output.read_bytes()


class Convert:
    """An engine's folder inside a copy of the model directory."""

    def __init__(self, models_dir, articles):
        from prefilter_common.scoring.engines import conversion

        self.source, self.conversion = Path(models_dir) / "tiny", conversion

    def run(self, output, again=False):
        if not output.exists():
            shutil.copytree(self.source, output.with_name("." + output.name))
            output.with_name("." + output.name).rename(output)
        name = self.conversion.EngineName("onnxruntime", "fp32")
        return 0 if self.conversion.is_current(self.conversion.convert(output, name, None)) else 1

    def whole(self, output):
        folder = output / "onnxruntime-fp32"
        return not folder.exists() or self.conversion.is_current(folder)

    def outcome(self, output):
        return (output / "onnxruntime-fp32" / "model.onnx").read_bytes()


class Evaluate:
    """Each file of the results is whole; what depends on the time is left out of the comparison."""

    def __init__(self, models_dir, articles):
        import evaluate_models

        self.main, self.models_dir = evaluate_models.main, models_dir
        self.flags = ["--test-data", articles, "--latency-samples", "1"]

    def run(self, output, again=False):
        return self.main([*self.flags, "--models-dir", self.models_dir, "--output", str(output)])

    def whole(self, output):
        predictions = output / "predictions" / "tiny.jsonl"
        n_articles = len(Path(self.flags[1]).read_text(encoding="utf-8").splitlines())
        if predictions.exists() and len(predictions.read_text(encoding="utf-8").splitlines()) != n_articles:
            return False
        contract = Path(self.models_dir) / "tiny" / "prefilter.json"
        return all(json.loads(path.read_text(encoding="utf-8")) for path in (*output.glob("*.json"), contract))

    def outcome(self, output):
        results = json.loads((output / "evaluation_results.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in results["tiny"].items() if not key.endswith("_ms")}
        return kept, (output / "predictions" / "tiny.jsonl").read_bytes()


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


KINDS = {"score": Score, "convert": Convert, "evaluate": Evaluate}


def main(argv):
    kind, folder, n, *arguments = argv
    case = KINDS[kind](*arguments) if kind in KINDS else Training(kind, *arguments)
    folder, n = Path(folder), int(n)

    def start(output, again=False):
        """Fork a run; its output goes to a file."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        from prefilter_common.cli import exit_code

        with (folder / "log").open("a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os._exit(exit_code(lambda: case.run(output, again)))

    def finish(output, again=False):
        return os.waitstatus_to_exitcode(os.waitpid(start(output, again), 0)[1])

    finish(folder / "warm")  # the first run reads files that the others find in memory
    started = time.monotonic()
    assert finish(folder / "whole") == 0, (folder / "log").read_text(encoding="utf-8")
    duration = time.monotonic() - started
    expected = case.outcome(folder / "whole")
    rng = random.Random(0)
    for i in range(n):
        output = folder / f"m{i}"
        moment = (i + rng.random()) / n * duration
        pid = start(output)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = names(folder, f"*{output.name}*")
        whole = not output.exists() or case.whole(output)
        whole = whole and all(name == output.name or name.startswith(".") for name in found)
        found += names(folder, f".{output.name}.checkpoints*/checkpoint-*")
        finished = output.exists() and kind not in ("convert", "evaluate")  # those fill a folder that is there
        code = 0 if finished else finish(output, again=True)
        left = [] if finished else names(folder, f".{output.name}*")
        row = {"moment": round(moment, 3), "found": found, "whole": whole, "code": code, "left": left}
        print(json.dumps({**row, "same": case.outcome(output) == expected}), flush=True)
    return 0
