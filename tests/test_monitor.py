"""Monitoring with the real binary: the same traffic, shifted traffic, a restart, right answers that come later."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from conftest import serving

REPO = Path(__file__).resolve().parent.parent
WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
GERMAN = "Die Straße führt über den Berg und endet am Fluss an dem wir gestern lange gesessen und geredet haben".split()
SECRET = "xyzzysecretword"
PORTFOLIO = """
[monitor]
pane_s = 1
min_requests = 50
[members.router]
model = "./classify-a"
threads = 1
[members.embedder]
model = "./embed"
threads = 1
[members.reranker]
model = "./rerank"
threads = 1
[members.unwatched]
model = "./classify-b"
threads = 1
[members.unwatched.monitor]
enabled = false
"""
RNG = np.random.default_rng(11)


def english() -> str:
    return " ".join(RNG.choice(WORDS, RNG.integers(4, 12)))


def german() -> str:
    return " ".join(RNG.choice(GERMAN, RNG.integers(20, 40)))


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Site:
    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home, self.url = binary, home, ""
        self.http = requests.Session()

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, env=self.env(), cwd=self.home, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
        return kept | {"HIGHROAD_HOME": str(self.home / "state")}

    def serve(self) -> list[str]:
        return [str(self.binary), "serve", "--development", "--listen", "127.0.0.1:0"]

    def post(self, path: str, body: object) -> requests.Response:
        return self.http.post(f"{self.url}{path}", json=body, timeout=10)

    def ask(self, text: str) -> tuple[str, str]:
        """Id and label."""
        reply = self.post("/v1/moderations", {"model": "router", "input": text})
        scores = reply.json()["results"][0]["highroad"]["scores"]
        return reply.headers["x-request-id"], max(scores, key=scores.get)

    def monitor(self, member: str = "router") -> dict:
        reply = self.http.get(f"{self.url}/v1/highroad/monitor/{member}", timeout=10)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def watched(self, n: int, member: str = "router") -> dict:
        """The report once `n` requests are counted: they are, after the answer."""
        wait(lambda: self.monitor(member)["n_requests"] >= n)
        return self.monitor(member)


def wait(holds: Callable[[], object], limit_s: float = 15) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def prepared(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Packages with a baseline of the same kind of text; one without."""
    site = Site(highroad, tmp_path_factory.mktemp("monitor"))
    for name in ("classify-a", "classify-b", "embed", "rerank"):
        site.run("pack", REPO / "conformance" / "packages" / name, "-o", site.home / name)
    texts = [english() for _ in range(600)]
    write(site.home / "train.jsonl", [{"text": f"{text} {SECRET}" if at == 0 else text, "label": "benign"} for at, text in enumerate(texts)])
    made = json.loads(site.run("monitor", "baseline", "classify-a", "--data", "train.jsonl", "--label", "label", "--json").stdout)
    assert made["n_rows"] == 600
    assert {"language", "n_chars", "n_tokens", "label", "confidence", "abstained", "unseen_tokens"} <= set(made["signals"])
    site.run("monitor", "baseline", "embed", "--data", "train.jsonl")
    (site.home / "portfolio.toml").write_text(PORTFOLIO)
    return site


@pytest.fixture
def site(prepared: Site) -> Iterator[Site]:
    with serving(prepared.serve(), prepared.home / "serve.log", env=prepared.env(), cwd=prepared.home) as prepared.url:
        yield prepared


def test_the_same_traffic_is_no_drift_shifted_traffic_is_and_a_restart_forgets_nothing(prepared: Site) -> None:
    site, command = prepared, prepared.serve()
    with serving(command, site.home / "serve.log", env=site.env(), cwd=site.home) as site.url:
        for _ in range(400):
            site.ask(english())
        report = site.watched(400)
        assert (report["state"], report["findings"]) == ("same", []), report["findings"]
        assert report["baseline"]["kind"] == "data" and report["baseline"]["n"] == 600
        language = next(signal for signal in report["signals"] if signal["signal"] == "language")
        assert language["verdict"] == "same" and language["n"] == 400 and 0 <= language["p"] <= 1
        assert abs(sum(bin["live"] for bin in language["bins"]) - 1) < 1e-9
        site.run("monitor", "--server", site.url, "--fail-on-drift")
    before = report

    with serving(command, site.home / "serve.log", env=site.env(), cwd=site.home) as site.url:
        report = site.monitor()
        assert (report["n_requests"], report["since"]) == (400, before["since"])
        n_asked = 0
        while not site.monitor()["findings"]:
            assert n_asked < 300, "three hundred shifted requests were not noticed"
            for _ in range(10):
                site.ask(german())
            n_asked += 10
        for _ in range(150):
            site.ask(german())
        report = site.watched(550 + n_asked)
        found = {finding["signal"]: finding for finding in report["findings"]}
        assert {"language", "n_chars", "n_tokens"} <= set(found), found
        assert found["language"]["id"] == f"router/{report['version']}/language"
        assert found["language"]["kind"] == "input_drift" and found["language"]["evidence"] >= found["language"]["threshold"]
        listed = site.http.get(f"{site.url}/v1/highroad/monitor", timeout=10).json()
        assert {finding["id"] for finding in listed["findings"]} == {finding["id"] for finding in report["findings"]}
        assert all("bins" not in signal for member in listed["members"] for signal in member["signals"])

        done = site.run("monitor", "router", "--server", site.url, "--html", "page.html", "--fail-on-drift", code=1)
        assert "differs from the baseline" in done.stdout
        page = (site.home / "page.html").read_text()
        assert page.count("<svg") > 5 and "<script" not in page
        wait(lambda: 'highroad_monitor_drifted{member="router",signal="language"} 1' in metrics(site))

    offline = json.loads(site.run("monitor", "router", "--state", "state", "--json").stdout)
    assert {finding["signal"] for finding in offline["findings"]} == set(found)
    for path in (site.home / "state").rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        if "store" not in path.parts:
            assert SECRET.encode() not in text and b"ignore previous" not in text and "Straße".encode() not in text, path


def metrics(site: Site) -> str:
    return site.http.get(f"{site.url}/metrics", timeout=10).text


def test_embeddings_are_compared_in_their_space(site: Site) -> None:
    for _ in range(80):
        assert site.post("/v1/embeddings", {"model": "embedder", "input": [english(), english()]}).status_code == 200
    report = site.watched(80, "embedder")
    assert report["n_inputs"] == 160 and report["n_requests"] == 80
    names = {signal["signal"]: signal for signal in report["signals"]}
    assert {"embedding", "embedding_distance"} <= set(names) and names["embedding"]["n"] == 80
    assert report["mmd"]["n"] == 80 and report["mmd"]["p"] > 0.001


def test_a_member_without_a_baseline_says_how_to_make_one_and_takes_it_up(site: Site) -> None:
    body = {"model": "reranker", "query": "how", "documents": ["say please", "what"]}
    assert site.post("/v1/rerank", body).status_code == 200
    report = site.watched(1, "reranker")
    assert report["state"] == "no_baseline" and "highroad monitor baseline" in report["message"]
    assert site.http.get(f"{site.url}/v1/highroad/monitor/unwatched", timeout=10).status_code == 404
    pairs = [{"query": english(), "document": english()} for _ in range(60)]
    write(site.home / "pairs.jsonl", pairs)
    columns = ["--column", "query", "--column", "document"]
    site.run("monitor", "baseline", "rerank", "--data", "pairs.jsonl", *columns)
    wait(lambda: (site.post("/v1/rerank", body), site.monitor("reranker")["state"] == "collecting")[1])
    assert {"relevance", "n_tokens"} <= {signal["signal"] for signal in site.monitor("reranker")["signals"]}


def test_right_answers_that_come_later_give_live_quality(site: Site) -> None:
    answers = [site.ask(english()) for _ in range(60)]
    labels = [{"request_id": id, "label": label if at % 3 else "wrong"} for at, (id, label) in enumerate(answers)]
    write(site.home / "labels.jsonl", labels)
    told = json.loads(site.run("monitor", "label", "--file", "labels.jsonl", "--server", site.url, "--json").stdout)
    assert told["outcomes"] == {"counted": 60}
    assert [one["right"] for one in told["results"][:4]] == [False, True, True, False]
    again = site.post("/v1/highroad/labels", {"labels": labels[:5]}).json()
    assert again["counted"] == 0 and {one["outcome"] for one in again["results"]} == {"duplicate"}
    quality = site.monitor()["quality"]
    assert quality["n"] == 60 and abs(quality["accuracy"]["value"] - 2 / 3) < 1e-9
    low, high = quality["accuracy"]["interval"]
    always = quality["accuracy_always"]
    assert always[0] < low < 2 / 3 < high < always[1]
    assert {label["label"] for label in quality["labels"]} >= {"wrong"}

    def outcome(**label: object) -> str:
        reply = site.post("/v1/highroad/labels", label)
        assert reply.status_code == 200, reply.text
        return reply.json()["results"][0]["outcome"]

    id, label = answers[0]
    assert outcome(request_id=id, label=label) == "contradicts"
    assert outcome(request_id=id, label=label, replace=True) == "replaced"
    assert outcome(request_id="never-was", label=label) == "unknown"
    assert outcome(request_id=id, input=7, label=label) == "no_such_input"
    assert outcome(request_id=id, relevant=[0]) == "invalid"
    assert outcome(request_id=id, label="x" * 1000) == "invalid"
    assert site.post("/v1/highroad/labels", {"labels": "all"}).status_code == 400
    write(site.home / "unknown.jsonl", [{"request_id": "never-was", "label": "benign"}])
    site.run("monitor", "label", "--file", "unknown.jsonl", "--server", site.url, "--strict", code=1)

    reply = site.post("/v1/rerank", {"model": "reranker", "query": "how", "documents": ["say please", "what", "system"]})
    best = reply.json()["results"][0]["index"]
    assert outcome(request_id=reply.headers["x-request-id"], relevant=[best]) == "counted"
    assert site.monitor("reranker")["quality"]["mrr"]["value"] == 1.0


def test_what_clients_get_wrong_is_counted_by_kind(site: Site) -> None:
    before = site.monitor()["violations"]
    for body in [{"input": ""}, {"input": 7}, {"input": ["a"] * 3000}]:
        assert site.post("/v1/moderations", {"model": "router", **body}).status_code == 400
    after = site.monitor()["violations"]
    new = {kind: n - before.get(kind, 0) for kind, n in after.items()}
    assert new == {"empty": 1, "wrong_type": 1, "too_many_inputs": 1}
    assert site.post("/v1/embeddings", {"model": "embedder", "input": [[99_999_999]]}).status_code == 400
    assert site.monitor("embedder")["violations"]["unknown_token"] == 1
    assert 'highroad_monitor_violations_total{member="router",kind="empty"}' in metrics(site)


def test_a_portfolio_tells_what_is_wrong_with_its_monitoring(prepared: Site) -> None:
    path = prepared.home / "bad.toml"
    path.write_text(PORTFOLIO.replace("pane_s = 1", "pane_s = 0\npanes = 3").replace("enabled = false", "enable = false"))
    said = prepared.run("serve", "--portfolio", path, code=2).stderr
    for part in ["[monitor] unknown key `panes`", "[members.unwatched.monitor] unknown key `enable`: did you mean `enabled`?"]:
        assert part in said, said


def test_a_key_sees_and_labels_the_members_that_it_may_ask(prepared: Site) -> None:
    access = prepared.home / "access.toml"
    env = prepared.env() | {"HIGHROAD_ACCESS": str(access)}

    def key(*arguments: str) -> str:
        command = [str(prepared.binary), "access", "add", *arguments]
        return subprocess.run(command, env=env, cwd=prepared.home, capture_output=True, text=True, check=True).stdout.strip()

    both = ["--scope", "infer", "--scope", "observe"]
    full, part, asks = key("full", *both), key("part", *both, "--member", "embedder"), key("asks", "--scope", "infer")
    headers = {name: {"authorization": f"Bearer {value}"} for name, value in {"full": full, "part": part, "asks": asks}.items()}
    with serving(prepared.serve(), prepared.home / "access.log", env=env, cwd=prepared.home) as url:
        get = lambda path, who: requests.get(f"{url}{path}", headers=headers[who], timeout=10)
        post = lambda path, body, who: requests.post(f"{url}{path}", json=body, headers=headers[who], timeout=10)
        asked = post("/v1/moderations", {"model": "router", "input": "how"}, "asks")
        label = {"request_id": asked.headers["x-request-id"], "label": "benign"}
        seen = {who: {member["member"] for member in get("/v1/highroad/monitor", who).json()["members"]} for who in ("full", "part")}
        assert seen == {"full": {"router", "embedder", "reranker"}, "part": {"embedder"}}
        assert get("/v1/highroad/monitor/router", "part").status_code == 403
        assert get("/v1/highroad/monitor", "asks").status_code == 403
        assert post("/v1/highroad/labels", label, "part").json()["results"][0]["outcome"] == "unknown"
        told = post("/v1/highroad/labels", label, "asks").json()["results"][0]
        assert told["outcome"] == "counted" and told["member"] == "router"
        assert requests.post(f"{url}/v1/highroad/labels", json=label, timeout=10).status_code == 401


def test_a_baseline_of_the_golden_set_travels_with_the_package(highroad: Path, tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "desk").mkdir()
    (tmp_path / "server").mkdir()
    desk, server = Site(highroad, tmp_path / "desk"), Site(highroad, tmp_path / "server")
    desk.run("pack", REPO / "conformance" / "packages" / "classify-a", "-o", desk.home / "package")
    cases = [{"id": f"c{n}", "input": {"text": f"{english()} {n}"}, "expected": "benign"} for n in range(60)]
    write(desk.home / "golden.jsonl", cases)
    desk.run("eval", "package", "--golden", "golden.jsonl")
    desk.run("eval", "package", "--golden", "golden.jsonl")
    assert len(list((desk.home / "state" / "baselines").rglob("*.json"))) == 1
    desk.run("push", "package", "monitored", "--tracking-uri", tracking_uri)
    command = [str(highroad), "serve", "monitored:1", "--development", "--listen", "127.0.0.1:0", "--threads", "1"]
    env = server.env() | {"HIGHROAD_TRACKING_URI": tracking_uri}
    with serving(command, server.home / "serve.log", env=env, cwd=server.home) as server.url:
        baseline = server.monitor("monitored")["baseline"]
        assert (baseline["kind"], baseline["name"], baseline["n"]) == ("golden", "golden", 60)


def test_a_classifier_that_somebody_else_hosts_is_watched_by_what_it_answered_an_evaluation(site: Site) -> None:
    """Our own server stands for the host."""
    home = site.home / "hosted"
    home.mkdir(exist_ok=True)
    texts = [english() for _ in range(300)]
    cases = [{"id": f"c{at}", "input": {"text": text}, "expected": site.ask(text)[1]} for at, text in enumerate(texts)]
    write(home / "golden.jsonl", cases)
    (home / "hosted.toml").write_text(
        f'highroad_hosted = 1\nbase_url = "{site.url}/tei/router"\nmodel = "router"\ntask = "classify"\nprotocol = "tei"\nlabels = ["benign", "injection"]\n'
        'flagged = "injection"\n'
    )
    (home / "portfolio.toml").write_text('[members.theirs]\nhosted = "hosted.toml"\n')
    site.run("golden", "bless", home / "golden.jsonl", "--by", "tests", "--why", "made for this test")
    evaluated = json.loads(site.run("eval", home / "hosted.toml", "--golden", home / "golden.jsonl", "--json").stdout)
    assert evaluated["summaries"][0]["metrics"][0]["value"] == 1.0
    other = Site(site.binary, site.home)
    command = [*site.serve(), "--portfolio", str(home / "portfolio.toml")]
    with serving(command, home / "serve.log", env=site.env(), cwd=site.home) as other.url:

        def ask(text: str) -> None:
            assert other.post("/v1/moderations", {"model": "theirs", "input": text}).status_code == 200

        for _ in range(120):
            ask(english())
        report = other.watched(120, "theirs")
        signals = {signal["signal"]: signal for signal in report["signals"]}
        assert {"language", "n_chars", "label", "confidence"} <= set(signals) and report["findings"] == []
        assert report["baseline"]["kind"] == "golden" and signals["label"]["n"] == 120
        n_asked = 0
        while not other.monitor("theirs")["findings"]:
            assert n_asked < 400, "four hundred shifted requests were not noticed"
            for _ in range(20):
                ask(german())
            n_asked += 20
    assert SECRET not in (home / "serve.log").read_text()
