"""`portfolio.toml` edited under a running server: the real binary, load while it happens, and `highroad portfolio check`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

REPO = Path(__file__).resolve().parent.parent
PARTS = {"moderation": "classify-a", "embedder": "embed", "other": "classify-b"}


class Site:
    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home, self.url = binary, home, ""
        self.file = home / "portfolio.toml"

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
        return kept | {"HIGHROAD_HOME": str(self.home / "state")}

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, env=self.env(), cwd=self.home, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def text(self, *members: str, more: str = "", **keys: int) -> str:
        settings = "\n".join(f"{key} = {value}" for key, value in ({"threads": 1} | keys).items())
        return more + "\n" + "\n".join(f'[members.{name}]\nmodel = "./{PARTS[name]}"\n{settings}' for name in members) + "\n"

    def replace(self, text: str) -> None:
        """As editors do: a new file takes the name."""
        new = self.home / "portfolio.toml.new"
        new.write_text(text)
        new.rename(self.file)

    def portfolio(self) -> dict:
        return requests.get(f"{self.url}/v1/highroad/status", timeout=10).json()["portfolio"]

    def moderate(self, model: str = "moderation") -> requests.Response:
        return requests.post(f"{self.url}/v1/moderations", json={"model": model, "input": "the road"}, timeout=10)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("reload")
    site = Site(highroad, home)
    for name in PARTS.values():
        site.run("pack", REPO / "conformance" / "packages" / name, "-o", home / name)
    site.file.write_text(site.text("moderation"))
    command = [str(highroad), "serve", "--development", "--listen", "127.0.0.1:0"]
    with (home / "serve.log").open("wb") as log:
        site.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=site.env(), cwd=home)
        try:
            site.url = site.server.stdout.readline().strip()
            assert site.url, (home / "serve.log").read_text()
            yield site
        finally:
            site.server.terminate()
            site.server.wait(timeout=30)


def test_edits_under_load_fail_no_request(site: Site) -> None:
    stop, answered, failed = threading.Event(), [0], []

    def load() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                reply = session.post(f"{site.url}/v1/moderations", json={"model": "moderation", "input": "the road"}, timeout=10)
                answered[0] += 1
                if reply.status_code != 200:
                    failed.append(reply.text)

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        site.replace(site.text("moderation", "embedder"))
        eventually(lambda: site.portfolio()["settings"]["members"].keys() == {"embedder", "moderation"}, "a member that comes")
        assert requests.post(f"{site.url}/v1/embeddings", json={"model": "embedder", "input": "a"}, timeout=10).ok
        site.replace(site.text("moderation", "other", replicas=2, queue_rows=99))
        eventually(lambda: site.moderate("other").status_code == 200, "a member that comes as another goes")
        assert requests.post(f"{site.url}/v1/embeddings", json={"model": "embedder", "input": "a"}, timeout=10).status_code == 404
        members = site.portfolio()["settings"]["members"]
        assert members["moderation"]["replicas"] == 2 and members.keys() == {"moderation", "other"}
        before = answered[0]
        eventually(lambda: answered[0] > before + 20, "more answers")
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert not failed and answered[0] > 50, failed[:3]


def test_an_edit_that_cannot_serve_is_told_and_changes_nothing(site: Site) -> None:
    site.replace(site.text("moderation"))
    eventually(lambda: site.portfolio()["settings"]["members"].keys() == {"moderation"}, "the first members")
    before = site.portfolio()
    wrong = site.text("moderation").replace("threads", "treads")
    site.file.write_text(wrong)
    site.server.send_signal(signal.SIGHUP)
    eventually(lambda: site.portfolio()["last_error"] is not None, "an error")
    told = site.portfolio()
    assert told["last_error"]["problems"] == [{"line": 4, "reason": "[members.moderation] unknown key `treads`: did you mean `threads`?"}]
    assert {k: v for k, v in told.items() if k != "last_error"} == {k: v for k, v in before.items() if k != "last_error"}
    assert site.moderate().status_code == 200 and requests.get(f"{site.url}/ready", timeout=10).ok
    log = (site.home / "serve.log").read_text()
    assert "is not taken up" in log and "portfolio.toml:4: " in log, log
    page = requests.get(f"{site.url}/metrics", timeout=10).text
    assert "highroad_portfolio_last_reload_success 0" in page
    # The text from before is what serves, so going back to it is no change but the end of the error.
    site.replace(site.text("moderation"))
    eventually(lambda: site.portfolio()["last_error"] is None, "the end of the error")
    assert "highroad_portfolio_last_reload_success 1" in requests.get(f"{site.url}/metrics", timeout=10).text


def test_a_check_says_what_a_server_would(site: Site) -> None:
    other = site.home / "next.toml"
    other.write_text(site.text("moderation", "other", more="poll_interval_ms = 500\n", replicas=3))
    assert site.run("portfolio", "check", other, code=2).stderr.count("no verdict") == 2
    done = site.run("portfolio", "check", other, "--development", "--server", site.url, "--json")
    changes = {change["path"]: (change["before"], change["after"]) for change in json.loads(done.stdout)["changes"]}
    assert changes.keys() == {"members.moderation.replicas", "members.other", "poll_interval_ms"}
    assert changes["members.moderation.replicas"] == (1, 3) and changes["members.other"][0] is None
    assert "~ poll_interval_ms: 1000 -> 500" in site.run("portfolio", "check", other, "--development", "--server", site.url).stdout
    other.write_text(site.text("moderation") + "[members.gone]\nmodel = './gone'\n[limits]\ninputs = 'x'\n")
    done = site.run("portfolio", "check", other, "--development", "--json", code=2)
    assert [problem["line"] for problem in json.loads(done.stdout)["problems"]] == [8]
    other.write_text(site.text("moderation") + "[members.gone]\nmodel = './gone'\n")
    done = site.run("portfolio", "check", other, "--development", code=2)
    assert "next.toml:5: [members.gone]" in done.stderr, done.stderr
