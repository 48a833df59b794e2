"""The worker process of a sweep: `python -m lit_gen.sweeps.workers`.

Importing torch and Lightning takes longer than many trials, so one process runs several trials. For each trial, it

- reads a JSON line `{"id", "arguments", "log"}` from its standard input,
- runs the trial with both output streams in the log file,
- writes progress to its original standard output, `{"id", "step": [...]}` (see `core.progress`),
- if the request holds a `metric`: writes it after each evaluation during training, `{"id", "images", "score"}`, and
  reads a line `{"stop": reason | null}`; a reason ends the training after its checkpoint,
- answers with `{"id", "status": "finished" | "failed" | "stopped", "results" | "error" | "reason", "exit"}`;
  `"exit": true` means that the worker exits after this answer, because a process group cannot be used twice, and
  `"user": true` that the error is one of the settings, which another attempt would meet again.

An empty line every second is a sign of life. The worker exits when its standard input ends; on Linux it also ends with
its parent in the middle of a trial.
"""

import argparse
import contextlib
import faulthandler
import gc
import importlib
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_gen.core import progress, scores
from lit_gen.core.errors import UserError
from lit_gen.sweeps.lifeline import die_with
from lit_gen.sweeps.trial import option

SECONDS_BETWEEN_STEPS = 0.5
SECONDS_BETWEEN_SIGNS_OF_LIFE = 1.0


def main() -> None:
    """Serve trials until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--runner", required=True, help="module:function, arguments -> paths of result.json files")
    settings = parser.parse_args()
    die_with(settings.parent)
    requests, answers = _private_streams()
    threading.Thread(target=answers.give_signs_of_life, daemon=True).start()
    _look_like_the_command()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for line in requests:
            request = json.loads(line)
            progress.listeners[:] = [_Teller(request["id"], answers)]
            judged = _Judged(request["id"], request["metric"], requests, answers) if "metric" in request else None
            scores.listeners[:] = [judged] if judged else []
            answer = _serve(request, settings.runner, judged)
            answers.send(json.dumps(answer))
            if answer["exit"]:
                break
            gc.collect()
    except KeyboardInterrupt:  # not in a trial: end by the signal, so that the sweep sees by which
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


class _Answers:
    """The pipe to the sweep, for whole lines from several threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, line: str) -> None:
        data = line.encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def give_signs_of_life(self) -> None:
        with contextlib.suppress(OSError):  # the sweep is gone
            while True:
                self.send("")
                time.sleep(SECONDS_BETWEEN_SIGNS_OF_LIFE)


class _Teller:
    """A listener that sends the progress of a trial to the sweep, at most every `SECONDS_BETWEEN_STEPS`."""

    def __init__(self, trial: str, answers: _Answers) -> None:
        self._trial = trial
        self._answers = answers
        self._told = -math.inf

    def __call__(self, reached: progress.Step) -> None:
        if time.monotonic() - self._told < SECONDS_BETWEEN_STEPS:
            return
        self._told = time.monotonic()
        with contextlib.suppress(OSError):
            self._answers.send(json.dumps({"id": self._trial, "step": reached}))


class _Judged:
    """A listener that sends the score of each evaluation during training to the sweep, which may stop the trial."""

    def __init__(self, trial: str, metric: str, requests: Any, answers: _Answers) -> None:
        self._trial = trial
        self._metric = metric
        self._requests = requests
        self._answers = answers
        self.reason: str | None = None

    def expect(self, names: Collection[str]) -> None:
        """Raise a UserError if the metric of the sweep is not among the scores."""
        if self._metric not in names:
            known = f"name one of {', '.join(names)}" if names else "set monitor.every to a number of images"
            raise UserError(
                f"metric.name: early_terminate compares trials by {self._metric}, which is not logged during training; "
                f"{known}"
            )

    def hear(self, images: int, found: Mapping[str, float]) -> bool:
        """Return whether the sweep stops the trial after these scores."""
        if self._metric not in found:
            return False
        score = float(found[self._metric])
        self._answers.send(json.dumps({"id": self._trial, "images": images, "score": score}))
        reply = self._requests.readline()
        self.reason = json.loads(reply)["stop"] if reply else None
        return self.reason is not None


def _private_streams() -> tuple[Any, _Answers]:
    """Return the pipes from and to the sweep, moved so that no trial and no child process uses them by accident."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = _Answers(os.dup(1))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return requests, answers


def _look_like_the_command() -> None:
    """Let `__main__` name `lit_gen`, the module with which Lightning starts the other processes of DDP."""
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("lit_gen.__main__")


def _serve(request: dict[str, Any], runner: str, judged: _Judged | None = None) -> dict[str, Any]:
    arguments = request["arguments"]
    log = Path(request["log"])
    begin = log.stat().st_size if log.exists() else 0
    answer: dict[str, Any] = {"id": request["id"], "status": "failed", "exit": False}
    with _redirected(log), _restored_environment():
        sys.argv = ["lit-gen", "run", *arguments]
        try:
            results = _load(runner)(list(arguments))
            for result in results:
                if not Path(result).is_file():
                    raise RuntimeError(f"the run ended without its result {result}")
            answer |= {"status": "finished", "results": [os.path.abspath(result) for result in results]}
        except UserError as error:
            _log(str(error))
            answer |= {"error": str(error), "user": True}
        except SystemExit as error:
            answer["error"] = f"exit status {error.code}"
        except KeyboardInterrupt:
            if judged is not None and judged.reason is not None:
                _log(f"stopped early: {judged.reason}")
                answer |= {"status": "stopped", "reason": judged.reason}
            else:
                _log(traceback.format_exc())
                answer |= {"error": "the trial was interrupted, by SIGINT or SIGTERM", "exit": True}
        except BaseException as error:
            _log(traceback.format_exc())
            answer["error"] = f"{type(error).__name__}: {error}"
        answer["exit"] |= _spoiled(arguments)
    if answer.get("error", "").startswith("exit status"):
        answer["error"] = _last_line(log, begin) or answer["error"]
    if "error" in answer:
        answer["error"] = " ".join(answer["error"].split())[:500]
    return answer


def _load(runner: str) -> Callable[[list[str]], list[Path]]:
    module, _, function = runner.partition(":")
    return getattr(importlib.import_module(module), function)


def _spoiled(arguments: list[str]) -> bool:
    """Return whether the trial left a process group behind, or used settings that do."""
    for key in ("trainer.devices", "trainer.num_nodes", "trainer.strategy"):
        if option(arguments, key) not in (None, "1", "auto"):
            return True
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


@contextlib.contextmanager
def _redirected(log: Path) -> Iterator[None]:
    """Append both output streams, also of child processes, to a file."""
    saved = [os.dup(1), os.dup(2)]
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        _flush()
        for number, copy in enumerate(saved, start=1):
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the disk of the log is full
            stream.flush()


def _log(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


@contextlib.contextmanager
def _restored_environment() -> Iterator[None]:
    environment, arguments, directory = dict(os.environ), sys.argv, os.getcwd()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(directory)
        sys.argv = arguments


def _last_line(log: Path, begin: int) -> str:
    lines = log.read_bytes()[begin:].decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    main()
