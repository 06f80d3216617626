"""What logging costs the training thread: `highroad.run` beside `mlflow.log_metrics`, synchronous and asynchronous.

All log the same three metrics a step to the same `highroad track`. `make bench` runs this.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import report

import highroad

ROOT = Path(__file__).resolve().parent.parent
HIGHROAD = Path(os.environ.get("HIGHROAD_BIN", ROOT / "target" / "release" / "highroad"))
N_STEPS = 300


def values(step: int) -> dict[str, float]:
    return {"loss": 1 / (1 + step), "norm": 0.5, "rate": 1e-3}


def with_highroad(uri: str) -> list[float]:
    with highroad.run("bench", tracking_uri=uri, journal=tempfile.mkdtemp(), system_metrics=None) as run:
        return timed(lambda step: run.log(values(step), step=step))


def with_mlflow(synchronous: bool):
    def work(_: str) -> list[float]:
        with mlflow.start_run():
            waits = timed(lambda step: mlflow.log_metrics(values(step), step=step, synchronous=synchronous))
            mlflow.flush_async_logging()
        return waits

    return work


SIDES = {
    "`highroad.run`": with_highroad,
    "`mlflow.log_metrics`, asynchronous": with_mlflow(synchronous=False),
    "`mlflow.log_metrics`": with_mlflow(synchronous=True),
}


def timed(log) -> list[float]:
    waits = []
    for step in range(N_STEPS):
        begun = time.perf_counter()
        log(step)
        waits.append((time.perf_counter() - begun) * 1e6)
        time.sleep(0.001)
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as home:
        command = [str(HIGHROAD), "track", "--listen", "127.0.0.1:0", "--home", home]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            uri = f"http://{server.stdout.readline().strip().removeprefix('http://')}"
            mlflow.set_tracking_uri(uri)
            mlflow.set_experiment("bench")
            for n in range(options.rounds):
                for name in SIDES if n % 2 == 0 else reversed(SIDES):
                    found[name] += SIDES[name](uri)
                print(f"round {n + 1} of {options.rounds}", file=sys.stderr)
        finally:
            server.terminate()
            server.wait(timeout=30)
    rows = []
    for name, waits in found.items():
        cuts = statistics.quantiles(waits, n=100)
        rows.append([name, f"{cuts[49]:,.0f}", f"{cuts[98]:,.0f}"])
    text = report.markdown(["call", "p50, µs", "p99, µs"], rows)
    print(text)
    report.write("run.py", text)


if __name__ == "__main__":
    main()
