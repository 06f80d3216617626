"""What strangers, slow networks, full disks and jumping clocks do to a server: no crash, no wrong answer, no growth."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import resource
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from conftest import serving
from openapi import closed, schemathesis

REPO = Path(__file__).resolve().parent.parent
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
BODY_LIMIT = 1_000_000
N_IDLE = 10_000
# Measured: 2.5 kB for a connection that has sent nothing yet; the rest is room for the allocator.
MAX_IDLE_BYTES = 32 << 10
PATIENCE_S = 10


class Server:
    """A running server, and what it must still answer after whatever was done to it."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)
        self.process = next(
            process for process in psutil.Process().children(recursive=True)
            if any(c.laddr.port == self.port and c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp"))
        )
        self.answer = self.embed()

    def embed(self) -> str:
        """The answer to one question, as its bytes."""
        status, body = self.post("/v1/embeddings", json.dumps({"model": "embedder", "input": "a"}).encode())
        assert status == 200, body
        return json.dumps(json.loads(body)["data"])

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        headers = {"content-type": "application/json"} | (headers or {})
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=PATIENCE_S)

    def rss(self) -> int:
        return self.process.memory_info().rss

    def check(self) -> None:
        """The same process gives the same answer, and nothing panicked."""
        assert self.process.is_running() and self.embed() == self.answer
        assert "panic" not in self.log.read_text()


@contextlib.contextmanager
def server(highroad: Path, home: Path, **env: str) -> Iterator[Server]:
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
    lines = [f"[limits]\nbody_bytes = {BODY_LIMIT}"]
    for name, package in {"moderation": "classify-a", "embedder": "embed", "reranker": "rerank", "eyes": "vision"}.items():
        source = REPO / "conformance" / "packages" / package
        subprocess.run([highroad, "pack", source, "-o", home / package], env=kept, check=True, capture_output=True)
        lines.append(f'[members.{name}]\nmodel = "./{package}"\nthreads = 1')
    (home / "portfolio.toml").write_text("\n".join(lines))
    state = {"HIGHROAD_HOME": str(home / "state")}
    command = [str(highroad), "serve", "--development", "--listen", "127.0.0.1:0"]
    with serving(command, home / "serve.log", env=kept | state | env, cwd=home) as url:
        yield Server(url, home / "serve.log")


@pytest.fixture(scope="module")
def one(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(highroad, tmp_path_factory.mktemp("faults") / "home") as one:
        yield one


ROUTES = ["/v1/embeddings", "/v1/moderations", "/v1/rerank", "/v2/rerank", "/rerank", "/v2/models/embedder/infer"]
HOSTILE = {
    "empty": b"",
    "not JSON": b"hello",
    "half": b'{"model": "embedder", "input": "a',
    "invalid UTF-8": b'{"model": "embedder", "input": "\xff\xfe"}',
    "lone surrogate": b'{"model": "embedder", "input": "\\ud800"}',
    "null": b"null",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep in a field": b'{"model": "embedder", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": b'{"model": "embedder", "input": [NaN]}',
    "a number without end": b'{"model": "embedder", "input": [' + b"9" * 100_000 + b"]}",
    "an exponent": b'{"model": "embedder", "input": [1e999]}',
    "a field twice": b'{"model": "embedder", "model": {}, "input": "a"}',
    "zero bytes": b"\0" * 1000,
    "huge shape": b'{"inputs": [{"name": "text", "datatype": "FP32", "shape": [9223372036854775807, 2], "data": [1]}]}',
    "negative shape": b'{"inputs": [{"name": "text", "datatype": "FP32", "shape": [-1], "data": [1]}]}',
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_hostile_body_is_refused_in_words(one: Server, route: str) -> None:
    for name, body in HOSTILE.items():
        status, reply = one.post(route, body)
        # One text that holds a lone surrogate or the like may be answered; what cannot be read may not.
        assert 400 <= status < 500, (name, status, reply[:200])
        error = json.loads(reply)
        assert isinstance(error, dict) and len(reply) < 4096, (name, reply[:200])
    one.check()


def test_a_body_is_as_large_as_it_says_and_not_larger_than_it_may_be(one: Server) -> None:
    assert one.post("/v1/embeddings", b" " * (BODY_LIMIT + 1))[0] == 413
    # 1 GB in a megabyte.
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(1 << 10)) + deflate.flush()
    before, began = one.rss(), time.monotonic()
    assert one.post("/v1/embeddings", bomb, {"content-encoding": "gzip"})[0] == 413
    assert one.rss() - before < 64 << 20 and time.monotonic() - began < PATIENCE_S
    whole = gzip.compress(b'{"model": "embedder", "input": "a"}')
    assert one.post("/v1/embeddings", whole, {"content-encoding": "gzip"})[0] == 200
    assert one.post("/v1/embeddings", whole[:-9], {"content-encoding": "gzip"})[0] == 400
    assert one.post("/v1/embeddings", b"no gzip at all", {"content-encoding": "gzip"})[0] == 400
    assert one.post("/v1/embeddings", whole, {"content-encoding": "zstd"})[0] in (400, 415)
    one.check()


def raw(one: Server, request: bytes) -> bytes:
    """What comes back on one connection until it is closed, or a little while after the last byte."""
    with one.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        connection.settimeout(2)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(1 << 16):
                received += part
    return received


def status_of(reply: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d+)", reply)
    return int(found[1]) if found else 0


def test_floods_of_headers_are_cut_off(one: Server) -> None:
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
    assert status_of(raw(one, head + b"connection: close\r\n\r\n")) == 200
    many = b"".join(b"x-%d: y\r\n" % i for i in range(5000))
    assert status_of(raw(one, head + many + b"\r\n")) == 431
    assert status_of(raw(one, head + b"x: " + b"y" * (1 << 20) + b"\r\n\r\n")) in (0, 400, 431)
    assert status_of(raw(one, b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n")) in (0, 400, 414, 431)
    for broken in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: -1\r\n\r\n"):
        assert status_of(raw(one, broken)) in (0, 400)
    both = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    smuggled = raw(one, both + b"GET /v1/highroad/status HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert status_of(smuggled) == 400
    one.check()


def test_slow_and_half_open_clients_hold_up_nobody(one: Server) -> None:
    with contextlib.ExitStack() as stack:
        for i in range(300):
            connection = stack.enter_context(one.connect())
            head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            # A third stops in the head, a third before the body, a third within it.
            connection.sendall([head[: 20 + i % 60], head + b"content-length: 50\r\n\r\n", head + b"content-length: 50\r\n\r\n{"][i % 3])
        began = time.monotonic()
        for _ in range(20):
            one.check()
        assert time.monotonic() - began < PATIENCE_S
        # Some vanish without a word to the other side.
        for connection in [stack.enter_context(one.connect()) for _ in range(50)]:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\n")
            connection.close()
    one.check()


def test_ten_thousand_idle_connections_cost_little(one: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= N_IDLE + 500, "this machine lets a process have too few files open for the test"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = one.rss()
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(N_IDLE):
            stack.enter_context(one.connect())
        one.check()
        grown = one.rss() - before
        print(f"{grown / N_IDLE:.0f} bytes a connection")
        assert grown < N_IDLE * MAX_IDLE_BYTES, f"{grown / N_IDLE:.0f} bytes a connection"
    one.check()


def test_numbers_that_are_none_come_back_as_such_and_never_as_an_answer(one: Server) -> None:
    client = triton.InferenceServerClient(f"{one.host}:{one.port}")
    metadata = client.get_model_metadata("eyes")
    pixels = next(tensor for tensor in metadata["inputs"] if tensor["datatype"] == "FP32")
    shape = [1, *[int(size) for size in pixels["shape"][1:]]]
    for value in (np.nan, np.inf, -np.inf, 3e38):
        tensor = triton.InferInput(pixels["name"], shape, "FP32")
        tensor.set_data_from_numpy(np.full(shape, value, np.float32), binary_data=True)
        # As tensors too the program decides by finite numbers alone, however its outputs are asked for.
        for binary in (True, False):
            outputs = [triton.InferRequestedOutput(output["name"], binary_data=binary) for output in metadata["outputs"]]
            try:
                reply = client.infer("eyes", [tensor], outputs=outputs)
            except triton.InferenceServerException as error:
                assert error.status() == ("500" if value == 3e38 else "400"), error
                continue
            assert value == 3e38
            for output in metadata["outputs"]:
                assert np.isfinite(reply.as_numpy(output["name"])).all()
    one.check()


def test_a_full_disk_loses_records_but_no_answer(highroad: Path, tmp_path: Path) -> None:
    state = tmp_path / "home" / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", state], check=True)
    try:
        with server(highroad, tmp_path / "home") as one:
            with contextlib.suppress(OSError), (state / "ballast").open("wb") as ballast:
                while ballast.write(bytes(4096)):
                    ballast.flush()
            with contextlib.suppress(OSError):
                os.write(os.open(state / "last", os.O_CREAT | os.O_WRONLY), bytes(8192))
            for _ in range(300):
                one.check()
            text = urllib.request.urlopen(f"{one.url}/metrics", timeout=PATIENCE_S).read().decode()
            (lost,) = re.findall(r"^highroad_request_log_dropped_total (\d+)", text, re.MULTILINE)
            deadline = time.monotonic() + PATIENCE_S
            while int(lost) == 0 and time.monotonic() < deadline:
                time.sleep(0.3)
                one.check()
                text = urllib.request.urlopen(f"{one.url}/metrics", timeout=PATIENCE_S).read().decode()
                (lost,) = re.findall(r"^highroad_request_log_dropped_total (\d+)", text, re.MULTILINE)
            assert int(lost) > 0 and "Cannot write the request log" in one.log.read_text()
            (state / "ballast").unlink()
            one.check()
            wait_for_record(one)
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


def wait_for_record(one: Server) -> None:
    """With room again, requests are recorded again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        body = json.dumps({"model": "embedder", "input": "a"}).encode()
        request = urllib.request.Request(f"{one.url}/v1/embeddings", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            id = response.headers["x-request-id"]
        time.sleep(0.5)
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{one.url}/v1/highroad/requests/{id}", timeout=PATIENCE_S)
            return
        assert time.monotonic() < deadline


def test_a_clock_that_jumps_changes_no_answer(highroad: Path, tmp_path: Path) -> None:
    assert FAKETIME.exists(), "libfaketime is missing: apt-get install libfaketime"
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
    with server(highroad, tmp_path / "home", **fake) as one:
        ids = set()
        for jump in ("+0", "+400d", "-400d", "-20000d", "+0"):
            clock.write_text(jump)
            for _ in range(5):
                began = time.monotonic()
                one.check()
                assert time.monotonic() - began < PATIENCE_S
                with urllib.request.urlopen(f"{one.url}/ready", timeout=PATIENCE_S) as response:
                    ids.add(response.headers["x-request-id"])
        assert len(ids) == 25
        # The server's own clock did jump: its log says so.
        days = {time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400 * days)) for days in (0, 400, -400, -20000)}
        assert days <= set(re.findall(r"^(\d{4}-\d\d-\d\d)T", one.log.read_text(), re.MULTILINE))
        text = urllib.request.urlopen(f"{one.url}/metrics", timeout=PATIENCE_S).read().decode()
        seconds = [float(x) for x in re.findall(r"_duration_seconds_sum\S* (\S+)$", text, re.MULTILINE)]
        assert seconds and all(0 <= value < 1000 for value in seconds)


@pytest.mark.parametrize("model", ["embedder", "moderation"])
def test_schemathesis_finds_no_failure_and_no_answer_that_is_not_as_the_document_says(one: Server, model: str, tmp_path: Path) -> None:
    """Every route of the OpenAPI document, asked what its schemas allow and what they do not. gRPC has statuses of its own."""
    document = closed(json.loads(urllib.request.urlopen(f"{one.url}/openapi.json", timeout=PATIENCE_S).read()))
    done = schemathesis(one.url, tmp_path, "--exclude-path-regex", "GRPC", document=document, model=model)
    assert done.returncode == 0, done.stdout[-6000:]
    one.check()


def test_an_answer_that_the_document_tells_wrong_is_found(one: Server, tmp_path: Path) -> None:
    document = closed(json.loads(urllib.request.urlopen(f"{one.url}/openapi.json", timeout=PATIENCE_S).read()))
    schemas = document["components"]["schemas"]
    del schemas["ModelEntry"]["properties"]["owned_by"]
    schemas["MemberStatus"]["properties"]["member"] = {"type": "integer"}
    schemas["PlainError"]["required"] = ["message"]
    only = ["--include-path-regex", "^/v1/models$|^/v1/highroad/status$|^/v2/models/.model.$"]
    done = schemathesis(one.url, tmp_path, *only, document=document, model="nobody")
    told = ["'owned_by' was unexpected", '"embedder" is not of type "integer"', '"message" is a required property']
    assert done.returncode == 1 and all(wrong in done.stdout for wrong in told), done.stdout
