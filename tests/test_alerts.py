"""Objectives, alerts, webhooks and the way back with real processes: a version that fails what the one before answers is sent back within
seconds; one that is promoted again anyway burns its error budget, and a receiver hears of it in messages that the `standardwebhooks` package
verifies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving
from standardwebhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
# A word that the second version's tokenizer knows by a token that its program does not.
ODD = "zebra"
WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
LIMIT_S = 30


class Receiver(ThreadingHTTPServer):
    """Takes webhooks, but for the first ones of each, which it fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Take)
        self.n_fail, self.taken, self.refused = 1, [], 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def of(self, name: str, kind: str = "") -> list[dict]:
        return [body for path, _, body in self.taken if path == f"/{name}" and str(body.get("type", "")).startswith(kind)]


class Take(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        payload = self.rfile.read(int(self.headers["content-length"]))
        if self.server.n_fail:
            self.server.n_fail -= 1
            self.server.refused += 1
            self.send_response(503)
        else:
            if self.path == "/signed":
                Webhook(SECRET).verify(payload, dict(self.headers))
            self.server.taken.append((self.path, dict(self.headers), json.loads(payload)))
            self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def text(n: int) -> str:
    return " ".join(WORDS[(n // 12**at + at * n) % 12] for at in range(3 + n % 3)) + f" {n}"


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call) -> Path:  # noqa: F811
    """`sound`, and `fragile`: the same program behind a tokenizer that makes it fail where a text has the odd word."""
    folder = tmp_path_factory.mktemp("desk")
    source = folder / "source"
    shutil.copytree(ROOT / "conformance" / "packages" / "classify-a", source)
    call("pack", source, "-o", "sound", cwd=folder)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"][ODD] = 60_000
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    call("pack", source, "-o", "fragile", cwd=folder)
    golden = folder / "golden.jsonl"
    cases = [{"id": f"c{n}", "input": {"text": text(n)}, "expected": "benign"} for n in range(80)]
    golden.write_text("".join(json.dumps(case) + "\n" for case in cases))
    call("eval", "sound", "--golden", golden, "--out", "sound.json", cwd=folder)
    right = [case["value"]["class"]["label"] for case in json.loads((folder / "sound.json").read_text())["cases"]]
    told = [case | {"expected": label} for case, label in zip(cases, right, strict=True)]
    golden.write_text("".join(json.dumps(case) + "\n" for case in told))
    bless(call, "golden.jsonl", folder)
    (folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nfloor = 0.5\n")
    for name, baseline in [("sound", "fragile"), ("fragile", "sound")]:
        call("gate", name, "--baseline", baseline, "--golden", "golden.jsonl", cwd=folder)
    return folder


class Site:
    def __init__(self, url: str, run: Callable, home: Path) -> None:
        self.url, self.run, self.home = url, run, home

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as reply:
            return json.loads(reply.read())

    def page(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as reply:
            return reply.read().decode()

    def ask(self, said: str) -> tuple[int, str | None]:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/moderations", json.dumps({"input": said}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.headers["x-highroad-version"]
        except urllib.error.HTTPError as error:
            return error.code, None

    def alerts(self, kind: str, state: str = "firing") -> list[dict]:
        found = self.get("/v1/highroad/alerts")["alerts"]
        return [alert for alert in found if (alert["alert"], alert["state"]) == (kind, state)]


def wait(holds: Callable[[], object], limit_s: float = LIMIT_S) -> float:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + limit_s, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - begun


PORTFOLIO = """
poll_interval_ms = 200
[members.router]
model = "router@champion"
threads = 1
[objectives.answers]
member = "router"
availability = 0.99
window = "1h"
alerts = [{{ burn = 10, long = "10s", short = "2s", severity = "critical" }}]
[objectives.fast]
member = "*"
latency_ms = 20000
[webhooks.signed]
url = "{signed}"
secret_env = "ROUTER_HOOK_SECRET"
[webhooks.chat]
url = "{chat}"
format = "slack"
events = ["deployment.*"]
[webhooks.manager]
url = "{manager}"
format = "alertmanager"
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def start(call, desk, highroad, receiver, tmp_path_factory) -> Iterator[Callable]:  # noqa: F811
    """Starts a server that follows the champion of a registry of its own, again over the same state."""
    folder = tmp_path_factory.mktemp("site")
    track = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(folder / "track")]
    urls = {name: receiver.url(name) for name in ["signed", "chat", "manager"]}
    (folder / "portfolio.toml").write_text(PORTFOLIO.format(**urls))
    with serving(track, folder / "track.log") as server:

        def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
            return call(*args, **({"cwd": desk, "HIGHROAD_TRACKING_URI": server} | options))

        for name in ["sound", "fragile"]:
            run("push", name, "router")
        run("promote", "router", 1)
        env = {"HIGHROAD_HOME": str(folder / "home"), "HIGHROAD_TRACKING_URI": server, "ROUTER_HOOK_SECRET": SECRET}
        command = [str(highroad), "serve", "--portfolio", str(folder / "portfolio.toml"), "--listen", "127.0.0.1:0"]

        @contextlib.contextmanager
        def started() -> Iterator[Site]:
            with serving(command, folder / "serve.log", env=os.environ | env) as url:
                yield Site(url, run, folder)

        yield started


def test_a_version_that_fails_goes_back_once_and_what_burns_is_told(start: Callable, receiver: Receiver) -> None:
    with start() as site:
        went_back(site, receiver)
        burned(site, receiver)
    with start() as site:
        survived(site)


def went_back(site: Site, receiver: Receiver) -> None:
    assert site.ask(f"a {ODD}") == (200, "router:1")
    site.run("promote", "router", 2)
    wait(lambda: site.ask("hello") == (200, "router:2"))
    begun = time.monotonic()
    # Whoever asks while it fails is answered by the version before.
    answers = [site.ask(f"a {ODD} {n}") for n in range(40)]
    took = time.monotonic() - begun
    assert {status for status, _ in answers} == {200}
    assert [version for _, version in answers] == ["router:1"] * 40
    assert site.ask("hello") == (200, "router:1"), "everything is the version before's again"
    assert took < 10
    # The registry follows, with the reason in its record.
    wait(lambda: json.loads(site.run("audit", "router", "--json").stdout)[0]["action"] == "rollback")
    moved = json.loads(site.run("audit", "router", "--json").stdout)[0]
    assert moved["by"] == "highroad serve" and "router:2 failed" in moved["why"] and moved["to"] == 1
    wait(lambda: receiver.of("signed", "deployment.rolled_back"))
    told = receiver.of("signed", "deployment.rolled_back")[0]
    counts = told["data"]["rollback"]["counts"]
    assert counts["n_failed"] == counts["n_asked"] - 1 <= 30, "a dozen failures or so"
    assert told["data"]["rollback"]["switch_ms"] < 1000
    assert receiver.refused == 1, "it was told again after a refusal"
    wait(lambda: receiver.of("chat"))
    assert receiver.of("chat")[0].keys() == {"text"} and "went back from router:2 to router:1" in receiver.of("chat")[0]["text"]
    assert 'highroad_member_rolled_back_total{member="router"} 1' in site.page()
    # Three requests, one of them bad, are no alarm; nor did any of the retried ones count.
    assert site.alerts("objective_burns") == []


def burned(site: Site, receiver: Receiver) -> None:
    # Somebody insists: the version is watched no more, and nothing goes back and forth.
    site.run("promote", "router", 2)
    wait(lambda: site.ask("hello") == (200, "router:2"))
    assert site.ask(f"a {ODD}")[0] == 500
    time.sleep(1.5)
    assert site.alerts("objective_burns") == [], "one error is no alarm"
    for n in range(12):
        assert site.ask(f"a {ODD} {n}") == (500, None)
    wait(lambda: site.alerts("objective_burns"), 5)
    (alert,) = site.alerts("objective_burns")
    assert alert["severity"] == "critical" and alert["labels"]["member"] == "router"
    assert alert["values"]["bad_requests"] >= 5 and alert["values"]["burn_rate"] >= 10
    wait(lambda: receiver.of("signed", "alert.firing"))
    assert site.get("/v1/highroad/objectives")["objectives"][0]["budget_left"] < 0
    page = site.page()
    assert 'highroad_alerts_firing{alert="objective_burns",severity="critical"} 1' in page
    assert site.ask("hello") == (200, "router:2"), "it holds"
    # It is over once the short window has forgotten it.
    wait(lambda: site.alerts("objective_burns", "resolved"), 15)
    wait(lambda: receiver.of("signed", "alert.resolved") and len(receiver.of("manager")) == 2)
    firing, resolved = receiver.of("manager")
    assert (firing["version"], firing["status"], resolved["status"]) == ("4", "firing", "resolved")
    assert firing["alerts"][0]["labels"]["alertname"] == "objective_burns"
    ids = [headers["webhook-id"] for path, headers, _ in receiver.taken if path == "/signed"]
    assert len(ids) == len(set(ids)) == 3
    lint = subprocess.run([shutil.which("promtool"), "check", "metrics"], input=page, capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout + lint.stderr
    log = (site.home / "serve.log").read_text()
    assert SECRET not in log and ODD not in log and "/signed" not in log
    site.run("rollback", "router")
    wait(lambda: site.ask("hello") == (200, "router:1"))


def survived(site: Site) -> None:
    assert len(site.alerts("objective_burns", "resolved")) == 1
    counted = {row["indicator"]: row for row in site.get("/v1/highroad/objectives")["objectives"]}
    assert counted["availability"]["bad_requests"] == 13 and counted["availability"]["requests"] > 60
    assert counted["latency"]["bad_requests"] == 0
