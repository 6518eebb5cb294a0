"""Run jobs in forks of one process that has imported everything, in place of seconds of imports for each.

The fixture ``forks`` starts it and writes a job as one line of JSON: a module, the arguments of its ``main``, in how
many processes, which find each other as those of torchrun do, and a folder for what they print. The answer is a line
with their exit codes.
"""

import importlib
import json
import os
import signal
import socket
import sys
from contextlib import suppress

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

IMPORTED = ["killed_runs", "train_encoder", "train_qwen_lora", "evaluate_models"]
IMPORTED += ["prefilter_common." + name for name in (
    "cli", "models.checkpoints", "scoring.scorer", "scoring.streaming", "scoring.engines.conversion",
    "training.fine_tuning", "training.interruption.failures", "training.interruption.saver",
)]  # fmt: skip


def start(job, rank, port):
    """Fork one process of a job."""
    pid = os.fork()
    if pid:
        return pid
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{job['folder']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if (n := str(job["processes"])) != "1":
        signal.alarm(300)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=n, LOCAL_WORLD_SIZE=n)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    main = sys.modules[job["module"]].main
    os._exit(sys.modules["prefilter_common.cli"].exit_code(lambda: main(job["arguments"])))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    with suppress(ImportError):
        import onnx  # noqa: F401
    for line in sys.stdin:
        job, port = json.loads(line), free_port()
        started = [start(job, rank, port) for rank in range(job["processes"])]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]), flush=True)
