"""A stand-in for `lit_gen.cli.commands.run_repeats`, run in the sweep's workers: counts its executions in files."""

import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path

from lit_gen.core import progress, scores
from lit_gen.core.errors import UserError
from lit_gen.sweeps.trial import option

HELD: list[bytes] = []
"""What a trial leaves in its process."""


def run(arguments: list[str]) -> list[Path]:
    root = Path(option(arguments, "run.root") or "")
    key = "_".join(sorted(argument.lstrip("-") for argument in arguments if "run.root" not in argument))
    executions = root / "executions"
    executions.mkdir(parents=True, exist_ok=True)
    (executions / f"{key}@{uuid.uuid4().hex}").write_text(json.dumps({"pid": os.getpid(), "argv": sys.argv}))
    print("environment", os.environ["LIT_GEN_SWEEP"], os.environ.get("OMP_NUM_THREADS"))
    os.system("echo from a child process")
    time.sleep(float(option(arguments, "sleep") or 0))
    if option(arguments, "megabytes"):
        HELD.append(b"x" * int(option(arguments, "megabytes") or 0) * 10**6)
        time.sleep(float(option(arguments, "held") or 0))
    if option(arguments, "steps"):
        for _ in range(2):
            for listener in progress.listeners:
                listener(progress.Step("fake", 10, 20, 5.0))
            time.sleep(0.6)
    if value := option(arguments, "scores"):
        (root / "workers").mkdir(exist_ok=True)
        (root / "workers" / str(os.getpid())).touch()
        log_scores(float(value))
    behaviour = option(arguments, "behaviour")
    if behaviour == "user-error":
        raise UserError("model.lr must be positive")
    if behaviour == "exception":
        raise ValueError("bad\nthing")
    if behaviour == "parser":
        print("usage: lit-gen\nerror: no such option", file=sys.stderr)
        sys.exit(2)
    if behaviour in ("SIGKILL", "SIGINT", "SIGTERM", "SIGSTOP", "SIGSEGV"):
        os.kill(os.getpid(), signal.Signals[behaviour])
        time.sleep(0.2)  # a signal that Python handles
    if behaviour == "stops-once" and len(list(executions.glob("*"))) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "meets":  # a trial of another process
        until = time.monotonic() + 20
        while len({path.read_text() for path in executions.glob("*")}) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    if behaviour == "hurried":  # as a second Ctrl-C, which comes where no trial catches it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if behaviour == "leaves":
        os._exit(0)
    if behaviour == "real-time":
        os.kill(os.getpid(), signal.SIGRTMIN + 3)
    if behaviour == "no-result":
        return [root / "nowhere" / "result.json"]
    if behaviour == "heal" and not (root / "healed").exists():
        raise UserError("not healed yet")
    if behaviour == "environment":
        assert "LEFT_BEHIND" not in os.environ
        os.environ["LEFT_BEHIND"] = "1"
    results = []
    for seed in range(int(option(arguments, "evaluation.num_repeats") or 1)):
        result = root / f"run-{key}" / "evaluations" / ("e" if seed == 0 else f"e{seed}") / "result.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        score = 1.25 + seed
        if option(arguments, "square"):
            score = float(option(arguments, "x") or 0) ** 2 + float(option(arguments, "y") or 0)
        scores = {"fd_digits": score, "inception_score_std": 3.0}
        result.with_suffix(".tmp").write_text(json.dumps({"metrics": scores}))
        result.with_suffix(".tmp").rename(result)
        results.append(result)
    return results


def log_scores(value: float) -> None:
    """Evaluate a training three times, as `ScoreMonitor` does."""
    for listener in scores.listeners:
        listener.expect(["fd_digits", "inception_score"])
        for number in range(3):
            if listener.hear(100 * (number + 1), {"fd_digits": value, "inception_score": 1.0}):
                raise KeyboardInterrupt


def parameters(arguments: list[str]) -> list[Path]:
    """Read the JSON file of the trial, and check that it holds the same as the JSON among the arguments."""
    content = Path(option(arguments, "config") or "").read_text()
    assert json.loads(content) == json.loads(next(word for word in arguments if word.startswith("{")))
    copy = Path(option(arguments, "run.root") or "") / f"read-{uuid.uuid4().hex}.json"
    copy.write_text(content)
    return [copy]
