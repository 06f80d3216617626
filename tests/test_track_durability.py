"""What the tracking server has acknowledged survives the server's sudden death."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

N_KILLS = 12
N_WRITERS = 4
N_POINTS = 50


def start(highroad: Path, home: Path) -> tuple[subprocess.Popen, str]:
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(home)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return server, server.stdout.readline().strip()


def call(uri: str, path: str, body: dict) -> dict:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read())


def steps_of(uri: str, run_id: str) -> list[int]:
    url = f"{uri}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=loss&max_results=1000000"
    with urllib.request.urlopen(url, timeout=30) as reply:
        return [metric["step"] for metric in json.loads(reply.read()).get("metrics", [])]


def write_until_it_dies(uri: str, run_id: str, first: int, acknowledged: list[int]) -> None:
    step = first
    while True:
        steps = range(step, step + N_POINTS)
        metrics = [{"key": "loss", "value": 0.5, "timestamp": 1, "step": each} for each in steps]
        try:
            call(uri, "runs/log-batch", {"run_id": run_id, "metrics": metrics})
        except (OSError, urllib.error.URLError, ValueError):
            return
        acknowledged.extend(steps)
        step += N_POINTS


def test_no_acknowledged_point_is_lost_when_the_server_is_killed(highroad: Path, tmp_path: Path) -> None:
    server, uri = start(highroad, tmp_path)
    runs = [call(uri, "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"] for _ in range(N_WRITERS)]
    acknowledged: list[list[int]] = [[] for _ in runs]
    moments = random.Random(7)
    try:
        for kill in range(N_KILLS):
            # Steps of its own, so that a batch which the dead server kept without a word is not written again.
            first = kill * 10_000_000
            work = [(uri, run_id, first, steps) for run_id, steps in zip(runs, acknowledged, strict=True)]
            writers = [threading.Thread(target=write_until_it_dies, args=args) for args in work]
            for writer in writers:
                writer.start()
            threading.Event().wait(moments.uniform(0.02, 0.4))
            server.send_signal(signal.SIGKILL)
            server.wait()
            for writer in writers:
                writer.join()
            server, uri = start(highroad, tmp_path)
            for run_id, steps in zip(runs, acknowledged, strict=True):
                kept = steps_of(uri, run_id)
                assert set(steps) <= set(kept)
                assert len(kept) % N_POINTS == 0, "a batch is kept whole or not at all"
        assert all(acknowledged)
    finally:
        server.kill()
        server.wait()


def test_a_full_disk_refuses_what_it_cannot_keep_and_goes_on_with_room(highroad: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", home], check=True)
    server, uri = start(highroad, home)
    try:
        run_id = call(uri, "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
        call(uri, "registered-models/create", {"name": "router"})
        acknowledged: list[int] = []

        def log() -> None:
            first = len(acknowledged)
            metrics = [{"key": "loss", "value": 0.5, "timestamp": 1, "step": first + step} for step in range(N_POINTS)]
            call(uri, "runs/log-batch", {"run_id": run_id, "metrics": metrics})
            acknowledged.extend(range(first, first + N_POINTS))

        log()
        with contextlib.suppress(OSError), (home / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(1 << 12)):
                pass
        refusals = []
        for _ in range(200):
            try:
                log()
            except urllib.error.HTTPError as error:
                refusals.append(error.code)
        # Clients of MLflow try again what is answered so.
        assert refusals and set(refusals) <= {500, 503}, refusals
        with contextlib.suppress(urllib.error.HTTPError):
            call(uri, "registered-models/create", {"name": "other"})
        assert set(acknowledged) <= set(steps_of(uri, run_id)), "what is there is still read"
        (home / "ballast").unlink()
        log()
        call(uri, "registered-models/create", {"name": "third"})
        assert sorted(set(steps_of(uri, run_id))) == acknowledged and server.poll() is None
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "--lazy", home], check=True)
