"""What ends a script: bad input, a failure with a known cause, or a signal."""


class InputError(Exception):
    """Bad arguments or bad input. The message names the place and the fix; the script exits with 2."""


class RunError(Exception):
    """A run cannot go on, for a reason that is known. The message names it and the fix; the script exits with 1."""


class Stopped(BaseException):
    """SIGTERM or SIGHUP arrived; like KeyboardInterrupt, it passes through ``except Exception``."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum
