"""Training runs as forks of one process that has imported torch already: starting Python anew would be most of the time."""

import multiprocessing
import os
import runpy
import socket
import sys
from contextlib import suppress
from pathlib import Path

import torch

_FORKS = multiprocessing.get_context("forkserver")
# The server does not look beside this file, so its modules are named one by one.
_FORKS.set_forkserver_preload(["highroad.training", "sklearn.datasets", "torch._dynamo", "torch.profiler"])


class Run:
    """`train.py ARGS` in ``repo``, as torchrun would start it, output in a file; or another script or module there."""

    def __init__(
        self, repo: Path, *args: object, script: str = "train.py", processes: int = 1, **variables: object
    ) -> None:
        self._log = repo / "output.txt"
        self._log.write_bytes(b"")
        variables |= {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        command = [script, *map(str, args)]
        self._forks = [
            _FORKS.Process(target=_run, args=(repo, self._log, command, variables | {"RANK": rank, "LOCAL_RANK": rank}))
            for rank in range(processes)
        ]
        for fork in self._forks:
            fork.start()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def alive(self) -> bool:
        return any(fork.is_alive() for fork in self._forks)

    def send(self, number: int) -> None:
        for fork in self._forks:
            with suppress(ProcessLookupError):
                os.kill(fork.pid, number)

    def wait(self) -> int:
        """The highest exit code, as `multiprocessing` tells it: negative for a signal."""
        for fork in self._forks:
            fork.join(timeout=120)
        return max((fork.exitcode for fork in self._forks), key=abs)


def _run(repo: Path, log: Path, command: list[str], variables: dict[str, object]) -> None:
    os.chdir(repo)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update({name: str(value) for name, value in variables.items()})
    sys.argv = command
    torch.set_num_threads(1)
    if not command[0].endswith(".py"):
        return runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    # As Python does it: what lies beside a script can be imported.
    sys.path.insert(0, str((repo / command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
