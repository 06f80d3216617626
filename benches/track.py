"""The tracking server beside MLflow's own: start to first answer, idle memory, what each request takes, what the `mlflow`
client waits, and how many metric points a second eight writers get acknowledged.

Both keep SQLite and files in an empty directory, start anew in each round and take turns; the clients are the same, in this
process and on the server's own cores. `make bench` runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import mlflow
import psutil
import report

ROOT = Path(__file__).resolve().parent.parent
HIGHROAD = Path(os.environ.get("HIGHROAD_BIN", ROOT / "target" / "release" / "highroad"))
N_STEPS = 100
N_RUNS = 300
N_WRITERS = 8
N_BATCHES = 300
METRICS = [f"metric_{n}" for n in range(10)]
# Points of one `log-batch`, as many as MLflow takes.
BATCH = 1000
WRITE_FOR_S = 5
SERVERS = {
    "highroad track": lambda port, home: [HIGHROAD, "track", "--listen", f"127.0.0.1:{port}", "--home", home],
    "mlflow server": lambda port, home: [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", f"{home}/artifacts"),
    ],
}  # fmt: skip
ROWS = {
    "start_ms": "start to first answer, ms",
    "memory_mb": "memory, idle, MB",
    "create_run_ms": "`runs/create`, ms",
    "log_metric_ms": "`runs/log-metric`, ms",
    "log_batch_ms": "`runs/log-batch` of 1000 metrics, ms",
    "search_ms": "`runs/search`, 100 of 300 runs, ms",
    "client_ms": "`mlflow.log_metrics` of 2, ms",
    "points_per_s": "points/s, 8 writers of 1000 each",
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
    median = {name: {key: statistics.median(each[key] for each in rounds) for key in ROWS} for name, rounds in found.items()}
    rows = [[label, *(number(median[name][key]) for name in SERVERS)] for key, label in ROWS.items()]
    text = report.markdown(["", *(f"`{name}`" for name in SERVERS)], rows)
    print(text)
    report.write("track.py", text)


def number(value) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


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
            result = {"start_ms": (time.monotonic() - started) * 1e3, "memory_mb": memory_mb(server.pid)}
            return result | ask(port) | log_with_mlflow(address) | write_at_once(port)
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


class Client:
    """One kept connection and no more work than the wire asks for: what is timed is the server."""

    def __init__(self, port) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> bytes:
        """The body of the answer, which both servers send with its length."""
        self.socket.sendall(request)
        answer = bytearray()
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self.receive()
        head, body = answer[:end].lower(), answer[end + 4 :]
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self.receive()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"error: the server answers {head[:20].decode()}: {body[:500].decode()}")
        return bytes(body)

    def receive(self) -> bytes:
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise SystemExit("error: the server hung up")
        return piece

    def post(self, path, body) -> dict:
        return json.loads(self.send(request(path, json.dumps(body).encode())))

    def run(self, experiment_id) -> str:
        return self.post("runs/create", new_run(experiment_id))["run"]["info"]["run_id"]


def request(path, body: bytes) -> bytes:
    head = f"POST /api/2.0/mlflow/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def new_run(experiment_id) -> dict:
    return {"experiment_id": experiment_id, "start_time": 1_795_428_000_000}


def points(n) -> bytes:
    """The n-th thousand points of a run: ten metrics, a hundred steps."""
    steps = range(n * BATCH // len(METRICS), (n + 1) * BATCH // len(METRICS))
    points = [
        {"key": key, "value": 1 / (1 + step), "timestamp": 1_795_428_000_000 + step, "step": step}
        for step in steps
        for key in METRICS
    ]
    return json.dumps(points).encode()


def batch(run_id, points: bytes) -> bytes:
    return request("runs/log-batch", b'{"run_id": "%s", "metrics": %s}' % (run_id.encode(), points))


def ask(port) -> dict[str, float]:
    client = Client(port)
    experiment_id = client.post("experiments/create", {"name": "requests"})["experiment_id"]
    ready = lambda path, body: request(path, json.dumps(body).encode())  # noqa: E731
    created, answers = timed(client.send, [ready("runs/create", new_run(experiment_id))] * N_RUNS)
    runs = [json.loads(answer)["run"]["info"]["run_id"] for answer in answers]
    for run_id in runs:
        metrics = [{"key": key, "value": 0.5, "timestamp": 1, "step": 1} for key in METRICS]
        params = [{"key": f"param_{n}", "value": str(n)} for n in range(5)]
        client.post("runs/log-batch", {"run_id": run_id, "metrics": metrics, "params": params})
    search = {"experiment_ids": [experiment_id], "filter": "metrics.metric_0 < 0.9", "max_results": 100}
    searched, _ = timed(client.send, [ready("runs/search", search)] * 50)
    metric = {"run_id": runs[0], "key": "loss", "value": 0.5, "timestamp": 1}
    logged, _ = timed(client.send, [ready("runs/log-metric", metric | {"step": step}) for step in range(N_STEPS)])
    batched, _ = timed(client.send, [batch(runs[1], points(n)) for n in range(1, 31)])
    return {"create_run_ms": created, "search_ms": searched, "log_metric_ms": logged, "log_batch_ms": batched}


def timed(action, arguments) -> tuple[float, list]:
    """Median milliseconds and what came back."""
    waits, results = [], []
    for argument in arguments:
        begun = time.perf_counter()
        results.append(action(argument))
        waits.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(waits), results


def log_with_mlflow(address) -> dict[str, float]:
    mlflow.set_tracking_uri(address)
    mlflow.set_experiment("client")
    with mlflow.start_run():
        log = lambda step: mlflow.log_metrics({"loss": 1 / (1 + step), "accuracy": step / N_STEPS}, step=step)  # noqa: E731
        return {"client_ms": timed(log, range(N_STEPS))[0]}


def write_at_once(port) -> dict[str, float]:
    clients = [Client(port) for _ in range(N_WRITERS)]
    runs = [client.run("0") for client in clients]
    work = [points(n) for n in range(N_BATCHES)]
    acknowledged = [0] * N_WRITERS
    deadline = time.monotonic() + WRITE_FOR_S

    def write(n) -> None:
        for of_batch in work:
            clients[n].send(batch(runs[n], of_batch))
            acknowledged[n] += BATCH
            if time.monotonic() > deadline:
                return

    begun = time.monotonic()
    threads = [threading.Thread(target=write, args=[n]) for n in range(N_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"points_per_s": sum(acknowledged) / (time.monotonic() - begun)}


def memory_mb(pid) -> float:
    """Proportional set size of the server and its workers: shared pages count once."""
    server = psutil.Process(pid)
    return sum(process.memory_full_info().pss for process in [server, *server.children(recursive=True)]) / 1e6


if __name__ == "__main__":
    main()
