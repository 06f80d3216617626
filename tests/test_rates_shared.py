"""Rates of a key that two `highroad serve` share through one `highroad track`: together they let through what one may."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from cli import ROOT, call, highroad_bin  # noqa: F401
from test_promotion_kill import Server
from test_rollout import Replica

MOST = 60
SLICE = MOST // 20


def ask(url: str, key: str) -> tuple[int, str | None]:
    body = json.dumps({"model": "router", "input": "hello"}).encode()
    request = urllib.request.Request(f"{url}/v1/moderations", body, {"content-type": "application/json", "authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["retry-after"]


def test_two_servers_let_through_what_one_may(highroad: Path, call, tmp_path: Path) -> None:  # noqa: F811
    package, access = tmp_path / "router", tmp_path / "access.toml"
    call("pack", ROOT / "conformance" / "packages" / "classify-a", "-o", package, cwd=tmp_path)
    (tmp_path / "portfolio.toml").write_text(f"[members.router]\nmodel = '{package}'\nthreads = 1\n")
    key = call("access", "add", "web", "--file", access, "--scope", "infer", "--scope", "observe", "--requests-per-minute", MOST, cwd=tmp_path).stdout.strip()
    access.write_text(access.read_text() + '\n[rates]\nshared = "fleet"\n')
    command = [str(highroad), "serve", "--development", "--portfolio", str(tmp_path / "portfolio.toml"), "--access", str(access), "--listen", "127.0.0.1:0"]
    with contextlib.ExitStack() as stack:
        server = Server(highroad, tmp_path / "track")
        stack.callback(server.stop)
        replicas = []
        for n in range(2):
            home = tmp_path / f"replica-{n}"
            home.mkdir()
            replicas.append(Replica(command, home, os.environ | {"HIGHROAD_HOME": str(home), "HIGHROAD_TRACKING_URI": server.url}))
            stack.callback(replicas[-1].stop)
        if time.gmtime().tm_sec > 45:
            time.sleep(61 - time.gmtime().tm_sec)
        minute = time.time() // 60
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            told = list(pool.map(lambda n: ask(replicas[n % 2].url, key), range(2 * MOST)))
        assert time.time() // 60 == minute, "too slow for this test to say anything"
        codes = [code for code, _ in told]
        assert set(codes) == {200, 429} and MOST - 2 * SLICE <= codes.count(200) <= MOST
        assert all(1 <= int(wait) <= 60 for code, wait in told if code == 429)


def test_servers_that_share_have_a_name(highroad: Path, call, tmp_path: Path) -> None:  # noqa: F811
    package, access = tmp_path / "router", tmp_path / "access.toml"
    call("pack", ROOT / "conformance" / "packages" / "classify-a", "-o", package, cwd=tmp_path)
    (tmp_path / "portfolio.toml").write_text(f"[members.router]\nmodel = '{package}'\n")
    access.write_text('[rates]\nshared = ""\n')
    command = ["serve", "--development", "--portfolio", "portfolio.toml", "--access", "access.toml", "--listen", "127.0.0.1:0"]
    assert "a name of 1 to 200 bytes" in call(*command, cwd=tmp_path, code=2).stderr
