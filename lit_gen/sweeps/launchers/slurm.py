"""Jobs of SLURM, by submitit: each runs the whole sweep, and takes the trials that no other job holds.

A job that SLURM preempts, or whose time is over, saves the checkpoints of its trials and is queued again.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.text import printable

SECONDS_TO_SAVE = 60.0
"""Seconds after which a command that was told to stop is killed."""


class Slurm:
    """Launcher of SLURM jobs.

    Args:
        settings: Parameters of submitit's `AutoExecutor`, such as `timeout_min`, `slurm_partition`, `gpus_per_node`;
            `cluster: local` runs the jobs on this machine.

    Raises:
        UserError: If submitit is not installed.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("--launcher: slurm needs submitit; pip install 'lit_gen[slurm]'") from None
        self._submitit = submitit
        self.settings: dict[str, Any] = {
            key: int(value) if value.isdecimal() else value for key, value in settings.items() if key != "cluster"
        }
        self.cluster = settings.get("cluster", "slurm")

    def launch(self, words: Sequence[str], num_nodes: int, folder: Path) -> list[int]:
        """Run the command in a job per node; see `Launcher.launch`."""
        logs = folder / "slurm"
        try:
            executor = self._submitit.AutoExecutor(logs, cluster=self.cluster)
            executor.update_parameters(name=f"lit_gen-{folder.name}", **self.settings)
            jobs = [executor.submit(Share(list(words))) for _ in range(num_nodes)]
        except (NameError, RuntimeError, AssertionError, TypeError, ValueError) as error:
            reason = printable(str(error) or type(error).__name__).partition("\n")[0]
            raise UserError(f"--slurm: submitit refuses the jobs ({reason:.200}); see its AutoExecutor") from None
        print(f"{len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}; logs in {logs}", flush=True)
        try:
            return [_status(job) for job in jobs]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise


class Share:
    """The work of one job: the sweep, on the trials that no other job holds. It is pickled for the node.

    Args:
        words: Words of the command.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.folder = os.getcwd()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command, and return its exit status; 128 and more is a signal, as in a shell."""
        self._process = subprocess.Popen([sys.executable, "-m", "lit_gen", *self.words], cwd=self.folder)
        while (status := self._ended_within(1.0)) is None:
            pass
        return status if status >= 0 else 128 - status

    def checkpoint(self) -> Any:
        """Stop the command, which saves the checkpoints of its trials, and queue the job again; submitit calls it."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            if self._ended_within(SECONDS_TO_SAVE) is None:
                self._process.kill()
        return DelayedSubmission(Share(self.words))

    def _ended_within(self, seconds: float) -> int | None:
        """Return the exit status of the command; None if it still runs after a time.

        A wait without a time holds a lock of the process, which `checkpoint`, called by a signal handler in the middle
        of the wait, could never take.
        """
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def _status(job: Any) -> int:
    """Wait for a job, and return the exit status of its command; 1 if the job failed."""
    error = job.exception()
    if error is not None:
        print(f"job {job.job_id}: {printable(str(error)).strip().splitlines()[-1]:.200}", file=sys.stderr, flush=True)
        return 1
    status: int = job.result()
    return status
