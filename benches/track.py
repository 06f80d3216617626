"""The tracking server beside MLflow's own: start to first answer, memory, and what the `mlflow` client waits.

Both keep SQLite and files in an empty directory, start anew in each round and take turns; the client is the same `mlflow`
package in this process. `make bench` runs this.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import mlflow
import psutil
import report

ROOT = Path(__file__).resolve().parent.parent
HIGHROAD = Path(os.environ.get("HIGHROAD_BIN", ROOT / "target" / "release" / "highroad"))
N_STEPS = 200
SERVERS = {
    "highroad track": lambda port, home: [HIGHROAD, "track", "--listen", f"127.0.0.1:{port}", "--home", home],
    "mlflow server": lambda port, home: [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", f"{home}/artifacts"),
    ],
}  # fmt: skip
COLUMNS = {
    "start_s": "start to first answer, s",
    "memory_mb": "memory, MB",
    "log_ms": "one `log_metrics`, ms",
    "search_ms": "`search_runs`, ms",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {name: [] for name in SERVERS}
    for n in range(options.rounds):
        for name in SERVERS if n % 2 == 0 else reversed(SERVERS):
            found[name].append(measure(SERVERS[name]))
        print(f"round {n + 1} of {options.rounds}", file=sys.stderr)
    rows = []
    for name, rounds in found.items():
        medians = [statistics.median(each[key] for each in rounds) for key in COLUMNS]
        rows.append([f"`{name}`", *(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in medians)])
    text = report.markdown(["server", *COLUMNS.values()], rows)
    print(text)
    report.write("track.py", text)


def measure(command) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        started = time.monotonic()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen([str(part) for part in command(port, home)], cwd=home, **quiet)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/health", server)
            result = {"start_s": time.monotonic() - started}
            result |= use(address)
            result["memory_mb"] = memory_mb(server.pid)
            return result
        finally:
            for child in psutil.Process(server.pid).children(recursive=True):
                child.terminate()
            server.terminate()
            server.wait(timeout=30)


def wait_for(url, server) -> None:
    deadline = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"error: `{server.args[0]}` does not answer")


def use(address) -> dict[str, float]:
    mlflow.set_tracking_uri(address)
    mlflow.set_experiment("bench")
    waits = []
    with mlflow.start_run():
        for step in range(N_STEPS):
            begun = time.perf_counter()
            mlflow.log_metrics({"loss": 1 / (1 + step), "accuracy": step / N_STEPS}, step=step)
            waits.append((time.perf_counter() - begun) * 1e3)
    searches = []
    for _ in range(20):
        begun = time.perf_counter()
        mlflow.search_runs(experiment_names=["bench"], filter_string="metrics.loss < 0.5", output_format="list")
        searches.append((time.perf_counter() - begun) * 1e3)
    return {"log_ms": statistics.median(waits), "search_ms": statistics.median(searches)}


def memory_mb(pid) -> float:
    """Proportional set size of the server and its workers: shared pages count once."""
    server = psutil.Process(pid)
    return sum(process.memory_full_info().pss for process in [server, *server.children(recursive=True)]) / 1e6


if __name__ == "__main__":
    main()
