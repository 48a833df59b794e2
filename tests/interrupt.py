"""A callback that ends a training without warning, as a crash or a kill would."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, Trainer

KILL_AT = "LIT_GEN_TEST_KILL_AT"


class CrashError(Exception):
    """Not an error of the program: the test's own."""


class Interrupt(Callback):
    """Dies once so many batches were trained.

    By SIGKILL for `kill:N`, by SIGTERM for `terminate:N`, by Ctrl-C for `interrupt:N`, by an exception for `raise:N`.
    Of two processes the second gets Ctrl-C three batches after the first, or for `interrupt-second:N` it alone does;
    for `kill-first:N` and `kill-second:N`, too, it is one alone.

    How is read from the environment, so the configuration, and with it the run's identity, stays the same.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        how, _, when = os.environ.get(KILL_AT, "").partition(":")
        late = 3 * trainer.global_rank if how == "interrupt" else 0  # of both
        how, _, which = how.partition("-")
        if which and trainer.global_rank != ("first", "second").index(which):
            return
        if how and pl_module.clock.batches_seen == int(when) + late:
            if how == "raise":
                raise CrashError
            signals = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}
            os.kill(os.getpid(), signals.get(how, signal.SIGINT))
