"""The sweep's side of a worker process: start it, hand it a trial, read its answer, notice its death, stop it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gen.core.progress import Step
from lit_gen.sweeps.spec import Trial


@dataclass
class Assignment:
    """A trial that a worker is at, since when (in the seconds of `time.monotonic`), how far it is, and whether its
    process was reported as silent."""

    trial: Trial
    log: Path
    since: float = field(default_factory=time.monotonic)
    step: Step | None = None
    silent: bool = False

    @property
    def seconds(self) -> float:
        """Seconds since the trial was handed over."""
        return time.monotonic() - self.since


def ending(code: int) -> str:
    """Return how a process ended, given the status that its parent sees: by a signal, or with an exit status."""
    if code < 0:
        return f"was ended by {_name(-code)}" + ("; out of memory?" if code == -signal.SIGKILL else "")
    as_after = f", as a shell says of {_name(code - 128)}" if code > 128 else ""
    return f"ended before its trial, with exit status {code}{as_after}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


class Worker:
    """One place of the sweep, filled by a worker process that is started when a trial needs it.

    The process leads a process group of its own: a Ctrl-C reaches it only through `signal`, with the children of DDP.

    Args:
        runner: `module:function` that runs a trial.
        environment: The environment of the process.
    """

    def __init__(self, runner: str, environment: dict[str, str]) -> None:
        self.assignment: Assignment | None = None
        self._runner = runner
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._heard = 0.0

    def assign(self, trial: Trial, log: Path) -> None:
        """Hand over a trial, first starting a process if there is none."""
        self.assignment = Assignment(trial, log)
        self._heard = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._received = b""
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lit_gen.sweeps.workers", f"--parent={os.getpid()}", f"--runner={self._runner}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._environment,
                process_group=0,
            )
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
        request = {"id": trial.id, "arguments": trial.arguments, "log": os.path.abspath(log)}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; `answer` reports how
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int | None:
        """Id of the process; None while there is none."""
        return self._process.pid if self._process else None

    @property
    def silence(self) -> float:
        """Seconds since the process was given its trial or last gave a sign of life, which it does every second."""
        return time.monotonic() - self._heard

    @property
    def file(self) -> Any:
        """What to select on for an answer; None while there is no process."""
        return self._process.stdout if self._process else None

    def answer(self) -> dict[str, Any] | None:
        """The answer to the trial, `{"status", "result" | "error"}`; None while there is none. Never waits for it."""
        if self._process is None or self.assignment is None:
            return None
        dead = self._process.poll() is not None  # asked first: what was written before death is read below
        assert self._process.stdout is not None
        while received := self._process.stdout.read():
            self._received += received
            self._heard = time.monotonic()
        while b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            if not line:
                continue
            answer = json.loads(line)
            if "step" in answer:
                self.assignment.step = Step(*answer["step"])
                continue
            if answer["exit"]:
                self.close(patience=30)
            return answer
        if dead:
            code = self._process.returncode
            self.close()
            return {"status": "failed", "error": f"the worker {ending(code)}"}
        return None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def hang_up(self) -> None:
        """Close the worker's standard input: an idle one leaves, a busy one leaves after its trial."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self, patience: float = 0.0) -> None:
        """End the process; unless it leaves by itself within `patience` seconds, kill it and its children."""
        if self._process is None:
            return
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        if self._process.returncode != 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
