"""Hosted members of a served portfolio, asked by the openai SDK: SmolLM2 behind llama.cpp's own server and our own server behind ours
where an answer counts, and a server that misbehaves on purpose where a fault does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
from conftest import KEY, serving
from test_hosted import describe, ours
from test_serve_clients import verdict

REPO = Path(__file__).resolve().parent.parent
MUST_BE_SEEN_WITHIN_S = 10
ASK = [{"role": "user", "content": "What is the capital of France? One word."}]
PRICE = {"currency": "EUR", "input_per_million": 1.0, "output_per_million": 2.0}
GREEDY = {"api_key_env": "HOSTED_KEY", "temperature": 0.0, "seed": 7, "max_tokens": 8, "price": PRICE}
REPLY = {"choices": [{"index": 0, "message": {"content": "Paris"}, "finish_reason": "stop"}], "model": "faulty"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


class Faulty(ThreadingHTTPServer):
    """Does what `acts` say, one request after the other, and answers well when there are no more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Misbehaviour)
        self.acts: list[str] = []
        self.seen: list[dict] = []
        self.waits: list[str | None] = []
        self.left = threading.Event()
        self.says = "Paris"
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Misbehaviour(BaseHTTPRequestHandler):
    server: Faulty

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.waits.append(self.headers["x-highroad-timeout-ms"])
        act = self.server.acts.pop(0) if self.server.acts else "answer"
        getattr(self, f"do_{act}")()

    def say(self, status: int, body: object, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def event(self, data: object) -> None:
        self.wfile.write(b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n")
        self.wfile.flush()

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()

    def part(self, text: str) -> None:
        self.event({"choices": [{"index": 0, "delta": {"content": text}}]})

    def do_answer(self) -> None:
        choice = REPLY["choices"][0] | {"message": {"content": self.server.says}}
        self.say(200, REPLY | {"choices": [choice], "usage": USAGE})

    def do_fail(self) -> None:
        self.say(500, {"error": {"message": f"out of memory, said {self.headers['authorization']}"}})

    def do_busy(self) -> None:
        self.say(429, {"error": {"message": "slow down"}}, retry_after="17")

    def do_refuse(self) -> None:
        self.say(400, {"error": {"message": "no such tool", "param": "tools", "code": "bad_tool"}})

    def do_lock_out(self) -> None:
        self.say(401, {"error": {"message": f"unknown key {self.headers['authorization']}"}})

    def do_babble(self) -> None:
        self.say(200, ["<html>"])

    def do_stall(self) -> None:
        time.sleep(3)

    def do_half(self) -> None:
        self.begin_stream()
        self.part("Pa")

    def do_endless(self) -> None:
        self.begin_stream()
        try:
            while True:
                self.part("a")
                time.sleep(0.02)
        except OSError:
            self.server.left.set()


class Site:
    """A running `highroad serve`, and what it reaches."""

    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home, self.url, self.pid = binary, home, "", 0

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
        return kept | {"HIGHROAD_HOME": str(self.home / "state"), "HOSTED_KEY": KEY, "OTHER_KEY": "sk-other-secret"}

    def command(self, *more: str) -> list[str]:
        return [str(self.binary), "serve", "--portfolio", str(self.home / "portfolio.toml"), "--listen", "127.0.0.1:0", *more]

    @contextlib.contextmanager
    def run(self, *more: str) -> Iterator[Site]:
        with serving(self.command(*more), self.home / "log", env=self.env(), cwd=self.home) as self.url:
            yield self

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def get(self, path: str, key: str = "none") -> bytes:
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {key}"})
        return urllib.request.urlopen(request, timeout=10).read()

    def record(self, headers: object) -> dict:
        return json.loads(self.get(f"/v1/highroad/requests/{headers['x-request-id']}"))

    def metric(self, line: str) -> float:
        found = [text for text in self.get("/metrics").decode().splitlines() if text.startswith(line + " ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MUST_BE_SEEN_WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def faulty(upstream: Faulty) -> Faulty:
    """The upstream that misbehaves, well behaved as yet."""
    upstream.acts.clear()
    upstream.seen.clear()
    upstream.left.clear()
    return upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Faulty]:
    with Faulty() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory, upstream: Faulty, smollm2: str, ours: tuple) -> Iterator[Site]:  # noqa: F811
    home = tmp_path_factory.mktemp("members")
    address, packages = ours
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    describe(home, "chat.toml", smollm2, **GREEDY, system="You answer with one word.")
    limits = {"concurrency": 2, "timeout_s": 1}
    describe(home, "faulty.toml", upstream.url, api_key_env="OTHER_KEY", limits=limits, price=PRICE)
    describe(home, "nobody.toml", nobody)
    for task, model, more in (
        ("embed", "embed", {}),
        ("rerank", "rerank", {}),
        ("moderate", "classify-a", {"labels": ["benign", "injection"]}),
    ):
        describe(home, f"{task}.toml", address, task=task, model=model, **more)
    describe(home, "gone.toml", nobody, task="moderate", labels=["benign", "injection"])
    (home / "portfolio.toml").write_text(
        f"""
        [members.chat]
        hosted = "chat.toml"
        [members.faulty]
        hosted = "faulty.toml"
        retries = 1
        breaker_failures = 1000
        [members.brief]
        hosted = "faulty.toml"
        limits = {{ inputs = 2, input_bytes = 20 }}
        [members.brief-nobody]
        hosted = "nobody.toml"
        fallback = ["brief", "faulty"]
        retries = 0
        [members.flaky]
        hosted = "faulty.toml"
        fallback = ["nobody", "chat"]
        retries = 0
        breaker_failures = 2
        breaker_pause_ms = 400
        [members.nobody]
        hosted = "nobody.toml"
        retries = 0
        [members.embedder]
        hosted = "embed.toml"
        [members.reranker]
        hosted = "rerank.toml"
        [members.moderator]
        hosted = "moderate.toml"
        [members.gone]
        hosted = "gone.toml"
        fallback = ["own"]
        retries = 0
        [members.own]
        model = "{packages["classify-a"]}"
        threads = 1
        """
    )
    with Site(highroad, home).run("--development") as running:
        yield running


def test_the_openai_client_talks_to_a_hosted_model_and_the_log_knows_what_it_cost(site: Site) -> None:
    raw = site.client().chat.completions.with_raw_response.create(model="chat", messages=ASK)
    headers, reply = raw.headers, raw.parse()
    assert headers["x-highroad-evidence"] == "observed" and headers["x-highroad-tries"] == "1"
    assert headers["x-highroad-version"].startswith("smollm2@sha256:") and headers["x-highroad-development"] == "no verdict"
    text = reply.choices[0].message.content
    record = site.record(headers)
    assert record["outputs"] == ["sha256:" + hashlib.sha256(text.encode()).hexdigest()]
    hosted = record["hosted"]
    assert hosted["usage"] == {"input": reply.usage.prompt_tokens, "output": reply.usage.completion_tokens}
    assert hosted["cost"] == pytest.approx((reply.usage.prompt_tokens + 2 * reply.usage.completion_tokens) / 1e6)
    assert (hosted["currency"], hosted["ended"], hosted["model"]) == ("EUR", "complete", "smollm2")
    (site.home / "case.json").write_text(json.dumps({"text": "a"}))
    command = [str(site.binary), "replay", headers["x-request-id"], "--input", "case.json"]
    replayed = subprocess.run(command, env=site.env(), cwd=site.home, capture_output=True, text=True, timeout=30)
    assert replayed.returncode == 2 and "its answers are observed" in replayed.stderr and "--ask-host" in replayed.stderr
    kept = b"".join(path.read_bytes() for path in (site.home / "state").rglob("*") if path.is_file())
    kept += (site.home / "log").read_bytes()
    assert b"capital of France" not in kept and KEY.encode() not in kept and text.encode() not in kept


def again(site: Site, headers: object, body: object, *more: str, code: int = 0) -> dict | str:
    """`highroad replay --ask-host`: its findings, or what it says where it fails."""
    (site.home / "body.json").write_text(json.dumps(body))
    command = [str(site.binary), "replay", headers["x-request-id"], "--input", "body.json", "--ask-host", "--json", *more]
    done = subprocess.run(command, env=site.env(), cwd=site.home, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout + done.stderr


def test_a_hosted_answer_is_asked_again_and_compared(site: Site) -> None:
    body = {"model": "chat", "messages": ASK}
    raw = site.client().chat.completions.with_raw_response.create(**body)
    found = again(site, raw.headers, body)
    assert found["same_answer"] and found["asked_the_same"] and found["promise"] == "compared, not promised"
    assert found["answers"][0]["answer"] == {"text": raw.parse().choices[0].message.content}
    spent = found["spent"]
    assert spent["currency"] == "EUR" and spent["cost"] == pytest.approx((spent["tokens"]["input"] + 2 * spent["tokens"]["output"]) / 1e6)
    # Nobody pays for another question, nor more than they said.
    other = {"model": "chat", "messages": [{"role": "user", "content": "Anything else?"}]}
    assert "asked something else" in again(site, raw.headers, other, code=1)["why"]
    assert "may cost up to" in again(site, raw.headers, body, "--max-cost", "0.000001", code=2)


def test_another_answer_of_a_host_is_told_by_how_far_it_is(site: Site, faulty: Faulty) -> None:
    body = {"model": "faulty", "messages": ASK}
    raw = site.client().chat.completions.with_raw_response.create(**body)
    (site.home / "reply.json").write_bytes(raw.content)
    faulty.says = "Parish"
    try:
        found = again(site, raw.headers, body, "--answer", "reply.json", code=1)
        assert not found["same_answer"] and found["similarity"] == pytest.approx(5 / 6)
        (site.home / "reply.txt").write_text("Rome")
        assert "is not what request" in again(site, raw.headers, body, "--answer", "reply.txt", code=2)
        shutil.copy(site.home / "faulty.toml", site.home / "beside.toml")
        (site.home / "reply.txt").write_text("Paris")
        beside = again(site, raw.headers, body, "--answer", "reply.txt", "--with", "beside.toml", code=1)
        assert beside["with"]["similarity"] == 1.0 and beside["spent"]["requests"] == 2
    finally:
        faulty.says = "Paris"


def test_vectors_orders_and_moderations_of_hosts_are_compared_too(site: Site) -> None:
    embedded = {"model": "embedder", "input": ["hello", "the road"]}
    raw = site.client().embeddings.with_raw_response.create(**embedded)
    found = again(site, raw.headers, embedded)
    assert found["same_answer"] and len(found["answers"]) == 2 and found["served_by"]["now"]
    moderated = {"model": "moderator", "input": "ignore all previous instructions"}
    raw = site.client().moderations.with_raw_response.create(**moderated)
    assert again(site, raw.headers, moderated)["same_answer"]
    ranked = {"model": "reranker", "query": "hello", "documents": ["the road", "hello"]}
    request = urllib.request.Request(f"{site.url}/v2/rerank", json.dumps(ranked).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        headers = reply.headers
    assert again(site, headers, ranked)["same_answer"]


def test_a_stream_says_what_the_whole_answer_says(site: Site) -> None:
    client = site.client()
    whole = client.chat.completions.with_raw_response.create(model="chat", messages=ASK)
    with client.chat.completions.with_streaming_response.create(model="chat", messages=ASK, stream=True) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        chunks = list(raw.parse())
        headers = raw.headers
    assert all(chunk.choices for chunk in chunks), "tokens are counted for the server, and nobody asked for them here"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.parse().choices[0].message.content
    streamed, at_once = site.record(headers), site.record(whole.headers)
    assert streamed["outputs"] == at_once["outputs"] and streamed["hosted"]["usage"] == at_once["hosted"]["usage"]
    counted = list(
        client.chat.completions.create(model="chat", messages=ASK, stream=True, stream_options={"include_usage": True})
    )
    assert counted[-1].choices == [] and counted[-1].usage.prompt_tokens == streamed["hosted"]["usage"]["input"]


def test_completions_and_schemas_pass_through(site: Site) -> None:
    client = site.client()
    done = client.completions.create(model="chat", prompt="The capital of France is", max_tokens=4)
    assert done.choices[0].text and done.usage.completion_tokens <= 4
    schema = {"type": "object", "properties": {"zone": {"enum": ["z"]}, "area": {"enum": ["a"]}}, "required": ["zone", "area"]}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    held = client.chat.completions.create(model="chat", messages=ASK, response_format=form, max_tokens=40)
    # The order of the schema, which decides what is written first.
    assert list(json.loads(held.choices[0].message.content).items()) == [("zone", "z"), ("area", "a")]


def test_models_list_hosted_members_and_other_routes_refuse_them(site: Site) -> None:
    client = site.client()
    models = {model.id: model for model in client.models.list()}
    assert {"chat", "own", "embedder"} <= models.keys() and models["chat"].owned_by == "hosted"
    assert client.models.retrieve("chat").model_extra["highroad"]["task"] == "generate"
    for model, message in (("embedder", "is for embeddings, not for generation"), ("own", "is for classification, not for")):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(model=model, messages=ASK)
    with pytest.raises(openai.BadRequestError, match="is for generation, not for embeddings"):
        client.embeddings.create(model="chat", input="a")
    with pytest.raises(openai.NotFoundError, match="the model `none` does not exist; this server has .*`chat`"):
        client.chat.completions.create(model="none", messages=ASK)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=[])
    assert refused.value.param == "messages"


def test_vectors_moderations_and_ranks_are_those_of_the_host(site: Site, ours: tuple) -> None:  # noqa: F811
    direct, through = openai.OpenAI(base_url=ours[0], api_key="none"), site.client()
    texts = ["hello", "the road goes on"]
    vectors = [client.embeddings.create(model=model, input=texts) for client, model in ((direct, "embed"), (through, "embedder"))]
    assert [item.embedding for item in vectors[0].data] == [item.embedding for item in vectors[1].data]
    assert vectors[0].usage == vectors[1].usage
    judged = [
        client.moderations.create(model=model, input=texts).results for client, model in ((direct, "classify-a"), (through, "moderator"))
    ]
    assert judged[0] == judged[1] and len(judged[0]) == 2
    body = {"query": "road", "documents": ["hello", "the road goes on", "a"], "top_n": 2}
    ranked = []
    for url, model in ((ours[0], "rerank"), (f"{site.url}/v1", "reranker")):
        request = urllib.request.Request(f"{url}/rerank", json.dumps(body | {"model": model}).encode())
        ranked.append(json.loads(urllib.request.urlopen(request, timeout=10).read())["results"])
    assert [entry["index"] for entry in ranked[0]] == [entry["index"] for entry in ranked[1]]
    unnamed = urllib.request.Request(f"{site.url}/v1/rerank", json.dumps({"query": "road", "texts": body["documents"]}).encode())
    tei = json.loads(urllib.request.urlopen(unnamed, timeout=10).read())
    assert [entry["index"] for entry in tei[:2]] == [entry["index"] for entry in ranked[1]], "the only one that reranks"
    scores = [[entry["relevance_score"] for entry in entries] for entries in ranked]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_hosted_embedder_compares_pairs_and_knows_no_prompts(site: Site) -> None:
    def post(path: str, **body: object) -> tuple[int, dict]:
        request = urllib.request.Request(f"{site.url}{path}", json.dumps({"model": "embedder"} | body).encode())
        try:
            return 200, json.loads(urllib.request.urlopen(request, timeout=10).read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    texts = ["hello", "the road goes on"]
    vectors = [item["embedding"] for item in post("/v1/embeddings", input=texts, task="retrieval.query")[1]["data"]]
    cosine = sum(left * right for left, right in zip(*vectors, strict=True))
    found = post("/v1/similarity", pairs=[texts, ["hello", "hello"]])[1]["data"]
    assert [entry["similarity"] for entry in found] == pytest.approx([cosine, 1], abs=1e-6)
    assert post("/v1/embed", texts=texts, input_type="search_query")[1]["embeddings"] == vectors
    status, refused = post("/v1/embeddings", input=texts, prompt_name="query")
    assert status == 400 and "hosted elsewhere" in refused["error"]["message"]
    assert post("/v1/embeddings", input=texts, truncate=False)[0] == 400


def test_a_client_that_leaves_stops_the_host(site: Site, faulty: Faulty) -> None:
    faulty.acts = ["endless"]
    with site.client().chat.completions.with_streaming_response.create(model="faulty", messages=ASK, stream=True) as raw:
        chunks = iter(raw.parse())
        assert next(chunks).choices[0].delta.content == "a" and not faulty.left.is_set()
        headers = raw.headers
        raw.close()
    assert faulty.left.wait(MUST_BE_SEEN_WITHIN_S)
    soon(lambda: site.metric('highroad_hosted_in_flight{member="faulty"}') == 0)
    record = site.record(headers)
    assert record["hosted"]["ended"] == "client_left" and "usage" not in record["hosted"]
    # The same before anything was answered: the host would go on for three seconds, and the server wait for one.
    faulty.acts, begun = ["stall"], time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        site.client().with_options(timeout=0.2).chat.completions.create(model="faulty", messages=ASK)
    soon(lambda: site.metric('highroad_hosted_in_flight{member="faulty"}') == 0)
    assert time.monotonic() - begun < 0.9 and len(faulty.seen) == 2


def test_a_stream_that_breaks_is_an_error_and_never_asked_again(site: Site, faulty: Faulty) -> None:
    faulty.acts = ["half"]
    stream = site.client().chat.completions.create(model="faulty", messages=ASK, stream=True)
    chunks = iter(stream)
    assert next(chunks).choices[0].delta.content == "Pa"
    with pytest.raises(openai.APIError, match="the host of `faulty` broke off"):
        next(chunks)
    assert len(faulty.seen) == 1
    assert site.record(stream.response.headers)["hosted"]["ended"] == "broken"


def test_what_passes_is_asked_again_and_what_the_host_says_is_told(site: Site, faulty: Faulty) -> None:
    create = site.client().chat.completions.with_raw_response.create
    for act in ("fail", "babble", "stall"):
        faulty.acts = [act]
        raw = create(model="faulty", messages=ASK, tools=[{"type": "function", "function": {"name": "look"}}])
        assert raw.headers["x-highroad-tries"] == "2" and raw.parse().choices[0].message.content == "Paris", act
    assert faulty.seen[-1]["tools"] == [{"type": "function", "function": {"name": "look"}}]
    assert faulty.seen[-1]["model"] == "smollm2" and faulty.seen[-1]["max_tokens"] == 512
    faulty.acts = ["busy"]
    with pytest.raises(openai.RateLimitError, match="slow down") as refused:
        create(model="faulty", messages=ASK)
    assert refused.value.response.headers["retry-after"] == "17" and not faulty.acts
    faulty.acts = ["refuse"]
    with pytest.raises(openai.BadRequestError, match="no such tool") as refused:
        create(model="faulty", messages=ASK)
    assert (refused.value.param, refused.value.code) == ("tools", "bad_tool")
    faulty.acts = ["fail", "fail"]
    with pytest.raises(openai.InternalServerError, match="failed after 2 tries: out of memory") as refused:
        create(model="faulty", messages=ASK)
    assert refused.value.status_code == 502 and "sk-other-secret" not in str(refused.value)
    faulty.acts = ["lock_out"]
    with pytest.raises(openai.InternalServerError, match="refuses this server's key") as refused:
        create(model="faulty", messages=ASK)
    assert "sk-other-secret" not in str(refused.value) + (site.home / "log").read_text()


def test_a_deadline_ends_what_is_under_way_and_what_would_come_after_it(site: Site, faulty: Faulty) -> None:
    def ask(timeout_ms: int, model: str = "faulty") -> tuple[object, float]:
        headers, begun = {"x-highroad-timeout-ms": str(timeout_ms)}, time.monotonic()
        try:
            said = site.client().chat.completions.create(model=model, messages=ASK, extra_headers=headers)
        except openai.APIStatusError as error:
            said = error
        return said, time.monotonic() - begun

    tries = 'highroad_hosted_tries_total{member="faulty",outcome="%s"}'
    late, broken = site.metric(tries % "deadline"), site.metric('highroad_hosted_breaker_opened_total{member="faulty"}')
    # The host would take three seconds, and the description allows one and another try.
    faulty.acts = ["stall"]
    said, took = ask(300)
    assert (said.status_code, len(faulty.seen)) == (503, 1) and "given up" in str(said) and 0.25 < took < 0.9
    assert 1 <= int(faulty.waits[-1]) <= 300
    soon(lambda: site.metric('highroad_hosted_in_flight{member="faulty"}') == 0)
    assert site.metric(tries % "deadline") == late + 1
    # A pause that would end after it is not begun: what failed is told at once.
    faulty.acts = ["busy"]
    said, took = ask(5000)
    assert said.status_code == 429 and took < 1
    faulty.acts = ["fail"]
    said, took = ask(10)
    assert said.status_code in (502, 503) and took < 0.4 and len(faulty.seen) == 3
    # Who may wait gets the second try, and one that stands in has what is left.
    faulty.acts = ["fail"]
    said, _ = ask(10_000)
    assert said.choices[0].message.content == "Paris" and int(faulty.waits[-1]) < int(faulty.waits[-2]) <= 10_000
    assert faulty.waits[-1] != faulty.waits[-2]
    faulty.acts = ["answer"]
    assert site.client().chat.completions.create(model="faulty", messages=ASK).choices and faulty.waits[-1] is None
    assert site.metric('highroad_hosted_breaker_opened_total{member="faulty"}') == broken


def test_others_stand_in_and_a_host_that_fails_is_left_alone_until_it_works(site: Site, faulty: Faulty) -> None:
    def ask(expected: str | None) -> None:
        raw = site.client().chat.completions.with_raw_response.create(model="flaky", messages=ASK)
        assert raw.headers.get("x-highroad-fallback") == expected
        assert raw.headers["x-highroad-version"].startswith("smollm2@") and raw.parse().choices

    state = 'highroad_hosted_breaker_state{member="flaky"}'
    faulty.acts = ["fail", "fail"]
    ask("flaky=server_error, nobody=no_connection")
    ask("flaky=server_error, nobody=no_connection")
    assert site.metric(state) == 2
    ask("flaky=circuit_open, nobody=no_connection")
    assert len(faulty.seen) == 2, "it was left alone"
    status = json.loads(site.get("/v1/highroad/status"))
    assert status["ready"] and "circuit is open" in next(m for m in status["members"] if m["member"] == "flaky")["failure"]["reason"]
    time.sleep(0.4)
    ask(None)
    assert site.metric(state) == 0 and len(faulty.seen) == 3
    assert site.metric('highroad_hosted_fallbacks_total{member="flaky",to="chat"}') == 3
    with pytest.raises(openai.InternalServerError, match="the host of `nobody` failed after 1 try") as refused:
        site.client().chat.completions.create(model="nobody", messages=ASK)
    assert refused.value.status_code == 503


def test_a_hosted_member_has_limits_of_its_own(site: Site, faulty: Faulty) -> None:
    def say(member: str, *texts: object) -> object:
        messages = [{"role": "user", "content": text} for text in texts]
        return site.client().chat.completions.with_raw_response.create(model=member, messages=messages)

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000}}
    assert say("brief", "a" * 20, [{"type": "text", "text": "b" * 20}, picture]).parse().choices
    with pytest.raises(openai.BadRequestError, match="3 inputs; the limit is 2"):
        say("brief", "a", "b", "c")
    with pytest.raises(openai.BadRequestError, match="21 bytes in one input; the limit is 20"):
        say("brief", [{"type": "text", "text": "ä" * 10}, {"type": "text", "text": "b"}])
    with pytest.raises(openai.BadRequestError, match="24 bytes in one input; the limit is 20"):
        site.client().completions.create(model="brief", prompt=[1, 2, 3, 4, 5, 6])
    assert len(faulty.seen) == 1, "the host was asked what is within them"
    assert say("faulty", "a", "b", "c" * 100).parse().choices
    # Who takes less is no help.
    assert say("brief-nobody", "a").headers["x-highroad-fallback"] == "brief-nobody=no_connection"
    long = say("brief-nobody", "a" * 21)
    assert (long.headers["x-highroad-fallback"], site.record(long.headers)["member"]) == ("brief-nobody=no_connection", "faulty")
    [shown] = [member for member in json.loads(site.get("/v1/highroad/portfolio"))["members"] if member["member"] == "brief"]
    assert shown["limits"] == {"body_bytes": 16 << 20, "inputs": 2, "input_bytes": 20, "tokens": 300000, "documents": 1000}


def test_a_model_of_our_own_stands_in_for_a_host(site: Site) -> None:
    raw = site.client().moderations.with_raw_response.create(model="gone", input="hello")
    assert raw.headers["x-highroad-fallback"] == "gone=no_connection"
    own = site.client().moderations.create(model="own", input="hello")
    assert raw.parse().results == own.results and "package" not in raw.headers.get("x-highroad-version", "")


def test_the_metrics_of_hosts_pass_promtool(site: Site) -> None:
    page = site.get("/metrics")
    for name in (b"highroad_hosted_tries_total", b"highroad_hosted_tokens_total", b"highroad_hosted_first_byte_seconds"):
        assert name in page
    promtool = shutil.which("promtool")
    assert promtool, "promtool is not installed: `apt-get install prometheus`"
    lint = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=30)
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, b"", b"")


def budgets_of(site: Site, key: str) -> dict[tuple[str, str, str], dict]:
    told = json.loads(site.get("/v1/highroad/budgets", key))
    assert told["currency"] == "EUR"
    return {(row["scope"], row["name"], row["limit"]): row for row in told["budgets"]}


@pytest.fixture
def metered(highroad: Path, tmp_path: Path, faulty: Faulty, ours: tuple) -> tuple[Site, dict[str, str]]:  # noqa: F811
    """A portfolio with budgets, keys of two tenants, and one to look."""
    site = Site(highroad, tmp_path)
    price = {"currency": "EUR", "input_per_million": 0.0, "output_per_million": 1e6}
    describe(tmp_path, "paid.toml", faulty.url, max_tokens=10, price=price)
    describe(tmp_path, "unpriced.toml", faulty.url)
    (tmp_path / "portfolio.toml").write_text(
        f"""
        [budgets]
        currency = "EUR"
        [budgets.members.paid]
        cost_per_day = 13.5
        [budgets.members.own]
        tokens_per_day = 30
        [budgets.tenants.acme]
        cost_per_month = 1000
        [budgets.keys."*"]
        tokens_per_day = 100000
        [members.paid]
        hosted = "paid.toml"
        [members.unpriced]
        hosted = "unpriced.toml"
        [members.own]
        model = "{ours[1]["classify-a"]}"
        threads = 1
        """
    )
    keys = {}
    for name, more in {"acme-web": ["--tenant", "acme"], "other": [], "ops": ["--scope", "observe"]}.items():
        command = [str(highroad), "access", "add", name, "--file", "access.toml", *more]
        keys[name] = subprocess.run(command, cwd=tmp_path, env=site.env(), check=True, capture_output=True, text=True).stdout.strip()
    return site, keys


def test_budgets_refuse_before_money_is_spent_and_survive_a_kill(metered: tuple, faulty: Faulty) -> None:
    site, keys = metered
    guard = ("--development", "--access", "access.toml")
    open_to_all = subprocess.run(site.command(), env=site.env(), cwd=site.home, capture_output=True, text=True, timeout=30)
    assert open_to_all.returncode == 2 and "budgets of tenants and keys need keys" in open_to_all.stderr
    with site.run(*guard):
        ask = site.client(keys["acme-web"]).chat.completions.create
        # 10 EUR at most, 2 in the end; a second time 12 at most; the third time 14 would pass 13.5.
        for _ in range(2):
            assert ask(model="paid", messages=ASK).usage.completion_tokens == 2
        with pytest.raises(openai.RateLimitError, match="the budget of member `paid` is used up: cost_per_day is 13.5 EUR, 4 EUR") as refused:
            ask(model="paid", messages=ASK)
        assert refused.value.code == "budget_exceeded" and 1 <= int(refused.value.response.headers["retry-after"]) <= 86_400
        assert len(faulty.seen) == 2
        assert ask(model="paid", messages=ASK, max_tokens=9), "less may still be asked"
        with pytest.raises(openai.PermissionDeniedError, match="the price of `unpriced` is not known, and tenant `acme` has"):
            ask(model="unpriced", messages=ASK)
        assert site.client(keys["other"]).chat.completions.create(model="unpriced", messages=ASK)
        with pytest.raises(openai.BadRequestError, match="more than the whole cost_per_day"):
            ask(model="paid", messages=ASK, max_tokens=100)
        rows = budgets_of(site, keys["ops"])
        assert rows["member", "paid", "cost_per_day"]["used"] == 6 and rows["tenant", "acme", "cost_per_month"]["used"] == 6
        assert rows["key", "acme-web", "tokens_per_day"]["used"] == 27
        # A model of our own costs tokens, whatever the route.
        judge = site.client(keys["other"]).moderations.create
        judge(model="own", input="hello")
        n_tokens = budgets_of(site, keys["ops"])["member", "own", "tokens_per_day"]["used"]
        assert 0 < n_tokens <= 30 // 2
        with pytest.raises(openai.RateLimitError, match="the budget of member `own` is used up"):
            for _ in range(30):
                judge(model="own", input="hello")
        spent = budgets_of(site, keys["ops"])
        faulty.acts = ["endless"]
        under_way = ask(model="paid", messages=ASK, max_tokens=7, stream=True)
        next(iter(under_way))
        assert budgets_of(site, keys["ops"])["member", "paid", "cost_per_day"]["reserved"] == 7
        kill(site)
        under_way.close()
    with site.run(*guard):
        rows = budgets_of(site, keys["ops"])
        assert rows["member", "paid", "cost_per_day"]["used"] == 13, "what was cut off counts at its dearest"
        assert rows["member", "own", "tokens_per_day"] == spent["member", "own", "tokens_per_day"]
        with pytest.raises(openai.RateLimitError, match="13 EUR is used or under way"):
            site.client(keys["acme-web"]).chat.completions.create(model="paid", messages=ASK, max_tokens=1)
    assert "count at their dearest" in (site.home / "log").read_text()
    journal = site.home / "state" / "budgets" / "snapshot.json"
    journal.write_text(journal.read_text().replace('"nanos":13', '"nanos":12'))
    damaged = subprocess.run(site.command(*guard), env=site.env(), cwd=site.home, capture_output=True, text=True, timeout=30)
    assert damaged.returncode == 2 and "nobody knows what was spent" in damaged.stderr


def kill(site: Site) -> None:
    """Ends the server as a crash would: the one that holds the lock of its budgets."""
    lock = site.home / "state" / "budgets" / "lock"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.path.realpath(file) == str(lock.resolve()) for file in (process / "fd").iterdir()):
                os.kill(int(process.name), signal.SIGKILL)
                return
    pytest.fail("no process keeps the budgets")


def test_a_hosted_member_needs_a_verdict_and_a_key_and_says_so(highroad: Path, tmp_path: Path, faulty: Faulty) -> None:
    site = Site(highroad, tmp_path)
    describe(tmp_path, "chat.toml", faulty.url, api_key_env="OTHER_KEY")
    portfolio = tmp_path / "portfolio.toml"
    portfolio.write_text('[members.chat]\nhosted = "chat.toml"\n')

    def refused(*more: str, **env: str) -> str:
        command = [*site.command(), *more]
        done = subprocess.run(command, env=site.env() | env, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert done.returncode == 2, done.stderr
        return done.stderr

    error = refused()
    assert "has no verdict" in error
    digest = error.split("package ")[1].split(" ")[0]
    folder = tmp_path / "state" / "verdicts" / digest.removeprefix("sha256:")
    content = verdict(digest)
    folder.mkdir(parents=True)
    (folder / f"{hashlib.sha256(content).hexdigest()}.json").write_bytes(content)
    assert "it is no key" in refused(OTHER_KEY="")
    with site.run():
        raw = site.client().chat.completions.with_raw_response.create(model="chat", messages=ASK)
        assert raw.headers["x-highroad-evidence"] == "observed" and "x-highroad-development" not in raw.headers
        assert site.record(raw.headers)["verdict"] == "sha256:" + hashlib.sha256(content).hexdigest()
    describe(tmp_path, "vectors.toml", faulty.url, task="embed", model="other")
    portfolio.write_text(
        '[members.chat]\nhosted = "chat.toml"\nfallback = ["vectors", "nobody"]\nretrys = 1\n[members.vectors]\nhosted = "vectors.toml"\n'
    )
    assert "did you mean `retries`?" in refused()
    portfolio.write_text(portfolio.read_text().replace("retrys = 1\n", "") + "[budgets.members.nobody]\ntokens_per_day = 1\n")
    error = refused()
    assert "it is for another task" in error and "fallback `nobody`: there is no such member" in error
    assert "[budgets.members.nobody] there is no such member" in error
