"""Budgets that three `highroad serve` share through one `highroad track`: together they stay within the limit, also while it is away."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_promotion_kill import Server
from test_rollout import Replica

REPO = Path(__file__).resolve().parent.parent
MOST = 4000
SLICE = MOST // 20
N_REPLICAS = 3
TEXT = "hello the road goes on"


class Fleet:
    def __init__(self, server: Server, replicas: list[Replica]) -> None:
        self.server, self.replicas = server, replicas

    def used(self) -> int:
        rows = [row for replica in self.replicas for row in replica.get("/v1/highroad/budgets")["budgets"]]
        return sum(row["used"] + row["reserved"] for row in rows if row["limit"] == "tokens_per_day" and row["name"] == "router")


    @staticmethod
    def spent_today(replica: Replica) -> tuple[bool, int]:
        """Whether of all servers, and how much the router took."""
        history = replica.get("/v1/highroad/budgets/history")
        tokens = [account["tokens"][-1] for account in history["accounts"] if account["name"] == "router"]
        return history["of_all_servers"], sum(tokens)


def ask(replica: Replica) -> int:
    body = json.dumps({"model": "router", "input": [TEXT] * 4}).encode()
    request = urllib.request.Request(f"{replica.url}/v1/moderations", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def spend(replicas: list[Replica], n: int) -> list[int]:
    with concurrent.futures.ThreadPoolExecutor(3 * len(replicas)) as pool:
        return list(pool.map(ask, [replicas[at % len(replicas)] for at in range(n)]))


@pytest.fixture
def fleet(highroad: Path, tmp_path: Path) -> Iterator[Fleet]:
    package = tmp_path / "router"
    subprocess.run([str(highroad), "pack", str(REPO / "conformance" / "packages" / "classify-a"), "-o", str(package)], check=True, cwd=tmp_path)
    (tmp_path / "portfolio.toml").write_text(
        f"[budgets]\nshared = 'fleet'\n[budgets.members.router]\ntokens_per_day = {MOST}\n[members.router]\nmodel = '{package}'\nthreads = 1\n"
    )
    with contextlib.ExitStack() as stack:
        server = Server(highroad, tmp_path / "track")
        stack.callback(server.stop)
        replicas = []
        for n in range(N_REPLICAS):
            home = tmp_path / f"replica-{n}"
            home.mkdir()
            env = os.environ | {"HIGHROAD_HOME": str(home), "HIGHROAD_TRACKING_URI": server.url}
            command = [str(highroad), "serve", "--development", "--portfolio", str(tmp_path / "portfolio.toml"), "--listen", "127.0.0.1:0"]
            replicas.append(Replica(command, home, env))
            stack.callback(replicas[-1].stop)
        yield Fleet(server, replicas)


def test_three_servers_together_stay_within_the_limit_and_use_it_up(fleet: Fleet) -> None:
    if time.gmtime().tm_hour == 23 and time.gmtime().tm_min >= 58:
        time.sleep(130)
    codes = spend(fleet.replicas, 300)
    assert set(codes) == {200, 429}
    # Beyond the limit never; below it what lies idle with those that do not need it.
    assert MOST - N_REPLICAS * 2 * SLICE <= fleet.used() <= MOST
    # One that is busy gets what the others do not need.
    time.sleep(2.5)
    spend(fleet.replicas[:1], 60)
    assert fleet.used() <= MOST
    # Each tells the history of all, as the others tell their part of it: unasked, or at once where they are asked.
    deadline = time.monotonic() + 15
    while fleet.spent_today(fleet.replicas[2]) != (True, fleet.used()):
        assert time.monotonic() < deadline, [fleet.spent_today(fleet.replicas[2]), fleet.used()]
        time.sleep(0.2)
    fleet.server.stop()
    of_all, own = fleet.spent_today(fleet.replicas[2])
    assert not of_all and 0 < own < fleet.used()


def test_servers_go_on_with_what_they_hold_while_nobody_keeps_the_whole(fleet: Fleet) -> None:
    assert spend(fleet.replicas, 6) == [200] * 6
    fleet.server.stop()
    codes = spend(fleet.replicas, 90)
    assert 200 in codes and 429 in codes, "a slice is there to be spent, and no more than that"
    assert fleet.used() <= 6 * 40 + N_REPLICAS * 3 * SLICE < MOST
    # One that dies comes back as itself, with what it had and had spent.
    before = fleet.used()
    fleet.replicas[0].kill()
    fleet.replicas[0].start()
    assert fleet.used() >= before
    fleet.server.start()
    time.sleep(1.5)
    codes = spend(fleet.replicas, 300)
    assert 200 in codes and 429 in codes and fleet.used() <= MOST
