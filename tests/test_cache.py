"""Kept answers and priorities with keys: what tenants share and what they do not, through the real binary."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import tritonclient.grpc as grpcclient
from conftest import serving
from tritonclient.utils import InferenceServerException

REPO = Path(__file__).resolve().parent.parent


class Site:
    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home, self.url = binary, home, ""
        self.keys: dict[str, str] = {}

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
        return kept | {"HIGHROAD_HOME": str(self.home / "state")}

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, env=self.env(), cwd=self.home, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def moderate(self, key: str, text: str, model: str = "private", **headers: str) -> requests.Response:
        headers = {"authorization": f"Bearer {self.keys[key]}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return requests.post(f"{self.url}/v1/moderations", json={"model": model, "input": text}, headers=headers, timeout=10)


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("cache")
    site = Site(highroad, home)
    site.run("pack", REPO / "conformance" / "packages" / "classify-a", "-o", home / "classify-a")
    for name, tenant, more in [("a", "acme", []), ("b", "acme", ["--priority", "low"]), ("c", "other", []), ("ops", "ops", ["--scope", "observe"])]:
        added = site.run("access", "add", name, "--tenant", tenant, *more, "--json")
        site.keys[name] = json.loads(added.stdout)["key"]
    cache = 'model = "./classify-a"\nthreads = 1\ncache = { bytes = "1MiB", ttl_s = 600'
    (home / "portfolio.toml").write_text(
        f"[members.private]\n{cache} }}\n[members.shared]\n{cache}, shared_by_tenants = true }}\n"
    )
    command = [str(highroad), "serve", "--development", "--listen", "127.0.0.1:0", "--access", "access.toml"]
    with serving(command, home / "serve.log", env=site.env(), cwd=home) as site.url:
        yield site


def told(reply: requests.Response) -> str:
    assert reply.status_code == 200, reply.text
    return reply.headers["x-highroad-cache"]


def test_tenants_do_not_find_what_others_asked_unless_they_share(site: Site) -> None:
    assert [told(site.moderate(key, "a secret")) for key in "abc"] == ["miss", "hit", "miss"]
    assert [told(site.moderate(key, "no secret", "shared")) for key in "abc"] == ["miss", "hit", "hit"]


def test_a_hit_is_replayed_to_the_bit(site: Site, tmp_path: Path) -> None:
    replies = [site.moderate("a", "the road goes on") for _ in range(2)]
    assert [told(reply) for reply in replies] == ["miss", "hit"]
    assert replies[0].json()["results"] == replies[1].json()["results"]
    case = tmp_path / "case.json"
    case.write_text(json.dumps({"text": "the road goes on"}))
    replayed = site.run("replay", replies[1].headers["x-request-id"], "--input", case, "--json")
    assert json.loads(replayed.stdout)["same_bits"] is True
    headers = {"authorization": f"Bearer {site.keys['ops']}"}
    record = requests.get(f"{site.url}/v1/highroad/requests/{replies[1].headers['x-request-id']}", headers=headers, timeout=10)
    assert record.json()["cache"] == "hit"


def test_priorities_are_asked_and_keys_have_a_ceiling(site: Site) -> None:
    # A key of the class `low` may say `high`: it is not refused, it is served as `low`.
    for key in "ab":
        assert site.moderate(key, f"urgent {key}", x_highroad_priority="high").status_code == 200
    assert "x-highroad-priority" in site.moderate("a", "urgent", x_highroad_priority="now").json()["error"]["message"]
    listed = json.loads(site.run("access", "list", "--json").stdout)
    assert "low" in json.dumps(listed)
    assert site.run("access", "add", "d", "--priority", "top", code=2).stderr.count("one of high, normal, low") == 1


def test_grpc_asks_for_a_class_too_and_is_refused_in_its_own_words(site: Site) -> None:
    client = grpcclient.InferenceServerClient(site.url.removeprefix("http://"))
    text = grpcclient.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"over grpc"], dtype=object))
    key = {"authorization": f"Bearer {site.keys['a']}"}
    for more in ({}, {"priority": 1}, {"priority": 9}):
        assert client.infer("private", [text], headers=key, **more).as_numpy("label").shape == (1,)
    with pytest.raises(InferenceServerException, match="x-highroad-priority") as refused:
        client.infer("private", [text], headers=key | {"x-highroad-priority": "now"})
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
