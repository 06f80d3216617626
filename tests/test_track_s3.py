"""Artifacts in a bucket: the real MLflow client, `highroad track --artifacts s3://…` and an S3-compatible store that checks signatures."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import pytest
import requests
from conftest import serving
from mlflow import MlflowClient

MIB = 1 << 20
ROOT = "/api/2.0/mlflow-artifacts"
Track = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture
def bucket(s3: Path) -> Path:
    """An empty bucket called `models`."""
    (s3 / "models").mkdir()
    return s3 / "models"


@pytest.fixture
def track(highroad: Path, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Track:
    """Starts a server over `s3://models/team` and makes it the client's."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    @contextlib.contextmanager
    def start(*options: str) -> Iterator[str]:
        command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path / "home")]
        with serving([*command, "--artifacts", "s3://models/team", *options], tmp_path / "server.log") as uri:
            mlflow.set_tracking_uri(uri)
            # A former test of this process may have left an experiment of its own server.
            mlflow.set_experiment("Default")
            yield uri
        assert "s3cret" not in (tmp_path / "server.log").read_text()

    return start


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where parts of files were written, in no order."""
    seen: list[str] = []
    put = requests.put
    monkeypatch.setattr(requests, "put", lambda url, **given: (seen.append(url), put(url, **given))[1])
    return seen


def file(folder: Path, size_bytes: int, name: str = "big.bin") -> Path:
    path = folder / name
    path.write_bytes(os.urandom(MIB) * (size_bytes // MIB) + b"end")
    return path


def objects(bucket: Path) -> list[str]:
    """What is in the bucket, and what of unfinished uploads the store keeps beside it."""
    kept = [path for path in bucket.parent.rglob("*") if path.is_file() and "json" not in path.suffix]
    return sorted(str(path.relative_to(bucket.parent)) for path in kept)


def parts_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> Path:
    """A file that the client uploads in parts of 5 MiB."""
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(6 * MIB))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(5 * MIB))
    return file(tmp_path, size_bytes)


def test_files_are_logged_listed_read_and_deleted(track: Track, bucket: Path, tmp_path: Path) -> None:
    big, small = file(tmp_path, 40 * MIB), file(tmp_path, 0, "a b ü%.txt")
    with track() as uri, mlflow.start_run() as run:
        client, run_id = MlflowClient(uri), run.info.run_id
        client.log_artifact(run_id, str(big))
        client.log_artifact(run_id, str(small), "sub/inner")
        for n in range(1005):
            (bucket / f"team/0/{run_id}/artifacts/many").mkdir(exist_ok=True)
            (bucket / f"team/0/{run_id}/artifacts/many/{n}.txt").touch()

        listed = {entry.path: (entry.is_dir, entry.file_size) for entry in client.list_artifacts(run_id)}
        assert listed == {"big.bin": (False, 40 * MIB + 3), "many": (True, None), "sub": (True, None)}
        assert [entry.path for entry in client.list_artifacts(run_id, "sub/inner")] == ["sub/inner/a b ü%.txt"]
        assert len(client.list_artifacts(run_id, "many")) == 1005, "more than one page of the store"
        assert client.list_artifacts(run_id, "big.bin") == client.list_artifacts(run_id, "nope") == []
        (tmp_path / "down").mkdir()
        for name, original in [("big.bin", big), ("sub/inner/a b ü%.txt", small)]:
            down = Path(client.download_artifacts(run_id, name, str(tmp_path / "down")))
            assert down.read_bytes() == original.read_bytes()
        at = f"{uri}{ROOT}/artifacts/0/{run_id}/artifacts"
        with urllib.request.urlopen(f"{at}/big.bin") as reply:
            assert reply.read() == big.read_bytes()

        for gone in ["big.bin", "many"]:
            requests.delete(f"{at}/{gone}").raise_for_status()
        assert [entry.path for entry in client.list_artifacts(run_id)] == ["sub"]
        assert requests.delete(f"{at}/big.bin").status_code == requests.get(f"{at}/big.bin").status_code == 404
        assert requests.get(f"{uri}{ROOT}/presigned/0/{run_id}/artifacts/big.bin").status_code == 404
        assert objects(bucket) == [f"models/team/0/{run_id}/artifacts/sub/inner/a b ü%.txt"]


def test_a_large_file_goes_to_the_store_in_parts(
    track: Track, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[str]
) -> None:
    big = parts_of(tmp_path, monkeypatch, 12 * MIB)
    with track() as uri, mlflow.start_run() as run:
        mlflow.log_artifact(str(big), "model")
        assert len(sent) == 3 and not any(url.startswith(uri) for url in sent)
        stored = f"models/team/0/{run.info.run_id}/artifacts/model/big.bin"
        assert objects(bucket) == [stored]
        assert (bucket.parent / stored).read_bytes() == big.read_bytes()
        monkeypatch.setenv("MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE", str(5 * MIB))
        down = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="model/big.bin")
        assert Path(down).read_bytes() == big.read_bytes()


def test_an_upload_that_fails_leaves_nothing(
    track: Track, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = parts_of(tmp_path, monkeypatch, 12 * MIB)
    put = requests.put
    monkeypatch.setattr(requests, "put", lambda url, **given: put(url.replace("partNumber=2", "partNumber=3"), **given))
    with track(), mlflow.start_run() as run:
        with pytest.raises(mlflow.MlflowException, match="Failed to upload at least one part"):
            mlflow.log_artifact(str(big))
        assert objects(bucket) == []
        assert MlflowClient().list_artifacts(run.info.run_id) == []


def test_what_a_client_says_of_its_upload_is_checked(track: Track, bucket: Path) -> None:
    part = {"part_number": 1, "etag": '"x"'}
    with track() as uri:

        def ask(what: str, status: int, **body: object) -> dict:
            reply = requests.post(f"{uri}{ROOT}/mpu/{what}/0/run", json={"path": "C:\\models\\big.bin"} | body)
            assert reply.status_code == status, reply.text
            return reply.json()

        begun = ask("create", 200, num_parts=2)
        assert all("/models/team/0/run/big.bin?" in credential["url"] for credential in begun["credentials"])
        ask("complete", 400, upload_id=begun["upload_id"], parts=[])
        ask("complete", 400, upload_id=begun["upload_id"], parts=[part | {"part_number": 2}])
        ask("abort", 200, upload_id=begun["upload_id"])
        for n_parts in [0, -1, 10_001]:
            assert "parts" in ask("create", 400, num_parts=n_parts)["message"]
        for hostile in ["..", "", "/etc/", ".highroad-partial"]:
            ask("create", 400, path=hostile)
        assert objects(bucket) == []


def test_every_byte_goes_through_the_server_where_the_store_is_out_of_reach(
    track: Track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[str]
) -> None:
    big = parts_of(tmp_path, monkeypatch, 12 * MIB)
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
    with track("--artifact-transfers", "proxied") as uri, mlflow.start_run() as run:
        mlflow.log_artifact(str(big))
        down = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="big.bin")
        assert Path(down).read_bytes() == big.read_bytes()
        assert not sent
        info = requests.get(f"{uri}/api/3.0/mlflow/server-info").json()
        assert not info["multipart_uploads_enabled"] and not info["multipart_downloads_enabled"]


@pytest.mark.parametrize("end", ["client", "server"])
def test_what_breaks_off_is_never_seen(highroad: Path, track: Track, bucket: Path, tmp_path: Path, end: str) -> None:
    with track() as uri:
        process = subprocess.Popen(
            [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path / "home"), "--artifacts", "s3://models/team"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        broken = urlsplit(process.stdout.readline().strip())
        connection = http.client.HTTPConnection(broken.hostname, broken.port)
        connection.putrequest("PUT", f"{ROOT}/artifacts/0/run/big.bin")
        connection.putheader("Content-Length", str(80 * MIB))
        connection.endheaders()
        for _ in range(60):
            connection.send(b"x" * MIB)
        assert objects(bucket), "parts are on their way"
        if end == "server":
            process.send_signal(signal.SIGKILL)
        connection.close()
        listing = requests.get(f"{uri}{ROOT}/artifacts", params={"path": "0/run"})
        assert listing.json() == {"files": []}
        assert requests.get(f"{uri}{ROOT}/artifacts/0/run/big.bin").status_code == 404
        if end == "client":
            deadline = time.monotonic() + 20
            while objects(bucket) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert objects(bucket) == [], "the server gives up what the client gave up"
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("variables", "place", "message"),
    [
        ({}, "s3://nothing/x", "no such bucket"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://models", "does not let these credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "s3://models", "does not let these credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "s3://models", "127.0.0.1:1"),
        ({"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:2"}, "s3://models", "127.0.0.1:2"),
        ({}, "s3://key:s3cret@models", "credentials and endpoint come from the environment"),
        ({}, "gs://models", "in a folder or in `s3://BUCKET/PREFIX`"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_at_once(
    highroad: Path, bucket: Path, tmp_path: Path, variables: dict[str, str], place: str, message: str
) -> None:
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path / "home"), "--artifacts", place]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "wrong" not in done.stderr
