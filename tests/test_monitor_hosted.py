"""Monitoring of members that somebody else hosts, against what they answered an evaluation: our own server stands for the host of an
embedder and a reranker, and a server that writes for that of a chat."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from conftest import serving
from test_hosted import describe, jsonl, ours  # noqa: F401
from test_hosted_members import Faulty, Misbehaviour
from test_monitor import GERMAN, WORDS, Site, metrics

N_CASES = 120
SECRET = "xyzzysecretword"


class Writer(Faulty):
    """Writes as many words as the prompt says, or does `acts`."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = Writing


class Writing(Misbehaviour):
    def do_answer(self) -> None:
        asked = self.server.seen[-1]
        prompt = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
        words = ["word"] * (3 + zlib.crc32(prompt.encode()) % 12)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(words)}
        if asked.get("stream"):
            self.begin_stream()
            self.part(" ".join(words))
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.event({"choices": [], "usage": usage})
            return self.event("[DONE]")
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": " ".join(words)}} if "messages" in asked else {"text": " ".join(words)}
        return self.say(200, {"choices": [choice], "usage": usage, "model": "writer"})

    def do_decline(self) -> None:
        message = {"role": "assistant", "content": None, "refusal": "I cannot."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.say(200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}, "model": "writer"})


class Hosted(Site):
    """What a test asks, drawn from its own numbers."""

    def __init__(self, binary: Path, home: Path) -> None:
        super().__init__(binary, home)
        self.rng = np.random.default_rng(17)
        self.writer = Writer()
        self.client: openai.OpenAI

    def text(self, words: list[str] = WORDS, low: int = 4, high: int = 12) -> str:
        return " ".join(self.rng.choice(words, self.rng.integers(low, high)))

    def german(self) -> str:
        return self.text(GERMAN, 20, 40)

    def many(self, n: int, ask: Callable[[], object]) -> None:
        for _ in range(n):
            ask()

    def signals(self, member: str) -> set[str]:
        return {signal["signal"] for signal in self.monitor(member)["signals"]}

    def found(self, member: str) -> set[str]:
        return {finding["signal"] for finding in self.monitor(member)["findings"]}

    def embed(self, text: str, member: str = "embedder") -> None:
        assert self.post("/v1/embeddings", {"model": member, "input": text}).status_code == 200

    def rank(self, query: str, documents: list[str]) -> None:
        body = {"model": "reranker", "query": query, "documents": documents}
        assert self.post("/v2/rerank", body).status_code == 200

    def chat(self, text: str, **more: object) -> object:
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="chat", messages=messages, **more)


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory, ours: tuple) -> Iterator[Hosted]:  # noqa: F811
    site = Hosted(highroad, tmp_path_factory.mktemp("hosted"))
    threading.Thread(target=site.writer.serve_forever, daemon=True).start()
    address, _ = ours
    describe(site.home, "embedder.toml", address, task="embed", model="embed")
    describe(site.home, "reranker.toml", address, task="rerank", model="rerank")
    describe(site.home, "chat.toml", site.writer.url, model="writer")
    pairs = [{"id": str(n), "input": {"a": site.text(), "b": site.text()}, "expected": 0.5} for n in range(N_CASES)]
    prompts = [{"id": str(n), "input": {"prompt": f"{site.text()} {SECRET if n == 0 else n}"}, "expected": ["word"]} for n in range(N_CASES)]
    rankings = [
        {"id": str(n), "input": {"query": site.text(), "documents": [site.text() for _ in range(3)]}, "expected": [int(at == n % 3) for at in range(3)]}
        for n in range(N_CASES)
    ]
    for name, cases in {"embedder": pairs, "reranker": rankings, "chat": prompts}.items():
        golden = jsonl(site.home / f"{name}.jsonl", cases)
        site.run("golden", "bless", golden, "--by", "tests", "--why", "made for this test")
        site.run("eval", site.home / f"{name}.toml", "--golden", golden)
    members = "".join(f'[members.{name}]\nhosted = "{name}.toml"\n' for name in ("embedder", "reranker", "chat"))
    (site.home / "portfolio.toml").write_text(f"[monitor]\npane_s = 1\nmin_requests = 50\n{members}")
    with serving(site.serve(), site.home / "serve.log", env=site.env(), cwd=site.home) as site.url:
        site.client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="none", max_retries=0)
        yield site
    site.writer.shutdown()


def test_the_vectors_of_a_host_are_compared_with_those_it_gave_an_evaluation(site: Hosted) -> None:
    site.many(100, lambda: site.embed(site.text()))
    report = site.watched(100, "embedder")
    assert (report["state"], report["findings"]) == ("same", []), report["findings"]
    assert report["baseline"]["kind"] == "golden" and report["baseline"]["n"] > N_CASES
    assert {"n_chars", "language", "unseen_words", "embedding", "embedding_distance"} == site.signals("embedder")
    assert report["mmd"]["n"] == 100 and report["mmd"]["p"] > 0.001
    # A change that begins with a pane is told from what was before it.
    time.sleep(1.1)
    site.many(150, lambda: site.embed(site.german()))
    report = site.watched(250, "embedder")
    assert {"language", "n_chars", "unseen_words", "embedding"} <= site.found("embedder")
    assert report["mmd"]["p"] < 0.01


def test_the_scores_of_a_host_are_compared_with_those_it_gave_an_evaluation(site: Hosted) -> None:
    site.many(100, lambda: site.rank(site.text(), [site.text() for _ in range(3)]))
    report = site.watched(100, "reranker")
    assert (report["state"], report["findings"]) == ("same", []), report["findings"]
    assert report["baseline"]["n"] == N_CASES, "one document of each query"
    assert {"n_chars", "query_chars", "document_chars", "language", "unseen_words", "relevance"} == site.signals("reranker")
    kinds = {signal["signal"]: signal["kind"] for signal in report["signals"]}
    assert kinds["relevance"] == "prediction" and kinds["query_chars"] == "input"
    site.many(200, lambda: site.rank(site.text(), [site.text(low=30, high=60) for _ in range(2)]))
    site.watched(300, "reranker")
    found = site.found("reranker")
    assert "document_chars" in found and "query_chars" not in found, found


def test_what_a_host_writes_is_measured_and_not_kept(site: Hosted) -> None:
    asked = iter(range(1000, 2000))
    site.many(90, lambda: site.chat(f"{site.text()} {next(asked)}"))
    site.many(10, lambda: list(site.chat(f"{site.text()} {next(asked)}", stream=True)))
    report = site.watched(100, "chat")
    assert (report["state"], report["findings"]) == ("same", []), report["findings"]
    assert report["baseline"]["n"] == N_CASES
    inputs = {"n_chars", "n_messages", "language", "unseen_words"}
    answers = {"answer_chars", "answer_tokens", "finish_reason", "empty", "refused"}
    assert inputs | answers == site.signals("chat")
    signals = {signal["signal"]: signal for signal in report["signals"]}
    assert {signals[name]["kind"] for name in answers} == {"prediction"} and signals["answer_tokens"]["n"] == 100
    assert [bin["live"] for bin in signals["finish_reason"]["bins"] if bin["name"] == "stop"] == [1.0]

    site.writer.acts += ["decline"] * 120
    site.many(120, lambda: site.chat(f"{site.text()} {next(asked)}"))
    site.watched(220, "chat")
    found = {finding["signal"]: finding["kind"] for finding in site.monitor("chat")["findings"]}
    assert found.get("refused") == "prediction_drift" and "language" not in found, found
    assert 'highroad_monitor_drifted{member="chat",signal="refused"}' in metrics(site)
    for folder in ("monitor", "baselines", "requests"):
        for path in (site.home / "state" / folder).rglob("*.json*"):
            kept = path.read_bytes()
            assert SECRET.encode() not in kept and b"word word" not in kept and b"instructions" not in kept, path
