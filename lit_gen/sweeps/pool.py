"""Start and stop worker processes, hand them trials and read their answers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gen.core.progress import Step
from lit_gen.sweeps.trial import Trial


@dataclass
class Assignment:
    """The trial of a worker.

    Args:
        trial: The trial.
        log: File of its output.
        since: Time of its start in seconds of `time.monotonic`.
        step: Its latest progress; None before the first.
        silent: Whether its process was reported as silent.
        scores: Evaluations during its training that wait for a reply: images seen, and the value of the metric.
        ending: Why it is being ended, in one line; None if it is not.
        replaced: Whether it is ended for a reason that may be its process's and not its own: it gets another one.
    """

    trial: Trial
    log: Path
    since: float = field(default_factory=time.monotonic)
    step: Step | None = None
    silent: bool = False
    scores: deque[tuple[int, float]] = field(default_factory=deque)
    ending: str | None = None
    replaced: bool = False
    _signals: deque[tuple[float, signal.Signals]] = field(default_factory=deque)

    def end(self, reason: str, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        """Let `due` return signals that end the trial, each some seconds after the one before."""
        if self.ending is None:
            self.ending = reason
            at = time.monotonic()
            for number, seconds in steps:
                self._signals.append((at, number))
                at += seconds

    def due(self) -> signal.Signals | None:
        """Return the signal to send now; None if there is none."""
        if self._signals and time.monotonic() >= self._signals[0][0]:
            return self._signals.popleft()[1]
        return None

    @property
    def seconds(self) -> float:
        """Seconds since the start of the trial."""
        return time.monotonic() - self.since


def ending(code: int) -> str:
    """Return in words how a process ended: by a signal (a negative code) or with an exit status."""
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
    """A worker process, started when a trial needs it.

    The process leads its own process group, so that a Ctrl-C reaches it and its DDP children only through `signal`.

    Args:
        runner: `module:function` that runs a trial.
        environment: The environment of the process.

    Attributes:
        assignment: The trial that it runs; None if it is idle.
        is_used: Whether the process ran another trial before this one.
    """

    def __init__(self, runner: str, environment: dict[str, str]) -> None:
        self.assignment: Assignment | None = None
        self.is_used = False
        self._runner = runner
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._heard = 0.0

    def assign(self, trial: Trial, log: Path) -> None:
        """Hand over a trial; start a process if there is none."""
        self.assignment = Assignment(trial, log)
        self._heard = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self.close()
        self.is_used = self._process is not None
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
        request: dict[str, Any] = {"id": trial.id, "arguments": trial.arguments, "log": os.path.abspath(log)}
        if trial.hyperband is not None:
            request["metric"] = trial.metric
        self._send(request)

    def reply(self, reason: str | None) -> None:
        """Tell the trial, which waits after an evaluation during its training, to stop for a reason or to continue."""
        self._send({"stop": reason})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        if self._process.stdin.closed:  # it was told to end
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended; `answer` reports how
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int | None:
        """Id of the process; None if there is none."""
        return self._process.pid if self._process else None

    @property
    def silence(self) -> float:
        """Seconds since the start of the trial or the last sign of life, which the process gives every second."""
        return time.monotonic() - self._heard

    @property
    def file(self) -> Any:
        """The pipe of the answers, for a selector; None if there is no process."""
        return self._process.stdout if self._process else None

    def answer(self) -> dict[str, Any] | None:
        """Return the answer to the trial, `{"status", "results" | "error" | "reason"}`; None if it is not there yet."""
        if self._process is None or self.assignment is None:
            return None
        dead = self._process.poll() is not None  # checked first: output before the end is read below
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
            if "score" in answer:
                self.assignment.scores.append((answer["images"], answer["score"]))
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
        """Close the worker's standard input, which ends it now or after its trial."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self, patience: float = 0.0) -> None:
        """End the process; kill it and its children unless it exits within `patience` seconds."""
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
