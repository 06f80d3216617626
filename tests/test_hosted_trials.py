"""A hosted member tried beside another: SmolLM2 under two descriptions, as the judge too, and a host that is not there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from conftest import KEY, serving
from test_hosted import describe

GREEDY = {"api_key_env": "HOSTED_KEY", "temperature": 0.0, "max_tokens": 4}
PRICE = {"currency": "EUR", "input_per_million": 1.0, "output_per_million": 2.0}
QUICK = "max_differ = 0.4\nmax_errors = 0.4\nalpha = 0.2"
WAIT_LIMIT_S = 60


class Site:
    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home, self.url = binary, home, ""

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
        return kept | {"HIGHROAD_HOME": str(self.home / "state"), "HOSTED_KEY": KEY}

    def ask(self, member: str, text: str, **more: object) -> tuple[str, str | None]:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)
        messages = [{"role": "user", "content": text}]
        raw = client.chat.completions.with_raw_response.create(model=member, messages=messages, **more)
        return raw.parse().choices[0].message.content, raw.headers.get("x-highroad-rollout")

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:
            return json.loads(reply.read())

    def trial(self, member: str) -> dict:
        return self.get(f"/v1/highroad/rollouts/{member}")

    def status(self, *arguments: str, code: int) -> str:
        command = [str(self.binary), "deploy", "status", *arguments, "--server", self.url]
        done = subprocess.run(command, env=self.env(), cwd=self.home, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def command(self) -> list[str]:
        return [str(self.binary), "serve", "--development", "--listen", "127.0.0.1:0"]


def soon(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory, smollm2: str) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("trials")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    describe(home, "chat.toml", smollm2, **GREEDY, seed=7, price=PRICE)
    describe(home, "equal.toml", smollm2, **GREEDY, seed=8, price=PRICE)
    wild = {"temperature": 2.0, "max_tokens": 24, "seed": 3}
    describe(home, "long.toml", smollm2, **GREEDY | {"max_tokens": 24}, seed=7, price=PRICE)
    describe(home, "other.toml", smollm2, **GREEDY | wild, system="Whatever is asked, count: one, two, three.", price=PRICE)
    describe(home, "judge.toml", smollm2, **GREEDY, seed=7, price=PRICE)
    describe(home, "gone.toml", nobody, **GREEDY)
    (home / "portfolio.toml").write_text(
        f"""
        [budgets]
        [budgets.members.judge]
        tokens_per_day = 1000000
        [members.chat]
        hosted = "chat.toml"
        [members.chat.trial]
        candidate = "equal"
        shadow = 100
        {QUICK}
        [members.equal]
        hosted = "equal.toml"
        [members.judged]
        hosted = "long.toml"
        [members.judged.trial]
        candidate = "other"
        shadow = 100
        max_differ = 0.95
        min_similarity = 0.9
        judge = "judge"
        judge_share = 1.0
        margin = 0.9
        [members.other]
        hosted = "other.toml"
        [members.judge]
        hosted = "judge.toml"
        [members.brave]
        hosted = "chat.toml"
        [members.brave.trial]
        candidate = "gone"
        canary = [100]
        {QUICK}
        [members.gone]
        hosted = "gone.toml"
        retries = 0
        """
    )
    site = Site(highroad, home)
    with serving(site.command(), home / "log", env=site.env(), cwd=home) as site.url:
        yield site


def test_an_equal_candidate_keeps_every_rule_and_waits_for_a_person(site: Site) -> None:
    begun = site.trial("chat")
    assert begun["percent"] == 100 and begun["end"] is None and "goes on" not in site.status("chat", code=3)
    n = 0
    while not site.trial("chat")["step"].get("passed"):
        assert (n := n + 1) < 60
        # A stream takes part as a whole answer does.
        if n % 5:
            assert site.ask("chat", f"Say {n % 7}.")[1] is None
        else:
            client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0, timeout=30)
            stream = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Say it."}], stream=True)
            assert len(list(stream)) > 0
        soon(lambda: site.trial("chat")["n_waiting"] == 0)
    found = site.trial("chat")
    assert found["counts"]["n_compared"] == found["counts"]["n_asked"] == n and found["counts"]["n_differ"] == 0
    assert found["apart"]["mean_similarity"] == 1.0 and found["apart"]["tokens"][0] == found["apart"]["tokens"][1] > 0
    assert found["apart"]["cost"][0] == pytest.approx(found["apart"]["cost"][1])
    assert "waits for a person" in site.status("chat", code=0)


def test_texts_that_differ_are_put_side_by_side_and_judged_in_both_orders(site: Site) -> None:
    for n in range(4):
        site.ask("judged", f"What is the capital of France? Question {n}.")
    soon(lambda: site.trial("judged")["counts"]["n_compared"] == 4)
    found = site.trial("judged")
    assert found["counts"]["n_differ"] > 0
    worst = found["worst"][0]
    assert 0 <= worst["similarity"] < 0.9 and worst["tokens"][1] > 0 and len(worst["n_chars"]) == 2
    # SmolLM2 is no judge to rely on, but it was asked, twice for each pair, and its own account paid.
    spent = {row["name"]: row for row in site.get("/v1/highroad/budgets")["budgets"] if row["limit"] == "tokens_per_day"}
    assert spent["judge"]["used"] > 0
    counts = found["counts"]
    assert counts["n_labelled"] >= counts["n_regressions"] + counts["n_improvements"]
    # Texts stay out of files unless the server was told to keep them.
    written = b"".join(path.read_bytes() for path in (site.home / "state").rglob("*.jsonl"))
    assert b"similarity" in written and b"capital of France" not in written
    text, _ = site.ask("judged", "What is the capital of France? Question 0.")
    assert text.encode() not in written and "characters" in worst["stable"][0]


def test_a_person_stops_a_trial_with_a_name_and_a_reason(site: Site) -> None:
    def stop(**act: str) -> tuple[int, dict]:
        request = urllib.request.Request(
            f"{site.url}/v1/highroad/rollouts/judged/abort", json.dumps(act).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    trial = site.trial("judged")["rollout"]["id"]
    assert stop(rollout=trial, by="ann", why="")[0] == 400 and stop(rollout="another", by="ann", why="seen enough")[0] == 409
    code, end = stop(rollout=trial, by="ann", why="seen enough")
    assert (code, end["outcome"], end["by"], end["reason"]) == (200, "aborted", "ann", "seen enough")
    assert stop(rollout=trial, by="ann", why="again")[0] == 409
    found = site.trial("judged")
    assert found["percent"] == 0 and found["end"]["by"] == "ann"
    before = found["counts"]["n_compared"]
    site.ask("judged", "Say no.")
    assert site.trial("judged")["counts"]["n_compared"] == before
    shown = {member["member"]: member for member in site.get("/v1/highroad/portfolio")["members"]}
    assert shown["judged"]["trial"]["ended"] == {"by": "ann", "reason": "seen enough"} and shown["chat"]["trial"]["ended"] is None


def test_a_canary_whose_host_is_not_there_fails_nobody_and_is_stopped(site: Site) -> None:
    answers = []
    while not site.trial("brave")["end"]:
        answers.append(site.ask("brave", "Say yes."))
        assert len(answers) < 60
    assert all(text for text, _ in answers) and all(told.endswith("; retried") for _, told in answers)
    end = site.trial("brave")["end"]
    assert end["outcome"] == "aborted" and "failed" in end["reason"]
    assert site.ask("brave", "Say yes.")[1] is None
    assert "was aborted" in site.status("brave", code=1)
    # The host that is not there is told as what does not work.
    told = json.loads(site.status("--json", code=1))
    assert {"brave", "chat", "judged"} <= {rollout["member"] for rollout in told["rollouts"]}
    # A process that takes over the state does not try it again.
    shutil.copytree(site.home / "state" / "serving", site.home / "taken" / "serving")
    env = site.env() | {"HIGHROAD_HOME": str(site.home / "taken")}
    with serving(site.command(), site.home / "again.log", env=env, cwd=site.home) as again:
        site.url, before = again, site.url
        assert site.trial("brave")["end"]["reason"] == end["reason"] and site.trial("brave")["percent"] == 0
        assert site.ask("brave", "Say yes.")[1] is None
        site.url = before


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ("candidate = 'nobody'\nshadow = 10", "another hosted member that generates"),
        ("candidate = 'a'\nshadow = 10", "another hosted member that generates"),
        ("candidate = 'b'", "one of `shadow` and `canary`"),
        ("candidate = 'b'\nshadow = 0", "not above 0 %"),
        ("candidate = 'b'\nshadow = 10\nmargin = 0.1", "about a `judge`"),
        ("candidate = 'b'\nshadow = 10\ncolour = 1", "colour"),
    ],
)
def test_a_trial_that_cannot_be_is_told(highroad: Path, tmp_path: Path, trial: str, reason: str) -> None:
    for name in "ab":
        describe(tmp_path, f"{name}.toml", "http://127.0.0.1:9/v1")
    text = f"[members.a]\nhosted = 'a.toml'\n[members.a.trial]\n{trial}\n[members.b]\nhosted = 'b.toml'\n"
    (tmp_path / "portfolio.toml").write_text(text)
    done = subprocess.run([str(highroad), "serve", "--development"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and reason in done.stderr, done.stderr
