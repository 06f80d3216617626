"""Webhooks that an edit of `portfolio.toml` adds, changes and takes away, while the server runs: what a receiver hears, verified by the
`standardwebhooks` package, and what is kept for the next start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import requests
from conftest import REPO
from test_alerts import SECRET, Receiver

LIMIT_S = 20
MEMBERS = """
[members.{name}]
model = "./embed"
threads = 1
[budgets.members.{name}]
tokens_per_day = 40
"""
# 25 tokens: more than half of the budget, and less than four fifths.
IDS = [2, *[31] * 23, 3]


def wait(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Site:
    """A server whose members have budgets: one that is half spent is an alert."""

    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home = binary, home
        command = [str(binary), "pack", str(REPO / "conformance" / "packages" / "embed"), "-o", "embed"]
        subprocess.run(command, cwd=home, check=True, capture_output=True)
        self.write("")

    def write(self, webhooks: str) -> None:
        members = [MEMBERS.format(name=f"m{n}") for n in range(4)]
        (self.home / "portfolio.toml").write_text("[budgets]\n" + "".join(members) + webhooks)

    def start(self) -> None:
        env = os.environ | {"HIGHROAD_HOME": str(self.home / "state"), "HOOK_SECRET": SECRET}
        command = [str(self.binary), "serve", "--portfolio", "portfolio.toml", "--development", "--listen", "127.0.0.1:0"]
        log = (self.home / "log").open("ab")
        self.process = subprocess.Popen(command, cwd=self.home, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url, (self.home / "log").read_text()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def portfolio(self) -> dict:
        return requests.get(f"{self.url}/v1/highroad/status", timeout=10).json()["portfolio"]

    def edit(self, webhooks: str) -> None:
        before = self.portfolio()["digest"]
        self.write(webhooks)
        self.process.send_signal(signal.SIGHUP)
        wait(lambda: self.portfolio()["digest"] != before)

    def spend(self, member: str) -> None:
        body = {"model": member, "input": [IDS]}
        asked = requests.post(f"{self.url}/v1/embeddings", json=body, timeout=10)
        assert asked.status_code == 200, asked.text


def members(receiver: Receiver, name: str) -> list[str]:
    return [body["data"]["labels"]["member"] for body in receiver.of(name, "alert.firing")]


def test_an_edit_changes_who_is_told(highroad: Path, tmp_path: Path) -> None:
    site = Site(highroad, tmp_path)
    with Receiver() as receiver:
        receiver.n_fail = 0
        site.start()
        try:
            site.edit(f'[webhooks.first]\nurl = "{receiver.url("first")}"\n')
            site.spend("m0")
            wait(lambda: members(receiver, "first") == ["m0"])
            # Another address with a secret in the place of the first; what the first one heard nobody hears again.
            site.edit(f'[webhooks.signed]\nurl = "{receiver.url("signed")}"\nsecret_env = "HOOK_SECRET"\n')
            site.spend("m1")
            wait(lambda: members(receiver, "signed") == ["m1"])
            # The same webhook somewhere else, unsigned; an edit that is wrong changes nothing.
            site.edit(f'[webhooks.signed]\nurl = "{receiver.url("moved")}"\n')
            site.write('[webhooks.signed]\nadress = "x"\n')
            site.process.send_signal(signal.SIGHUP)
            wait(lambda: site.portfolio()["last_error"])
            site.spend("m2")
            wait(lambda: members(receiver, "moved") == ["m2"])
            assert members(receiver, "first") == ["m0"] and members(receiver, "signed") == ["m1"]
            # What waits for a receiver that fails is kept, though nothing was to be kept when the server started.
            site.edit(f'[webhooks.later]\nurl = "{receiver.url("later")}"\n')
            receiver.n_fail = 1000
            site.spend("m3")
            wait(lambda: receiver.refused)
        finally:
            site.stop()
        kept = json.loads((tmp_path / "state" / "alerts" / "alerts.json").read_text())
        assert [waiting["webhook"] for waiting in kept["waiting"]] == ["later"]
        receiver.n_fail = 0
        site.start()
        try:
            wait(lambda: members(receiver, "later") == ["m3"])
            page = requests.get(f"{site.url}/metrics", timeout=10).text
            assert 'highroad_webhook_tries_total{webhook="later",outcome="delivered"} 1' in page
        finally:
            site.stop()
    log = (tmp_path / "log").read_text()
    assert SECRET not in log and receiver.url("moved") not in log
