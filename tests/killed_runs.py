"""Kill training runs at moments spread over their whole duration, and continue each; what test_resume_killed runs.

A process of its own: each run is a fork of one that has imported everything and started no thread, which takes a
second in place of ten.

    python tests/killed_runs.py SCRIPT WEIGHTS FOLDER N [FLAG ...]

Prints one JSON object per kill: the moment, what was there after it, and whether the continued run ended as the
uninterrupted one did.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


def main(script_name, weights, folder, n, *flags):
    import torch

    torch.set_num_threads(1)
    script = importlib.import_module(script_name)
    for module in ("training.fine_tuning", "training.failures", "training.saver", "scoring.scorer"):
        importlib.import_module(f"prefilter_common.{module}")

    def start(output, *more):
        """Fork a run; its output goes to a file."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        from prefilter_common.cli import exit_code

        with (folder / "log").open("a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os._exit(exit_code(lambda: script.main([*flags, "--output", str(output), *more])))

    def finish(output, *more):
        return os.waitstatus_to_exitcode(os.waitpid(start(output, *more), 0)[1])

    def outcome(output):
        metrics = json.loads((output / "training_metrics.json").read_text(encoding="utf-8"))
        kept = {key: metrics[key] for key in metrics if key.startswith("eval_") or "epoch" in key or key == "steps"}
        return (output / weights).read_bytes(), (output / "validation_predictions.jsonl").read_bytes(), kept

    folder = Path(folder)
    often = ["--checkpoint-minutes", "1e-6"]  # so that many moments fall into the writing of a checkpoint
    finish(folder / "warm")  # the first run reads files that the others find in memory
    started = time.monotonic()
    assert finish(folder / "whole", *often) == 0
    duration = time.monotonic() - started
    expected = outcome(folder / "whole")
    rng = random.Random(0)
    for i in range(int(n)):
        output = folder / f"m{i}"
        moment = (i + rng.random()) / int(n) * duration
        pid = start(output, *often)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = [path.name.replace(output.name, "m") for path in sorted(folder.glob(f"*{output.name}*"))]
        found += sorted(path.name for path in folder.glob(f".{output.name}.checkpoints*/checkpoint-*"))
        code = 0 if output.exists() else finish(output, "--resume")
        row = {"moment": round(moment, 3), "found": found, "code": code, "same": outcome(output) == expected}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
