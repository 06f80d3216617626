"""One training over the machines of a Ray cluster.

`highroad train --on ray` submits this module with Ray's own job client. It reserves one bundle a machine and starts torchrun in each;
the first also opens the run. Where one of them fails the others are stopped, and a stopped job first lets its script save where it is.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

# Longer than a script takes to write its checkpoint.
STOP_S = 120


class Machine:
    """An actor in one bundle; `stop` runs beside `train`."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def endpoint(self) -> str:
        """Where the others find this machine: its address and a port that is free now."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def train(self, command: list[str], environment: dict[str, str]) -> int:
        self.process = subprocess.Popen([sys.executable, *command], env=os.environ | environment)
        return self.process.wait()

    def stop(self) -> None:
        if self.process:
            self.process.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m highroad._ray", description=__doc__)
    parser.add_argument("--nnodes", type=int, required=True, help="machines")
    parser.add_argument("--nproc", type=int, required=True, help="processes of each, one for each GPU where there are GPUs")
    parser.add_argument("--threads", type=int, required=True, help="threads of each process")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="script and its options")
    options = parser.parse_args()

    ray.init()
    gpus = {"GPU": options.nproc} if ray.cluster_resources().get("GPU") else {}
    bundle = {"CPU": options.nproc * options.threads} | gpus
    group = placement_group([bundle] * options.nnodes, strategy="SPREAD")
    print(f"waiting for {options.nnodes} x {bundle}", flush=True)
    ray.get(group.ready())
    machines = [
        ray.remote(Machine)
        .options(
            num_cpus=bundle["CPU"],
            num_gpus=gpus.get("GPU", 0),
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        .remote()
        for rank in range(options.nnodes)
    ]
    endpoint = ray.get(machines[0].endpoint.remote())
    work = [
        machine.train.remote(command(options, rank, endpoint), environment(options, rank))
        for rank, machine in enumerate(machines)
    ]

    def stop(*_: object) -> None:
        ray.get([machine.stop.remote() for machine in machines])

    signal.signal(signal.SIGTERM, stop)
    return first_failure(work, stop)


def command(options: argparse.Namespace, rank: int, endpoint: str) -> list[str]:
    meet = ["--nnodes", options.nnodes, "--node-rank", rank, "--rdzv-backend", "static", "--rdzv-endpoint", endpoint]
    processes = ["--nproc-per-node", options.nproc]
    return ["-m", "torch.distributed.run", *map(str, [*meet, *processes]), *options.script]


def environment(options: argparse.Namespace, rank: int) -> dict[str, str]:
    # Only the machine with rank 0 reports; Ray would give each process one thread.
    run = {"MLFLOW_RUN_ID": "", "MLFLOW_TRACKING_URI": ""} if rank else {}
    return {"OMP_NUM_THREADS": str(options.threads), "PYTHONUNBUFFERED": "1"} | run


def first_failure(work: list[ray.ObjectRef], stop) -> int:
    """Waits for all; the exit code of the first that failed, else 0."""
    code = 0
    while work:
        done, work = ray.wait(work, timeout=STOP_S if code else None)
        if not done:
            return code
        for ended in ray.get(done):
            if ended and not code:
                code = ended
                stop()
    return code


if __name__ == "__main__":
    sys.exit(main())
