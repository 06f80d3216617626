"""Rollouts with real processes: three `highroad serve` that share a registry; a candidate tried in the shadow or as a canary is aborted
or promoted by all of them, through crashes and outages. On MLflow's own server: test_mlflow_registry.py."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving

WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
N_CASES = 80
WAIT_LIMIT_S = 30
CONVERGE_LIMIT_S = 2.0
N_REPLICAS = 3
# Rules that few requests suffice for.
QUICK = ["--max-differ", "30%", "--max-errors", "30%", "--step-requests", "10", "--step-seconds", "0"]


def text(n: int) -> str:
    return " ".join(WORDS[(n // 12**at + at * n) % 12] for at in range(3 + n % 3)) + f" {n}"


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call) -> Path:  # noqa: F811
    """Classifiers `a` (which is right) and `b` (which is not), and `same`: the bytes of `a` under another digest."""
    folder = tmp_path_factory.mktemp("desk")
    for name in "ab":
        call("pack", ROOT / "conformance" / "packages" / f"classify-{name}", "-o", name, cwd=folder)
    source = folder / "source"
    source.mkdir()
    for file in (ROOT / "conformance" / "packages" / "classify-a").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    told = (source / "package.toml").read_text()
    (source / "package.toml").write_text(told.replace("highroad tests", "highroad tests, again"))
    call("pack", source, "-o", "same", cwd=folder)
    cases = [{"id": f"c{n}", "input": {"text": text(n)}, "expected": "benign"} for n in range(N_CASES)]
    write(folder / "golden.jsonl", cases)
    call("eval", "a", "--golden", "golden.jsonl", "--out", "a.json", cwd=folder)
    right = [case["value"]["class"]["label"] for case in json.loads((folder / "a.json").read_text())["cases"]]
    write(folder / "golden.jsonl", [case | {"expected": label} for case, label in zip(cases, right, strict=True)])
    bless(call, "golden.jsonl", folder)
    (folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nfloor = 0.5\n")
    call("gate", "a", "--baseline", "b", "--golden", "golden.jsonl", cwd=folder)
    call("gate", "same", "--baseline", "a", "--golden", "golden.jsonl", cwd=folder)
    call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", cwd=folder, code=1)
    return folder


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Replica:
    """A `highroad serve` of its own that may be killed and started again."""

    def __init__(self, command: list[str], home: Path, env: dict[str, str]) -> None:
        self.command, self.home, self.env = command, home, env
        self.start()

    def start(self) -> None:
        with (self.home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.env, cwd=self.home
            )
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT_LIMIT_S)
        self.url = self.process.stdout.readline().strip() if ready else ""
        assert self.url, (self.home / "serve.log").read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def ask(self, n: int, user: str | None = None) -> dict[str, str | None]:
        headers = {"content-type": "application/json"} | ({"x-highroad-user": user} if user else {})
        request = urllib.request.Request(f"{self.url}/v1/moderations", json.dumps({"input": text(n)}).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return {name: reply.headers[f"x-highroad-{name}"] for name in ["version", "rollout", "evidence"]}

    def rollout(self) -> dict | None:
        found = self.get("/v1/highroad/rollouts")["rollouts"]
        return found[0] if found else None

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as reply:
            return json.loads(reply.read())


def wait(holds: Callable[[], object], limit_s: float = WAIT_LIMIT_S) -> float:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + limit_s, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - begun


class Site:
    """A registry with `a` as the champion and another version beside it, and replicas that serve the champion."""

    def __init__(self, run: Callable, server: str, replicas: list[Replica], desk: Path) -> None:
        self.run, self.server, self.replicas, self.desk = run, server, replicas, desk

    def deploy(self, *options: str, version: int = 2, **more: object) -> str:
        rollout = self.run("deploy", "router", version, *options, **more).stdout.strip()
        wait(lambda: all((replica.rollout() or {}).get("rollout", {}).get("id") == rollout for replica in self.replicas))
        return rollout

    def status(self, **options: object) -> dict:
        return json.loads(self.run("deploy", "status", "router", "--json", **options).stdout)

    def traffic(self, until: Callable[[], object], most: int = 6000) -> list[dict]:
        """Requests to all replicas in turns until something holds."""
        answers, n = [], 0
        with concurrent.futures.ThreadPoolExecutor(N_REPLICAS) as pool:
            while not until():
                assert n < most, self.run("deploy", "status", "router", code=3).stdout
                asked = pool.map(lambda pair: pair[1].ask(pair[0]), [(n + at, one) for at, one in enumerate(self.replicas * 5)])
                answers += asked
                n += 5 * len(self.replicas)
        return answers

    def all_serve(self, version: str) -> bool:
        return all(replica.ask(0)["version"] == version for replica in self.replicas)


@contextlib.contextmanager
def open_site(run: Callable, server: str, candidate: str, desk: Path, folder: Path, binary: Path) -> Iterator[Site]:
    for name in ["a", candidate]:
        run("push", name, "router")
    run("promote", "router", 1)
    replicas: list[Replica] = []
    (folder / "portfolio.toml").write_text(
        "poll_interval_ms = 500\n[rollouts]\nkeep = 1.0\nqueue = 4096\n[members.router]\nmodel = 'router@champion'\nthreads = 1\ntask = 'classify'\n"
        "[members.router.rollout]\ncanary = [20, 100]\nmax_differ = 0.3\nmax_errors = 0.3\nstep_requests = 10\nstep_seconds = 0\n"
    )
    try:
        for n in range(N_REPLICAS):
            home = folder / f"replica-{n}"
            home.mkdir()
            env = os.environ | {"HIGHROAD_HOME": str(home), "HIGHROAD_TRACKING_URI": server}
            command = [str(binary), "serve", "--portfolio", str(folder / "portfolio.toml"), "--listen", "127.0.0.1:0"]
            replicas.append(Replica(command, home, env))
        yield Site(run, server, replicas, desk)
    finally:
        for replica in replicas:
            replica.stop()


@pytest.fixture
def ours(call, desk, highroad, tmp_path) -> Iterator[Callable]:  # noqa: F811
    """Opens sites over a `highroad track` of their own."""
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path / "track")]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(command, tmp_path / "track.log"))

        def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
            return call(*args, **({"cwd": desk, "HIGHROAD_TRACKING_URI": server} | options))

        yield lambda candidate: stack.enter_context(open_site(run, server, candidate, desk, tmp_path, highroad))


def test_a_server_on_a_registry_answers_on_a_thread_for_each_core(call, desk, tracking_uri, highroad, tmp_path) -> None:  # noqa: F811
    name = f"threads-{tmp_path.name}"
    call("push", "a", name, cwd=desk, HIGHROAD_TRACKING_URI=tracking_uri)
    command = [str(highroad), "serve", f"{name}:1", "--development", "--listen", "127.0.0.1:0"]
    env = os.environ | {"HIGHROAD_HOME": str(tmp_path), "HIGHROAD_TRACKING_URI": tracking_uri}
    cores = sorted(os.sched_getaffinity(0))
    # A quota of the container may leave less than its cores.
    for usable in [cores[:1], cores]:
        replica = Replica(["taskset", "-c", ",".join(map(str, usable)), *command], tmp_path, env)
        try:
            tasks = Path(f"/proc/{replica.process.pid}/task").iterdir()
            names = [(task / "comm").read_text().strip() for task in tasks]
            [member] = replica.get("/v1/highroad/portfolio")["members"]
        finally:
            replica.stop()
        n_http = sum(thread.startswith("http-") for thread in names)
        assert n_http == member["threads"] and 1 <= n_http <= len(usable), names


def test_a_worse_candidate_is_aborted_in_the_shadow_by_all_replicas(ours: Callable, tmp_path: Path) -> None:
    site = ours("b")
    assert "refused: `router:2` may not answer clients: the verdict is fail" in site.run(
        "deploy", "router", 2, "--canary", "50%", code=1
    ).stderr
    rollout = site.deploy("--shadow", "100%", *QUICK, "--by", "ann", "--why", "worse, to see")
    assert "goes on" in site.run("deploy", "router", 2, "--shadow", "20%", code=2).stderr
    assert site.status(code=3)["percent"] == 100

    # One replica is killed in the middle and comes back; what it told stays told.
    site.replicas[0].ask(1)
    site.replicas[0].kill()
    site.replicas[0].start()
    answers = site.traffic(lambda: any((replica.rollout() or {}).get("end") for replica in site.replicas))
    assert {answer["version"] for answer in answers} == {"router:1"} and {answer["rollout"] for answer in answers} == {None}
    converged = wait(lambda: all((replica.rollout() or {}).get("end") for replica in site.replicas))
    assert converged < CONVERGE_LIMIT_S
    told = [replica.rollout()["end"] for replica in site.replicas]
    assert {end["outcome"] for end in told} == {"aborted"} and {end["rollout"] for end in told} == {rollout}

    site.run("deploy", "status", "router", "--html", tmp_path / "r.html", "--markdown", tmp_path / "r.md", code=1)
    found = site.status(code=1)
    assert found["end"]["outcome"] == "aborted" and "answered differently" in found["end"]["reason"]
    assert [check["outcome"] for check in found["checks"]].count("fail") == 1
    # The worst disagreements come from servers over the same state.
    near = site.status(code=1, home=site.replicas[1].home)
    assert near["worst"] and near["worst"][0]["stable"] != near["worst"][0]["candidate"]
    assert "kept" not in near["worst"][0] and near["worst"][0]["inputs"][0].startswith("sha256:")
    page = tmp_path / "near.html"
    site.run("deploy", "status", "router", "--html", page, code=1, home=site.replicas[1].home)
    assert near["worst"][0]["request_id"] in page.read_text() and "<script" not in page.read_text()
    assert "aborted" in (tmp_path / "r.md").read_text()
    assert site.all_serve("router:1")
    assert "nothing" in site.run("deploy", "status", "router", "--alias", "staging", code=2).stderr
    assert "goes on" in site.run("deploy", "abort", "router", code=1).stderr


def test_an_equal_candidate_is_promoted_everywhere_within_two_seconds_and_rolled_back_warm(ours: Callable, tmp_path: Path) -> None:
    site = ours("same")
    assert "or `[members.router.rollout]` in portfolio.toml" in site.run("deploy", "router", 2, code=2).stderr
    site.deploy("--portfolio", tmp_path / "portfolio.toml", "--max-differ", "25%", "--by", "ann", "--why", "the same")
    # What the portfolio declares for the member, and what the command says before it.
    tried = site.status(code=3)["rollout"]
    assert tried["plan"] == {"canary": {"percents": [20.0, 100.0]}} and tried["pace"] == {"requests": 10, "seconds": 0.0}
    assert (tried["rules"]["max_differ"], tried["rules"]["max_errors"]) == (0.25, 0.3)
    # All replicas agree on who is in; fewer requests than a step takes.
    sides = {user: {replica.ask(0, user)["version"] for replica in site.replicas} for user in ["ann", "bob", "eve"]}
    assert all(len(versions) == 1 for versions in sides.values()), sides
    answers = site.traffic(lambda: any(replica.get("/v1/highroad/status")["members"][0]["serving"]["version"] == "router:2" for replica in site.replicas))
    assert {answer["version"] for answer in answers} == {"router:1", "router:2"}
    assert {answer["evidence"] for answer in answers} == {"bit-exact"}
    assert wait(lambda: site.all_serve("router:2")) < CONVERGE_LIMIT_S
    wait(lambda: all((replica.rollout() or {}).get("end") for replica in site.replicas))
    found = site.status(code=0)
    assert found["end"]["outcome"] == "promoted" and {check["outcome"] for check in found["checks"]} == {"pass"}
    moved = json.loads(site.run("audit", "router", "--json").stdout)[0]
    assert (moved["action"], moved["to"], moved["by"]) == ("promote", 2, "ann")
    assert moved["rehearsal"]["passed"] and moved["rehearsal"]["version"] == 1 and moved["why"].endswith("the same")
    assert all(replica.rollout()["switch_ms"] < 100 for replica in site.replicas)

    # The last share ran before the promotion: it was asked the requests of a step, and the report has what both versions took.
    log = (site.replicas[0].home / "serve.log").read_text()
    assert found["step"]["idx"] == 1 and found["counts"]["n_asked"] - found["step"]["n_asked"] >= 10, log
    shown = site.run("deploy", "status", "router", home=site.replicas[0].home).stdout
    assert "latency, median" in shown and "latency, p99" in shown and "tokens of a request" in shown
    assert "0 replicas" not in shown and " asked of it, " in shown

    begun = time.monotonic()
    back = site.run("rollback", "router", "--by", "bob", "--why", "seen enough")
    assert back.stdout.strip() == "router@champion -> router:1" and back.stderr.count("member `router`: serves router:1") == N_REPLICAS
    # The command returned once all of them had followed.
    assert time.monotonic() - begun < WAIT_LIMIT_S and site.all_serve("router:1")


def test_a_rollback_says_which_servers_refuse_it(ours: Callable, tmp_path: Path) -> None:
    site = ours("same")
    for version in (2, 1):
        site.run("promote", "router", version)
        wait(lambda: site.all_serve(f"router:{version}"))
    package = json.loads(site.run("audit", "router", "--json").stdout)[1]["package"].removeprefix("sha256:")
    # No server has it in memory any more, one has lost its bytes, and so has the registry.
    for replica in site.replicas:
        replica.stop()
    damaged = [path for path in [*(tmp_path / "track").rglob("program.pt2"), *site.replicas[0].home.rglob("program.pt2")] if holds(path, package)]
    assert len(damaged) >= 2, package
    for path in damaged:
        path.unlink()
        path.write_bytes(b"rust")
    for replica in site.replicas:
        replica.start()
    assert site.all_serve("router:1")
    back = site.run("rollback", "router", "--json", code=1)
    servers = json.loads(back.stdout)["servers"]
    assert sorted(server["state"] for server in servers) == ["followed"] * (N_REPLICAS - 1) + ["refused"], servers
    [refused] = [server for server in servers if server["state"] == "refused"]
    assert (refused["serving"], refused["refused"]["version"], refused["process"]) == (1, 2, site.replicas[0].process.pid)
    assert "program.pt2" in refused["refused"]["reason"]
    assert "refuses router:2 and goes on with router:1" in back.stderr and "highroad promote router VERSION" in back.stderr
    status = site.replicas[0].get("/v1/highroad/status")["members"][0]
    assert status["serving"]["version"] == "router:1"
    assert site.run("rollback", "router", "--no-wait").stdout.strip() == "router@champion -> router:1"


def holds(program: Path, package: str) -> bool:
    """Whether a program lies in the package of this digest: beside the manifest that has it."""
    manifest = program.parent / "manifest.json"
    return manifest.is_file() and hashlib.sha256(manifest.read_bytes()).hexdigest() == package


def test_a_verdict_survives_every_crash(ours: Callable) -> None:
    site = ours("same")
    site.deploy("--canary", "50%", *QUICK, "--hold")
    site.traffic(lambda: site.run("deploy", "status", "router", code=None).returncode == 0)
    assert "waits for a person" in site.run("deploy", "status", "router").stdout
    # All of them die with the verdict told and nothing moved; they come back, and it still stands.
    for replica in site.replicas:
        replica.kill()
    assert site.status(code=0)["step"]["passed"]["checks"]
    for replica in site.replicas:
        replica.start()
    assert all(replica.get("/v1/highroad/status")["members"][0]["serving"]["version"] == "router:1" for replica in site.replicas)
    moved = json.loads(site.run("deploy", "promote", "router", "--by", "eve", "--json").stdout)
    assert moved["to"] == 2 and "passed" in moved["why"]
    # Killed between the move of the alias and the end of the rollout, whoever is left writes it.
    site.replicas[0].kill()
    wait(lambda: all(replica.ask(0)["version"] == "router:2" for replica in site.replicas[1:]))
    wait(lambda: site.run("deploy", "status", "router", code=None).stdout.count("was promoted"))
    site.replicas[0].start()
    assert site.replicas[0].ask(0)["version"] == "router:2"
    assert "goes on" in site.run("deploy", "promote", "router", code=1).stderr


def test_rollback_ends_what_is_tried_and_an_outage_takes_nothing_down(ours: Callable) -> None:
    site = ours("b")
    site.run("promote", "router", 2, "--override", "--by", "eve", "--why", "to see", "--expires", "1d")
    wait(lambda: site.all_serve("router:2"))
    site.run("rollback", "router")
    wait(lambda: site.all_serve("router:1"))
    rollout = site.deploy("--shadow", "1%")
    assert site.run("rollback", "router", "--by", "bob", "--why", "no").stdout.strip() == f"{rollout} aborted"
    wait(lambda: all((replica.rollout()["end"] or {}).get("by") == "bob" for replica in site.replicas))
    assert site.all_serve("router:1")

    # A replica that starts while nobody answers goes on with what it served last.
    replica = site.replicas[0]
    replica.stop()
    replica.env = replica.env | {"HIGHROAD_TRACKING_URI": "http://127.0.0.1:9"}
    replica.start()
    assert replica.ask(0) == {"version": "router:1", "rollout": None, "evidence": "bit-exact"}
