"""The run logger beside real tracking servers: what is acknowledged arrives once, whoever is killed when."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

import highroad
from highroad._run import end_abandoned

N_KILLS = 100
#: MLflow's own server takes long to start where cores are few.
START_LIMIT_S = 240
#: Logs as fast as it can, and tells on stdout up to where `flush` has acknowledged it.
WRITER = """
import itertools, sys, time, highroad
uri, run_id, journal, first = sys.argv[1:]
run = highroad.run(run_id=run_id, tracking_uri=uri, journal=journal, system_metrics=None)
for n in itertools.count(int(first)):
    run.log({"m": n}, step=n, timestamp_ms=n)
    if n % 7 == 0:
        run.flush()
        print(n, flush=True)
    time.sleep(0.0005)
"""


@pytest.fixture
def journal(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HIGHROAD_JOURNAL", str(tmp_path / "journal"))
    return tmp_path / "journal"


@pytest.fixture
def client(tracking_uri) -> MlflowClient:
    return MlflowClient(tracking_uri)


class Server:
    """A tracking server on a fixed port that can be killed and started again over the same state."""

    def __init__(self, command, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [str(part) for part in command(self.port)]
        self.environment = os.environ | environment
        self.process = None

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, **quiet, env=self.environment, start_new_session=True)
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.01)
        pytest.fail(f"{self.command} does not answer")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(name="highroad_bin")
def _highroad_bin(request):
    return request.getfixturevalue("highroad")


@pytest.fixture
def track(highroad_bin, tmp_path):
    server = Server(lambda port: [highroad_bin, "track", "--listen", f"127.0.0.1:{port}", "--home", tmp_path / "home"])
    server.start()
    yield server
    server.kill()


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, key))


def test_a_run_lands_at_the_server(journal, tracking_uri, client, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.txt").write_text("hello")
    fingerprint = {"digest": "sha256:" + "ab" * 32, "rows": 3, "schema": {"text": "string"}, "files": []}
    with highroad.run("logger", name="first", tracking_uri=tracking_uri, tags={"team": "x"}, price_per_hour=3600) as run:
        run.log_params({"lr": 0.1, "layers": 3})
        for step in range(2500):
            run.log({"loss": 1 / (step + 1), "nan": math.nan}, step=step)
        run.log({f"many/{i}": i for i in range(1234)})
        run.log_artifact(tmp_path / "report", "evidence")
        run.log_input(fingerprint, name="train")
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED" and found.info.run_name == "first"
    assert found.data.params == {"lr": "0.1", "layers": "3"}
    assert found.data.tags["team"] == "x"
    assert float(found.data.tags["highroad.cost_estimate"]) > 0
    assert history(tracking_uri, run.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(2500)]
    assert math.isnan(client.get_metric_history(run.run_id, "nan")[0].value)
    assert sum(key.startswith("many/") for key in found.data.metrics) == 1234
    assert found.inputs.dataset_inputs[0].dataset.name == "train"
    with mlflow_uri(tracking_uri):
        assert mlflow.artifacts.load_text(f"runs:/{run.run_id}/evidence/report/a.txt") == "hello"
    assert not list(journal.iterdir())


@contextlib.contextmanager
def mlflow_uri(uri):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield
    mlflow.set_tracking_uri(before)


def test_a_run_that_train_opened_is_gone_on_with_and_left_open(journal, tracking_uri, client, monkeypatch):
    opened = client.create_run(client.create_experiment(f"opened-{time.time_ns()}"))
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    with highroad.run() as run:
        run.log({"x": 1})
    found = client.get_run(opened.info.run_id)
    assert found.data.metrics["x"] == 1 and found.info.status == "RUNNING"


def test_a_run_that_train_opened_adds_to_what_earlier_starts_took(journal, tracking_uri, client, monkeypatch):
    opened = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("HIGHROAD_SPENT", json.dumps({"seconds": 5000.0}))
    with highroad.run(system_metrics=None, price_per_hour=3600.0):
        pass
    tags = client.get_run(opened).data.tags
    # This process was started for it, so its whole life counts.
    assert 5000.5 < float(tags["highroad.duration_seconds"]) == pytest.approx(float(tags["highroad.cost_estimate"]), abs=1e-3)


def test_a_run_whose_command_is_gone_is_ended(journal, tracking_uri, client, monkeypatch):
    opened = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    end_abandoned()
    ended = client.get_run(opened)
    assert ended.info.status == "KILLED" and "was killed" in ended.data.tags["highroad.error"]
    # A server inside the command is gone with it, and is not waited for.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    end_abandoned()
    assert not list(journal.iterdir())


def test_system_metrics_have_the_names_of_mlflow(journal, tracking_uri, client):
    with highroad.run("logger", tracking_uri=tracking_uri, system_metrics=0.05) as run:
        time.sleep(0.5)
    metrics = client.get_run(run.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= metrics.keys()


def test_a_failed_run_is_told_apart_and_says_why_without_secrets(journal, tracking_uri, client, monkeypatch):
    with pytest.raises(ZeroDivisionError), highroad.run("logger", tracking_uri=tracking_uri) as run:
        monkeypatch.setenv("A_SECRET_OF_MINE", "hunter2-hunter2")
        raise ZeroDivisionError("hunter2-hunter2 by zero")
    failed = client.get_run(run.run_id)
    assert failed.info.status == "FAILED" and failed.data.tags["highroad.error"] == "ZeroDivisionError: *** by zero"


def test_what_the_server_refuses_is_kept_and_told(journal, tracking_uri, client):
    with pytest.warns(highroad.UndeliveredWarning, match="refused 1 entries"):
        with highroad.run("logger", tracking_uri=tracking_uri) as run:
            run.log_params({"lr": 1})
            run.flush()
            run.log_params({"lr": 2})
            run.log({"after": 1})
    found = client.get_run(run.run_id)
    assert found.data.params == {"lr": "1"} and found.data.metrics["after"] == 1
    (refused,) = journal.glob("*/refused.jsonl")
    assert json.loads(refused.read_text())["entry"] == {"params": [["lr", "2"]]}


def test_an_outage_is_waited_out(journal, track, tmp_path):
    with highroad.run("logger", tracking_uri=track.uri) as run:
        run.log({"m": 0}, step=0)
        track.kill()
        for step in range(1, 500):
            run.log({"m": step}, step=step)
        (tmp_path / "late.txt").write_text("late")
        run.log_artifact(tmp_path / "late.txt")
        (tmp_path / "late.txt").unlink()
        run.flush()
        track.start()
    assert history(track.uri, run.run_id, "m") == [(step, step) for step in range(500)]
    assert not list(journal.iterdir())


def test_what_an_outage_leaves_is_delivered_later(journal, track, highroad_bin):
    run = highroad.run("logger", tracking_uri=track.uri)
    track.kill()
    run.log({"m": 1}, step=1)
    with pytest.warns(highroad.UndeliveredWarning, match="does not answer"):
        run.end(patience_s=0.1)
    (left,) = highroad.sync_runs(patience_s=0)
    assert "does not answer" in left["trouble"]
    track.start()
    delivered = subprocess.run([highroad_bin, "runs", "sync"], capture_output=True, text=True, check=True)
    assert delivered.stdout == f"{run.run_id} delivered\n"
    assert history(track.uri, run.run_id, "m") == [(1, 1)]
    assert MlflowClient(track.uri).get_run(run.run_id).info.status == "FINISHED"
    assert highroad.sync_runs() == []


def test_nothing_acknowledged_is_lost_or_doubled_when_either_side_is_killed(journal, track):
    draw = random.Random(0)
    client = MlflowClient(track.uri)
    run_id = client.create_run(client.create_experiment("killed")).info.run_id
    acknowledged: set[int] = set()
    writer, first, n_kills = None, 0, 0
    while n_kills < N_KILLS:
        if writer is None:
            first += 1_000_000
            command = [sys.executable, "-c", WRITER, track.uri, run_id, str(journal), str(first)]
            writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(draw.randint(1, 12)):
            acknowledged |= set(range(first, int(writer.stdout.readline()) + 1))
        time.sleep(draw.random() * 0.05)
        n_kills += 1
        # Starting a process takes longest, so the server is killed more often.
        if draw.random() < 0.3:
            writer.kill()
            rest, _ = writer.communicate()
            acknowledged |= {n for line in rest.split("\n")[:-1] for n in range(first, int(line) + 1)}
            writer = None
        else:
            track.kill()
            time.sleep(draw.random() * 0.05)
            track.start()
    if writer:
        writer.kill()
        rest, _ = writer.communicate()
        acknowledged |= {n for line in rest.split("\n")[:-1] for n in range(first, int(line) + 1)}
    assert all(synced["trouble"] is None and synced["n_refused"] == 0 for synced in highroad.sync_runs(journal))
    points = history(track.uri, run_id, "m")
    arrived = [step for step, _ in points]
    assert len(arrived) == len(set(arrived)), "a point came twice"
    assert acknowledged <= set(arrived), "an acknowledged point is lost"
    assert all(step == value for step, value in points)
    assert len(acknowledged) > 10 * N_KILLS


def test_a_journal_that_is_sent_again_changes_nothing_at_mlflow_either(journal, tmp_path):
    def command(port):
        store = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", tmp_path / "artifacts"]
        return [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1", *store]

    server = Server(command, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    server.start()
    try:
        run = highroad.run("logger", tracking_uri=server.uri, system_metrics=None)
        (tmp_path / "a.txt").write_text("a")
        run.log({"m": 0.1 + 0.2, "n": math.nan, "i": math.inf}, step=3, timestamp_ms=5)
        run.log_params({"p": "1"})
        run.log_artifact(tmp_path / "a.txt")
        run.flush()
        (mine,) = journal.iterdir()
        shutil.copytree(mine, tmp_path / "again" / mine.name)
        run.end()
        before = MlflowClient(server.uri).get_run(run.run_id).data
        assert [synced["trouble"] for synced in highroad.sync_runs(tmp_path / "again")] == [None]
        after = MlflowClient(server.uri).get_run(run.run_id).data
        assert (before.params, before.metrics["m"]) == (after.params, after.metrics["m"]) == ({"p": "1"}, 0.1 + 0.2)
        (point,) = MlflowClient(server.uri).get_metric_history(run.run_id, "m")
        assert (point.value, point.timestamp, point.step) == (0.1 + 0.2, 5, 3)
        assert len(MlflowClient(server.uri).get_metric_history(run.run_id, "n")) == 1
    finally:
        server.kill()


def test_wrong_calls_say_what_helps(journal, tracking_uri):
    with pytest.raises(ValueError, match="highroad.run speaks to a server"):
        highroad.run(tracking_uri="sqlite:///x.db")
    with pytest.raises(ConnectionError, match="the tracking server http://127.0.0.1:9 does not answer"):
        highroad.run(tracking_uri="http://127.0.0.1:9")
    with highroad.run("logger", tracking_uri=tracking_uri, system_metrics=None) as run:
        with pytest.raises(TypeError, match="metric 'm' is 'high', which is no number"):
            run.log({"m": "high"})
        with pytest.raises(RuntimeError, match="cannot keep `nothing.txt`: No such file"):
            run.log_artifact("nothing.txt")
    with pytest.raises(RuntimeError, match="the run has ended"):
        run.log({"m": 1})
