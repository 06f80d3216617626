"""Members whose program PyTorch runs: the same package beside the native engine, through crashes, hangs and too little memory."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving

PACKAGES = ROOT / "conformance" / "packages"
WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
FLOOR = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\nfloor = 0.9\n"
SECRET = "a-text-that-no-log-may-hold"


def text(n: int) -> str:
    return " ".join(WORDS[(n * place + n // 12) % 12] for place in range(1, 2 + n % 9)) + f" {n}"


def wait(holds: Callable[[], object], limit_s: float = 60) -> None:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + limit_s, "it did not happen in time"
        time.sleep(0.05)


class Site:
    def __init__(self, url: str, home: Path, process: psutil.Process) -> None:
        self.url, self.home, self.process = url, home, process

    def post(self, path: str, body: object, **headers: str) -> tuple[int, dict, dict]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, {"content-type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read()), dict(reply.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), dict(error.headers)

    def moderate(self, model: str, *texts: str) -> tuple[int, dict, dict]:
        return self.post("/v1/moderations", {"model": model, "input": list(texts)})

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return reply.read().decode()

    def status(self, member: str) -> dict:
        return next(found for found in json.loads(self.get("/v1/highroad/status"))["members"] if found["member"] == member)

    def metric(self, start: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.get("/metrics").splitlines() if line.startswith(start))

    def workers(self) -> list[psutil.Process]:
        alive = [child for child in self.process.children() if child.status() != psutil.STATUS_ZOMBIE]
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in alive if "-P" in child.cmdline()]
        return self.workers()  # one ended while it was looked at


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call) -> Path:  # noqa: F811
    """Package `a` with a verdict by PyTorch on one thread, `b` with one by the native engine, and `same`, the bytes of `a` again."""
    folder = tmp_path_factory.mktemp("torch-members")
    shutil.copytree(PACKAGES / "classify-a", folder / "source")
    told = (folder / "source" / "package.toml").read_text()
    (folder / "source" / "package.toml").write_text(told.replace("highroad tests", "highroad tests, again"))
    for name, source in {"a": PACKAGES / "classify-a", "b": PACKAGES / "classify-b", "same": folder / "source"}.items():
        call("pack", source, "-o", name, cwd=folder)
    cases = [{"id": f"c{n}", "input": {"text": text(n)}, "expected": "benign"} for n in range(60)]
    for name in ["b", "a"]:
        golden = folder / f"{name}.jsonl"
        golden.write_text("".join(json.dumps(case) + "\n" for case in cases))
        call("eval", name, "--golden", golden.name, "--out", "answers.json", cwd=folder)
        answers = json.loads((folder / "answers.json").read_text())["cases"]
        right = [case | {"expected": answer["value"]["class"]["label"]} for case, answer in zip(cases, answers, strict=True)]
        golden.write_text("".join(json.dumps(case) + "\n" for case in right))
        bless(call, golden.name, folder)
    (folder / "gates.toml").write_text(FLOOR)
    at = ["--baseline", "trivial", "--gates", "gates.toml", "--threads", "1"]
    call("gate", "a", "--golden", "a.jsonl", *at, "--engine", "torch", cwd=folder)
    call("gate", "b", "--golden", "b.jsonl", *at, cwd=folder)
    call("gate", "same", "--golden", "a.jsonl", *at, cwd=folder)
    return folder


def member(name: str, model: object, **keys: object) -> str:
    lines = {"model": str(model), "threads": 1} | keys
    return f"[members.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def on_torch(name: str, model: object, **keys: object) -> str:
    return member(name, model, engine="torch", device="cpu", python=sys.executable, **keys)


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
    return kept | {"HIGHROAD_HOME": str(home), "SOME_API_KEY": "no-worker-needs-this"}


@contextlib.contextmanager
def site(highroad: Path, desk: Path, portfolio: str, home: Path, *options: str) -> Iterator[Site]:
    home.mkdir(exist_ok=True)
    (home / "portfolio.toml").write_text(portfolio)
    command = [str(highroad), "serve", "--portfolio", str(home / "portfolio.toml"), "--listen", "127.0.0.1:0", *options]
    with serving(command, home / "serve.log", env=environment(desk / ".highroad"), cwd=home) as url:
        process = next(child for child in psutil.Process().children() if str(home / "portfolio.toml") in child.cmdline())
        yield Site(url, home, process)


@pytest.fixture(scope="module")
def served(highroad, desk, tmp_path_factory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    portfolio = member("native", desk / "a") + on_torch("torch", desk / "a", workers=2, batch_timeout_ms=2000)
    portfolio += on_torch("attested", desk / "b")
    with site(highroad, desk, portfolio, home) as found:
        yield found


def test_pytorch_answers_a_member_as_the_native_engine_does(served) -> None:
    texts = [text(n) for n in range(40)]
    (_, native, _), (code, found, headers) = served.moderate("native", *texts), served.moderate("torch", *texts)
    assert code == 200 and headers["x-highroad-evidence"] == "same-engine"
    scores = [[result["highroad"]["scores"] for result in reply["results"]] for reply in (native, found)]
    far = max(abs(one[label] - other[label]) for one, other in zip(*scores, strict=True) for label in one)
    assert far < 1e-5
    assert [result["flagged"] for result in native["results"]] == [result["flagged"] for result in found["results"]]
    # A verdict of the native engine: what PyTorch computes is held against the parity cases.
    assert served.moderate("attested", "a")[2]["x-highroad-evidence"] == "attested"
    status = served.status("torch")
    assert status["state"] == "ready" and status["failure"] is None
    assert status["serving"]["numerics_id"] == f"torch-{torch.__version__}/cpu/{torch.backends.cpu.get_cpu_capability().lower()}/f32/1-threads"
    assert [served.metric(f'highroad_torch_workers{{member="{name}"}}') for name in ["torch", "attested"]] == [2, 1]
    info = [line for line in served.get("/metrics").splitlines() if line.startswith("highroad_member_info")]
    assert sum('engine="torch"' in line for line in info) == 2 and sum('engine="native"' in line for line in info) == 1
    assert all("SOME_API_KEY" not in worker.environ() for worker in served.workers())


def test_tensors_go_through_the_open_inference_protocol(served) -> None:
    tensors = [[2, 3, 4], [1, 1, 1]]
    named = [
        {"name": name, "datatype": "INT64", "shape": [1, 3], "data": data}
        for name, data in zip(["input_ids", "attention_mask"], tensors, strict=True)
    ]
    inputs = {"inputs": named}
    found = [served.post(f"/v2/models/{name}/infer", inputs)[1]["outputs"][0]["data"] for name in ["native", "torch"]]
    assert max(abs(one - other) for one, other in zip(*found, strict=True)) < 1e-4
    named[0]["shape"] = named[1]["shape"] = [3]
    code, told, _ = served.post("/v2/models/torch/infer", inputs)
    assert code == 400 and "input_ids" in told["error"], told


def test_a_worker_that_is_killed_takes_only_its_batch_with_it(served) -> None:
    before = served.metric("highroad_torch_worker_ends_total")
    old = {worker.pid for worker in served.workers()}
    stop = time.monotonic() + 6
    replies: list[tuple[int, dict]] = []

    def ask(n: int) -> None:
        while time.monotonic() < stop:
            n += 1
            replies.append(served.moderate("torch", text(n))[:2])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, 1000 * n) for n in range(4)]
        time.sleep(1)
        victims = [worker for worker in served.workers() if served.process.pid == worker.ppid()]
        # Those of `torch`, which are at work.
        busy = max(victims, key=lambda worker: sum(worker.cpu_times()[:2]))
        busy.send_signal(signal.SIGKILL)
        [one.result() for one in asking]
    failed = [body for code, body in replies if code != 200]
    assert len(replies) > 50 and len(failed) <= 4, (len(replies), failed)
    for body in failed:
        assert "the PyTorch process ended (signal: 9" in body["error"]["message"] or "failed" in body["error"]["message"], body
    wait(lambda: served.metric('highroad_torch_workers{member="torch"}') == 2 and served.metric('highroad_torch_workers{member="attested"}') == 1)
    assert served.metric("highroad_torch_worker_ends_total") == before + 1
    assert len({worker.pid for worker in served.workers()} - old) == 1
    assert served.status("torch")["failure"] is None


def test_a_worker_that_hangs_is_ended_in_time(served) -> None:
    before = served.metric('highroad_torch_worker_ends_total{member="torch",reason="hung"}')
    stopped = served.workers()
    for worker in stopped:
        worker.suspend()
    begun = time.monotonic()
    code, body, _ = served.moderate("torch", SECRET)
    assert code == 500 and time.monotonic() - begun < 15, body
    wait(lambda: served.metric('highroad_torch_worker_ends_total{member="torch",reason="hung"}') == before + 1)
    for worker in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
    wait(lambda: served.metric('highroad_torch_workers{member="torch"}') == 2)
    assert served.moderate("torch", SECRET)[0] == 200
    log = (served.home / "serve.log").read_text()
    assert "did not answer within 2 s" in log and SECRET not in log


def test_where_no_worker_lives_clients_are_told_to_come_again(highroad, desk, tmp_path) -> None:
    # An interpreter that is there for the first start only.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    portfolio = on_torch("torch", desk / "a").replace(json.dumps(sys.executable), json.dumps(str(python)))
    with site(highroad, desk, portfolio, tmp_path / "home") as found:
        python.unlink()
        (worker,) = found.workers()
        worker.kill()
        wait(lambda: found.status("torch")["failure"])
        wait(lambda: found.status("torch")["state"] == "starting")
        code, body, headers = found.moderate("torch", "a")
        assert code in (500, 503)
        wait(lambda: found.moderate("torch", "a")[0] == 503)
        assert "0 of 1 PyTorch processes run" in found.status("torch")["failure"]["reason"]
        with pytest.raises(urllib.error.HTTPError, match="503"):
            found.get("/ready")
        python.symlink_to(sys.executable)
        python.unlink()
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        wait(lambda: found.status("torch")["state"] == "ready")
        assert found.moderate("torch", "a")[0] == 200
        # Whatever ends the server ends what it started, also while that computes.
        (worker,) = found.workers()
        worker.suspend()
        found.process.kill()
        wait(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 15)


def refused(highroad: Path, desk: Path, portfolio: str, home: Path) -> str:
    (home / "portfolio.toml").write_text(portfolio)
    command = [str(highroad), "serve", "--portfolio", str(home / "portfolio.toml"), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, env=environment(desk / ".highroad"), cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done
    return done.stderr


def test_what_cannot_be_had_is_refused_with_the_reason(highroad, desk, tmp_path) -> None:
    if not torch.cuda.is_available():
        told = refused(highroad, desk, on_torch("m", desk / "a").replace('"cpu"', '"cuda"'), tmp_path)
        assert "`cuda` is not there" in told and "sees 0 GPUs" in told
    told = refused(highroad, desk, on_torch("m", desk / "a", memory_mb=50), tmp_path)
    assert "of memory and was ended: it may take 50 MiB" in told
    told = refused(highroad, desk, on_torch("m", desk / "a").replace(json.dumps(sys.executable), '"/nowhere/python"'), tmp_path)
    assert "cannot start `/nowhere/python`" in told
    told = refused(highroad, desk, member("m", desk / "a", device="cuda"), tmp_path)
    assert 'add `engine = "torch"`' in told
    told = refused(highroad, desk, on_torch("m", desk / "a", replicas=2), tmp_path)
    assert "PyTorch has `workers`" in told


def test_where_there_is_no_python_it_is_said_how_to_get_one(highroad, desk, tmp_path) -> None:
    (tmp_path / "portfolio.toml").write_text(member("m", desk / "a", engine="torch"))
    command = [str(highroad), "serve", "--portfolio", "portfolio.toml", "--listen", "127.0.0.1:0"]
    bare = {"HIGHROAD_HOME": str(desk / ".highroad"), "PATH": "/nowhere"}
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no Python was found" in done.stderr and "build one from an image with PyTorch" in done.stderr


def test_a_rollout_compares_the_native_engine_with_pytorch(highroad, desk, call, tmp_path) -> None:  # noqa: F811
    with contextlib.ExitStack() as stack:
        track = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path / "track")]
        uri = stack.enter_context(serving(track, tmp_path / "track.log"))

        def run(*args: object, **more: object) -> str:
            return call(*args, cwd=desk, HIGHROAD_TRACKING_URI=uri, **more).stdout

        run("push", "a", "router")
        run("push", "same", "router")
        run("promote", "router", 1)
        portfolio = "poll_interval_ms = 200\n[rollouts]\nkeep = 1.0\n" + member("router", "router@champion")
        candidate = {"engine": "torch", "device": "cpu", "python": sys.executable}
        portfolio += "[members.router.candidate]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in candidate.items())
        (tmp_path / "portfolio.toml").write_text(portfolio)
        command = [str(highroad), "serve", "--portfolio", str(tmp_path / "portfolio.toml"), "--listen", "127.0.0.1:0"]
        env = environment(tmp_path / "home") | {"HIGHROAD_TRACKING_URI": uri}
        url = stack.enter_context(serving(command, tmp_path / "serve.log", env=env, cwd=tmp_path))
        process = next(child for child in psutil.Process().children() if str(tmp_path / "portfolio.toml") in child.cmdline())
        found = Site(url, tmp_path, process)
        run("deploy", "router", 2, "--shadow", "100%", "--step-requests", "1000", "--by", "ann", "--why", "is PyTorch the same?")
        wait(lambda: json.loads(found.get("/v1/highroad/rollouts"))["rollouts"])
        for n in range(20):
            code, _, headers = found.moderate("router", text(n))
            assert code == 200 and headers["x-highroad-version"] == "router:1"
        wait(lambda: found.metric("highroad_rollout_compared_total") == 20)
        assert found.metric("highroad_rollout_differ_total") == 0 and len(found.workers()) == 1
        pairs = [json.loads(line) for file in (tmp_path / "home" / "rollouts").rglob("*.jsonl") for line in file.read_text().splitlines()]
        shifts = [pair["shift"] for pair in pairs]
        assert len(shifts) == 20 and 0 < max(shifts) < 1e-5, "another engine, and nearly the same"
        # The candidate's engine is not the member's: promoted, the version serves on the member's.
        run("promote", "router", 2)
        wait(lambda: found.moderate("router", "a")[2]["x-highroad-version"] == "router:2")
        assert found.status("router")["serving"]["numerics_id"].startswith("highroad-")
        wait(lambda: not found.workers())


def test_a_program_that_aotinductor_compiled_is_served(highroad, desk, tmp_path) -> None:
    portfolio = on_torch("torch", desk / "a", compile="aot") + member("native", desk / "a")
    (tmp_path / "home").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("conftest.START_LIMIT_S", 180)
        with site(highroad, desk, portfolio, tmp_path / "home") as found:
            replies = [found.moderate(name, *[text(n) for n in range(12)])[1]["results"] for name in ["native", "torch"]]
            far = [abs(one["highroad"]["scores"][x] - other["highroad"]["scores"][x]) for one, other in zip(*replies, strict=True) for x in one["highroad"]["scores"]]
            assert max(far) < 1e-4
            assert found.status("torch")["serving"]["numerics_id"].endswith("/1-threads/aot")
            assert found.moderate("torch", "a")[2]["x-highroad-evidence"] == "attested"
