"""SIGKILL at every step of a promotion, a rollout's promotion and a rollback: of the command, of the tracking server, of a replica, and
of the database. Whatever dies when, the alias names the old version or the new one, the audit trail tells how it came to that,
verdicts stay, and servers converge on it. strace delivers the signal as a process enters its N-th system call of a kind, for N = 1, 2, …
until it gets through alive."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli import call, highroad_bin  # noqa: F401
from test_rollout import QUICK, Replica, desk, wait  # noqa: F401

CONVERGE_LIMIT_S = 5.0
# A command that gets through has fewer system calls of a kind on every thread.
MOST_CALLS = 400
SENDS = "sendto,sendmsg,write,writev"
WRITES = "pwrite64,fdatasync,fsync,ftruncate,unlink,rename"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def killing(nth: int, calls: str) -> list[str]:
    """A command before a command, or before `-p PID`, that kills it as it enters its `nth` of `calls`."""
    assert shutil.which("strace"), "strace is not installed: run `scripts/debian-tools strace`"
    return ["strace", "-f", "-qqq", "-o", "/dev/null", f"--trace={calls}", f"--inject={calls}:signal=SIGKILL:when={nth}"]


class Server:
    """A `highroad track` that keeps its address through deaths."""

    def __init__(self, binary: Path, home: Path, database: str | None = None) -> None:
        self.home, self.url = home, f"http://127.0.0.1:{free_port()}"
        self.command = [str(binary), "track", "--listen", self.url.removeprefix("http://"), "--home", str(home)]
        self.command += ["--database", database] if database else []
        self.start()

    def start(self) -> None:
        with self.home.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout.readline().strip(), self.home.with_suffix(".log").read_text()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            tasks = [(task / "status").read_text() for task in Path(f"/proc/{self.process.pid}/task").iterdir()]
            states = [line for text in tasks for line in text.splitlines() if line.startswith(("Name", "State", "TracerPid"))]
            self.process.kill()
            raise AssertionError(f"it does not end: {states}") from None


class Road:
    """A registry with `a` as the champion and an equal version beside it, and a replica that follows."""

    def __init__(self, run: Callable, server: Server, replica: Replica | None, desk: Path) -> None:  # noqa: F811
        self.run, self.server, self.replica, self.desk = run, server, replica, desk

    def moves(self) -> list[dict]:
        return json.loads(self.run("audit", "router", "--json").stdout)

    def alias(self) -> int:
        url = f"{self.server.url}/api/2.0/mlflow/registered-models/alias?name=router&alias=champion"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return int(json.loads(reply.read())["model_version"]["version"])

    def check(self) -> int:
        """What holds after every death; gives the version that the alias names."""
        version, moves = self.alias(), self.moves()
        assert version in (1, 2)
        # Newest first: each move begins where the one before it ended, and the last one ends at what is.
        assert moves[0]["to"] == version, moves[:3]
        assert all(later["from"] == earlier["to"] for later, earlier in zip(moves, moves[1:], strict=False)), moves
        assert all(move["by"] and move["why"] and (move["action"] == "rollback" or move["rehearsal"]) for move in moves), moves
        # The verdict is there: without it no move to a version is let through.
        assert all(move["verdict"] for move in moves if move["action"] == "promote")
        if self.replica:
            wait(lambda: self.replica.ask(0)["version"] == f"router:{version}", CONVERGE_LIMIT_S)
        return version

    def settle(self, version: int) -> None:
        """The alias names `version`, by a command that lives; the verdict that this takes was not lost."""
        if self.alias() != version:
            self.run("promote", "router", version, "--by", "eve", "--why", "back")
        assert self.check() == version


@pytest.fixture(scope="module")
def road(call, desk, highroad, tmp_path_factory) -> Iterator[Road]:  # noqa: F811
    with open_road(call, desk, highroad, tmp_path_factory.mktemp("road")) as road:
        yield road


@contextlib.contextmanager
def open_road(call: Callable, desk: Path, binary: Path, folder: Path, database: str | None = None) -> Iterator[Road]:  # noqa: F811
    folder.mkdir(exist_ok=True)
    server = Server(binary, folder / "track", database)

    def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
        return call(*args, **({"cwd": desk, "HIGHROAD_TRACKING_URI": server.url} | options))

    replica = None
    try:
        for name in ("a", "same"):
            run("push", name, "router")
        run("promote", "router", 1)
        home = folder / "replica"
        home.mkdir()
        portfolio = "poll_interval_ms = 100\n[rollouts]\nwarm_s = 0\n[members.router]\nmodel = 'router@champion'\nthreads = 1\n"
        (home / "portfolio.toml").write_text(portfolio)
        env = os.environ | {"HIGHROAD_HOME": str(home / "state"), "HIGHROAD_TRACKING_URI": server.url}
        replica = Replica([str(binary), "serve", "--listen", "127.0.0.1:0"], home, env)
        yield Road(run, server, replica, desk)
    finally:
        if replica:
            replica.stop()
        server.stop()


def attempt(road: Road, command: list[str], prefix: list[str]) -> int:
    environment = os.environ | {"HIGHROAD_HOME": str(road.desk / ".highroad"), "HIGHROAD_TRACKING_URI": road.server.url}
    done = subprocess.run([*prefix, *command], cwd=road.desk, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode


def counts(nth: int) -> int:
    """1, 2, …, 12, then in growing strides: what happens once is over early."""
    return nth + max(1, nth // 6)


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_a_command_that_is_killed_at_any_call_leaves_the_old_version_or_the_new(road: Road, highroad: Path, action: str) -> None:
    began, ends = (1, 2) if action == "promote" else (2, 1)
    # Whether servers follow is seen below, and a registry that was killed cannot be asked.
    rest = ["2"] if action == "promote" else ["--no-wait"]
    command = [str(highroad), action, "router", *rest, "--by", "ann", "--why", "killed"]
    nth, n_killed, seen = 1, 0, set()
    while nth < MOST_CALLS:
        road.settle(began)
        code = attempt(road, command, killing(nth, SENDS))
        version = road.check()
        seen.add(version)
        if code == 0:
            assert version == ends
            break
        n_killed += 1
        nth = counts(nth)
    assert n_killed >= 3 and ends in seen and nth < MOST_CALLS


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_a_registry_that_is_killed_at_any_write_keeps_what_it_said(road: Road, highroad: Path, action: str) -> None:
    began, ends = (1, 2) if action == "promote" else (2, 1)
    # Whether servers follow is seen below, and a registry that was killed cannot be asked.
    rest = ["2"] if action == "promote" else ["--no-wait"]
    command = [str(highroad), action, "router", *rest, "--by", "ann", "--why", "killed"]
    nth, n_killed = 1, 0
    while nth < MOST_CALLS:
        road.settle(began)
        with traced(road.server.process, nth, WRITES):
            code = attempt(road, command, [])
        # Nothing kills it any more, and what was killed is gone soon.
        time.sleep(0.05)
        was_killed = not road.server.is_alive()
        if was_killed:
            n_killed += 1
            road.server.process.wait()
            # The replica goes on meanwhile, with what it serves.
            assert road.replica.ask(0)["version"] in ("router:1", "router:2")
            road.server.start()
        version = road.check()
        # What the command was told is so; what it was not told may be either.
        assert code != 0 or version == ends
        if not was_killed:
            assert code == 0
            break
        nth = counts(nth)
    assert n_killed >= 1 and nth < MOST_CALLS


def is_dead(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@contextlib.contextmanager
def traced(process: subprocess.Popen, nth: int, calls: str) -> Iterator[None]:
    """Kills a running process as it enters its `nth` of `calls` from here to the end, its own upkeep included."""
    tracer = subprocess.Popen([*killing(nth, calls), "-p", str(process.pid)], stderr=subprocess.PIPE)
    tasks = Path(f"/proc/{process.pid}/task")
    is_traced = lambda task: "TracerPid:\t0\n" not in (task / "status").read_text()  # noqa: E731

    def has_begun() -> bool:
        with contextlib.suppress(OSError):
            return all(is_traced(task) for task in tasks.iterdir())
        return True

    try:
        wait(lambda: is_dead(process.pid) or has_begun())
        yield
    finally:
        # strace does not always notice that all it traced is dead, and until it ends nobody else may bury them.
        end = tracer.kill if is_dead(process.pid) else tracer.terminate
        end()
        try:
            tracer.wait(timeout=2)
        except subprocess.TimeoutExpired:
            tracer.kill()
            tracer.wait()


def test_a_replica_that_is_killed_while_it_promotes_leaves_one_promotion(road: Road) -> None:
    for moment_s in (0.0, 0.03, 0.06, 0.1, 0.2, 0.4):
        road.settle(1)
        n_before = len(road.moves())
        rollout = road.run("deploy", "router", 2, "--canary", "100%", *QUICK, "--by", "ann", "--why", "killed").stdout.strip()
        replica = road.replica
        wait(lambda: (replica.rollout() or {}).get("rollout", {}).get("id") == rollout)  # noqa: B023
        status = lambda: json.loads(road.run("deploy", "status", "router", "--json", code=None).stdout)  # noqa: E731
        n = 0
        while not (replica.rollout() or {}).get("step", {}).get("passed") and road.alias() == 1:
            for _ in range(20):
                n += 1
                replica.ask(n)
        time.sleep(moment_s)
        replica.kill()
        assert road.alias() in (1, 2) and status()["step"].get("passed"), "a pass that was told is not lost"
        replica.start()
        wait(lambda: road.alias() == 2)
        wait(lambda: (status()["end"] or {}).get("outcome") == "promoted")
        assert road.check() == 2
        moved = road.moves()[: len(road.moves()) - n_before]
        assert [move["to"] for move in moved] == [2] and rollout in moved[0]["why"], moved


def postgres_tools() -> Path | None:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    return Path(found[-1]) if found else None


@pytest.fixture
def postgres() -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """A PostgreSQL of its own: its address, and what kills and what starts it."""
    tools, port = postgres_tools(), free_port()
    assert tools, "PostgreSQL is not installed: run `scripts/debian-tools postgresql`"
    nobody = 65534
    # It refuses to run as root.
    owner = {"user": nobody, "group": nobody} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="highroad-pg-"))
    if owner:
        os.chown(folder, nobody, nobody)
    server: list[subprocess.Popen] = []

    def start() -> None:
        command = [str(tools / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", "", "-h", "127.0.0.1"]
        with (folder / "log").open("ab") as log:
            server.append(subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **owner))
        ask = [str(tools / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        wait(lambda: subprocess.run(ask, stdout=subprocess.DEVNULL, check=False).returncode == 0)

    def die() -> None:
        # Its own word for an immediate shutdown: every backend dies as in a crash, and the next start recovers from the log.
        server[-1].send_signal(signal.SIGQUIT)
        server[-1].wait(timeout=30)

    make = [str(tools / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "highroad", "-E", "UTF8", "--no-sync"]
    subprocess.run(make, check=True, cwd="/", stdout=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C.UTF-8"}, **owner)
    start()
    try:
        yield f"postgres://highroad@127.0.0.1:{port}/postgres", die, start
    finally:
        die()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_database_that_dies_in_a_promotion_loses_nothing(call, desk, highroad: Path, tmp_path: Path, postgres: tuple) -> None:  # noqa: F811
    address, die, start = postgres
    with open_road(call, desk, highroad, tmp_path / "road-of-pg", address) as road:
        command = [str(highroad), "promote", "router", "2", "--by", "ann", "--why", "killed"]
        begun = time.monotonic()
        road.settle(2)
        took = time.monotonic() - begun
        for share in (0.2, 0.5, 0.8):
            road.settle(1)
            environment = os.environ | {"HIGHROAD_HOME": str(desk / ".highroad"), "HIGHROAD_TRACKING_URI": road.server.url}
            promoting = subprocess.Popen(command, cwd=desk, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(share * took)
            die()
            # Servers serve on while nobody can tell them anything.
            assert road.replica.ask(0)["version"] in ("router:1", "router:2")
            start()
            code = promoting.wait(timeout=120)
            version = wait_for_check(road)
            assert code != 0 or version == 2


def wait_for_check(road: Road) -> int:
    """The pool of the tracking server finds its database again."""

    def answers() -> bool:
        try:
            return road.alias() in (1, 2)
        except OSError:
            return False

    wait(answers)
    return road.check()
