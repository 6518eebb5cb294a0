"""A file system that fails, or a process that is killed, at the n-th step that changes a folder.

Python tells an audit hook of every such step that goes through its own functions, before it is taken; the hook can only
raise. What a library writes natively is not seen: the weights (safetensors), the optimiser (torch.save) and converted
models (OpenVINO, ONNX). The kills at random moments in ``killed_runs`` cover those.
"""

import gc
import os
from contextlib import contextmanager
from sys import addaudithook

CHANGES = {"os.rename": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.chmod": 0, "os.truncate": 0, "os.link": 1}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_plan = None


class Killed(BaseException):
    """From here on the process changes nothing, not even when its blocks unwind: as after SIGKILL."""


class Plan:
    def __init__(self, folder, step, error):
        self.folder, self.step, self.error, self.count = str(folder), step, error, 0

    @property
    def reached(self):
        return self.count >= self.step

    def see(self, event, args):
        if event == "ctypes.dlopen":  # before the system call that exchanges two directories
            path = self.folder if args[0] is None else None
        elif event == "open":
            path = args[0] if args[2] & WRITES else None
        else:
            path = args[CHANGES[event]] if event in CHANGES else None
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(path)
        if os.path.isabs(path) and not path.startswith(self.folder):
            return
        self.count += 1
        full = self.error == "ENOSPC" and self.reached and event in ("open", "os.mkdir")
        if self.error == Killed and self.reached:
            raise Killed
        if full or (self.error in ("EIO", "EACCES") and self.count == self.step):
            number = {"ENOSPC": 28, "EIO": 5, "EACCES": 13}[self.error]
            raise OSError(number, os.strerror(number), path)


def _hook(event, args):
    if _plan is not None:
        _plan.see(event, args)


addaudithook(_hook)


def current_plan():
    """That of the block that is running, or None."""
    return _plan


@contextmanager
def faults(folder, step, error):
    """Within the block, let the ``step``-th change inside ``folder`` fail with ``error``.

    EIO and EACCES fail once, ENOSPC for every later file and directory as well, Killed for everything later.
    """
    global _plan
    _plan = Plan(folder, step, error)
    try:
        yield _plan
    finally:
        _plan = None
        gc.collect()  # a killed process holds no lock, and here a cycle of frames may keep one
