"""Tasks of a Ray cluster: each runs the whole sweep, and takes the trials that no other task holds.

Ray starts the task of a lost node again on another one. The resources of a task are those of its trials together.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gen.core.errors import UserError
from lit_gen.core.text import printable

SECONDS_TO_SAVE = 60.0
"""Seconds after which a command that was told to stop is killed."""

_OPTIONS = {"num_cpus": float, "num_gpus": float, "memory": int, "max_retries": int, "accelerator_type": str}


class Ray:
    """Launcher of tasks on a Ray cluster.

    Args:
        settings: `address` of the cluster, by default the one of this machine; `num_cpus`, `num_gpus`, `memory` in
            bytes, `accelerator_type` and custom resources of a task; `max_retries`, how often the task of a lost node
            starts again.

    Raises:
        UserError: If Ray is not installed, or a value is not a number.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--launcher: ray needs Ray; pip install 'lit_gen[ray]'") from None
        self._ray = ray
        self.address = settings.get("address", "auto")
        self.options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        for key, value in settings.items():
            try:
                if key in _OPTIONS:
                    self.options[key] = _OPTIONS[key](value)
                elif key != "address":
                    self.options.setdefault("resources", {})[key] = float(value)
            except ValueError:
                raise UserError(f"--ray: {key}={value:.40} is not a number; give one such as {key}=1") from None

    def launch(self, words: Sequence[str], num_nodes: int, folder: Path) -> list[int]:
        """Run the command in a task per node; see `Launcher.launch`."""
        ray, logs = self._ray, folder.absolute() / "ray"
        try:
            ray.init(self.address, logging_level="warning", log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = printable(str(error)).partition("\n")[0]
            remedy = "start it with ray start --head, or give --ray address=HOST:PORT"
            raise UserError(f"--launcher: no Ray cluster at {self.address} ({reason:.200}); {remedy}") from None
        try:
            task = ray.remote(run_share).options(name=f"lit_gen-{folder.name}", **self.options)
            tasks = [task.remote(list(words), os.getcwd(), str(logs / f"{n}.log")) for n in range(num_nodes)]
            print(f"{num_nodes} tasks of Ray; logs in {logs}", flush=True)
            try:
                return [self._status(task) for task in tasks]
            except BaseException:
                for task in tasks:
                    ray.cancel(task)
                ray.wait(tasks, num_returns=num_nodes, timeout=SECONDS_TO_SAVE)
                raise
        except (ValueError, TypeError) as error:
            raise UserError(f"--ray: Ray refuses the tasks ({printable(error):.200}); see ray.remote") from None
        finally:
            ray.shutdown()

    def _status(self, task: Any) -> int:
        """Wait for a task, and return the exit status of its command; 1 if the task failed."""
        try:
            status: int = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            print(f"task of Ray: {printable(error):.200}", file=sys.stderr, flush=True)
            return 1
        return status


def run_share(words: list[str], folder: str, log: str) -> int:
    """Run the command on a node, and return its exit status; 128 and more is a signal, as in a shell.

    The command ends with its task: at once if Ray kills it, and after saving checkpoints if it is cancelled.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lit_gen.sweeps.lifeline", str(os.getpid()), "lit_gen", *words]
    with open(log, "ab") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        while (status := process.poll()) is None:
            time.sleep(0.5)  # Ray cancels a task between two lines of Python, so not in a wait without end
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    return status if status >= 0 else 128 - status
