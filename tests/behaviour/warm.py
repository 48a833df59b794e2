"""Serve the commands `lit-gen` and `wandb` from one process that has imported them: a call takes a fork, not seconds.

    python -m tests.behaviour.warm SOCKET       listens until it is terminated
    command(SOCKET, path, "lit-gen", more)      writes an executable that calls `lit-gen ARGUMENTS` there

The caller's arguments, environment, current folder and streams are those of the fork.
"""

import importlib
import json
import os
import socket
import stat
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

COMMANDS = {"lit-gen": ("lit_gen.cli.main", "main"), "wandb": ("wandb.cli.cli", "cli")}
IMPORTED = (
    *("lit_gen.cli.commands", "lit_gen.runs.tracking.wandb_runs", "lit_gen.pictures.points"),
    *("sklearn.datasets", "torchvision.utils", "scipy.stats", "wandb.sdk.launch", "wandb.wandb_agent"),
)
SECONDS_BETWEEN_QUESTIONS = 0.2
"""Between two questions of W&B's agent what there is to do, in place of 5."""
CLIENT = """#!{python} -IS
import json, os, socket, sys
more = {more!r}
arguments = [*sys.argv[1:], *(added for word in sys.argv[1:] for added in more.get(word, []))]
call = [{name!r}, arguments, dict(os.environ), os.getcwd()]
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps(call).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or b"99"))
"""


def command(address: Path, path: Path, name: str, more: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write an executable that calls a command in the process that listens at an address.

    A word that is a key of `more` adds words at the end.
    """
    path.write_text(CLIENT.format(python=sys.executable, name=name, more=dict(more or {}), address=str(address)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def main(address: str) -> None:
    for name in (*IMPORTED, *(module for module, _ in COMMANDS.values())):
        importlib.import_module(name)
    importlib.import_module("wandb.wandb_agent").Agent.POLL_INTERVAL = SECONDS_BETWEEN_QUESTIONS  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                server.close()
                os._exit(serve(caller))
            caller.close()
            with suppress(ChildProcessError):  # those that have ended
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def serve(caller: socket.socket) -> int:
    """Run one call in this fork, and answer with its exit code."""
    text, streams, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    while part := caller.recv(1 << 20):
        text += part
    for stream, given in enumerate(streams):
        os.dup2(given, stream)
    name, arguments, environment, folder = json.loads(text)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [name, *arguments]
    module, function = COMMANDS[name]
    code: object = 1
    try:
        code = getattr(importlib.import_module(module), function)()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        caller.sendall(str(code if isinstance(code, int) else int(code is not None)).encode())
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
