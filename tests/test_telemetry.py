"""What a server tells of itself: traces at a collector that reads them with OpenTelemetry's own messages, exemplars that Prometheus' own parser
reads, and a dashboard and rules that name only metrics there are."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from cli import ROOT, call, highroad_bin  # noqa: F401
from conftest import serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

SECRET_TEXT = "the quick brown secret"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
HOST_KEY = "sk-of-this-test"


class Collector(ThreadingHTTPServer):
    """Takes spans as an OpenTelemetry collector does; stands in for a host of a generator too, which notes what headers it is asked with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.spans, self.resources, self.asked, self.bodies = [], [], [], b""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def wait(self, wanted: Callable[[dict], bool], n: int = 1) -> list[dict]:
        deadline = time.monotonic() + 20
        while len(found := [span for span in self.spans if wanted(span)]) < n:
            assert time.monotonic() < deadline, [(span["name"], span["attributes"]) for span in self.spans]
            time.sleep(0.02)
        return found

    def of_trace(self, trace: str, *names: str) -> dict[str, dict]:
        for name in names:
            self.wait(lambda span, name=name: (span["trace"], span["name"]) == (trace, name))
        return {span["name"]: span for span in self.spans if span["trace"] == trace}


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/traces":
            self.server.asked.append((self.path, dict(self.headers)))
            said = {"role": "assistant", "content": "Paris"}
            usage = {"prompt_tokens": 7, "completion_tokens": 2}
            choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
            return self.reply({"id": "c", "object": "chat.completion", "model": "tiny-2", "choices": choices, "usage": usage})
        assert self.headers["content-type"] == "application/x-protobuf" and self.headers["x-team"] == "a b"
        self.server.bodies += body
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append({one.key: value(one.value) for one in group.resource.attributes})
            self.server.spans += [read(span) for scope in group.scope_spans for span in scope.spans]
        return self.reply({})

    def reply(self, body: dict) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


def value(any_value: object) -> object:
    kind = any_value.WhichOneof("value")
    return [one.string_value for one in any_value.array_value.values] if kind == "array_value" else getattr(any_value, kind)


def read(span: object) -> dict:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "kind": span.kind,
        "took_ns": span.end_time_unix_nano - span.start_time_unix_nano,
        "start_ns": span.start_time_unix_nano,
        "attributes": {one.key: value(one.value) for one in span.attributes},
        "links": [link.trace_id.hex() for link in span.links],
        "error": span.status.code == 2,
    }


PORTFOLIO = """
[members.router]
model = "./router"
threads = 1
[members.embedder]
model = "./embedder"
threads = 1
[members.chat]
hosted = "chat.toml"
[objectives.answers]
member = "router"
availability = 0.99
latency_ms = 10000
[pipelines.safe]
steps = [
  { name = "check", classify = "router" },
  { name = "vector", embed = "embedder", after = ["check"] },
]
"""

CHAT = """
highroad_hosted = 1
task = "generate"
base_url = "%s/v1"
model = "tiny"
api_key_env = "TINY_KEY"
max_tokens = 16
"""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def site(call, highroad, collector, tmp_path_factory) -> Iterator[tuple[str, Path]]:  # noqa: F811
    folder = tmp_path_factory.mktemp("site")
    for kind, name in [("classify-a", "router"), ("embed", "embedder")]:
        call("pack", ROOT / "conformance" / "packages" / kind, "-o", name, cwd=folder)
    (folder / "portfolio.toml").write_text(PORTFOLIO)
    (folder / "chat.toml").write_text(CHAT % collector.url)
    env = os.environ | {
        "HIGHROAD_HOME": str(folder / "home"),
        "HIGHROAD_LOG_FORMAT": "json",
        "TINY_KEY": HOST_KEY,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=a%20b",
        "OTEL_SERVICE_NAME": "router-service",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    command = [str(highroad), "serve", "--development", "--portfolio", str(folder / "portfolio.toml"), "--listen", "127.0.0.1:0"]
    with serving(command, folder / "serve.log", env=env) as url:
        yield url, folder


def ask(url: str, path: str, body: dict | None = None, **headers: str) -> tuple[dict, dict]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{url}{path}", data, {"content-type": "application/json"} | headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read()), dict(reply.headers)


def test_a_request_is_one_trace_that_goes_on_with_the_clients(site: tuple, collector: Collector) -> None:
    url, folder = site
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "traced-1"}
    _, told = ask(url, "/v1/embeddings", {"model": "embedder", "input": [SECRET_TEXT, "other"]}, **headers)
    spans = collector.of_trace(TRACE, "POST /v1/embeddings", "embeddings embedder", "tokenise", "queue", "inference")
    request, model = spans["POST /v1/embeddings"], spans["embeddings embedder"]
    assert (request["parent"], request["kind"]) == (PARENT, 2)
    assert request["attributes"]["http.response.status_code"] == 200
    assert request["attributes"]["highroad.request_id"] == "traced-1"
    assert model["parent"] == request["id"]
    for part in ["tokenise", "queue", "inference"]:
        assert spans[part]["parent"] == model["id"] and spans[part]["start_ns"] >= request["start_ns"]
    attributes = model["attributes"]
    assert attributes["gen_ai.operation.name"] == "embeddings" and attributes["gen_ai.request.model"] == "embedder"
    assert attributes["gen_ai.usage.input_tokens"] > 4 and attributes["gen_ai.embeddings.dimension.count"] > 1
    assert attributes["highroad.package"] == told["x-highroad-package"]
    assert attributes["highroad.evidence"] == "development"
    assert collector.resources[0]["service.name"] == "router-service"
    lines = [json.loads(line) for line in (folder / "serve.log").read_text().splitlines() if line.startswith("{")]
    assert [line["request.id"] for line in lines if line.get("trace.id") == TRACE] == ["traced-1"]


def test_a_host_is_a_part_of_the_trace_and_gets_it(site: tuple, collector: Collector) -> None:
    url, _ = site
    trace = "1" * 32
    messages = [{"role": "user", "content": SECRET_TEXT}]
    ask(url, "/v1/chat/completions", {"model": "chat", "messages": messages}, traceparent=f"00-{trace}-{PARENT}-01")
    spans = collector.of_trace(trace, "POST /v1/chat/completions", "chat tiny")
    call = spans["chat tiny"]
    assert (call["parent"], call["kind"]) == (spans["POST /v1/chat/completions"]["id"], 3)
    told = call["attributes"]
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (7, 2)
    assert (told["gen_ai.response.model"], told["gen_ai.response.finish_reasons"]) == ("tiny-2", ["stop"])
    assert (told["gen_ai.provider.name"], told["server.address"]) == ("openai_compatible", "127.0.0.1")
    (_, headers), *_ = collector.asked
    assert headers["traceparent"] == f"00-{trace}-{call['id']}-01"


def test_steps_hold_what_they_asked_and_errors_are_told(site: tuple, collector: Collector) -> None:
    url, _ = site
    trace = "2" * 32
    ask(url, "/v1/pipelines/safe", {"input": SECRET_TEXT}, traceparent=f"00-{trace}-{PARENT}-01")
    spans = collector.of_trace(trace, "POST /v1/pipelines/{pipeline}", "step check", "step vector", "classify router", "embeddings embedder")
    assert spans["classify router"]["parent"] == spans["step check"]["id"]
    assert spans["embeddings embedder"]["parent"] == spans["step vector"]["id"]
    # Not sampled by the client: nothing is sent.
    quiet = "3" * 32
    ask(url, "/v1/moderations", {"model": "router", "input": "x"}, traceparent=f"00-{quiet}-{PARENT}-00")
    # A traceparent that is none begins a trace of its own.
    ask(url, "/v1/moderations", {"model": "router", "input": "x"}, **{"traceparent": "nonsense", "x-request-id": "own-1"})
    own = collector.wait(lambda span: span["attributes"].get("highroad.request_id") == "own-1")[0]
    assert own["parent"] == "" and not [span for span in collector.spans if span["trace"] == quiet]
    for text in [SECRET_TEXT, "Paris", HOST_KEY]:
        assert text.encode() not in collector.bodies, "no input, answer or key is in a span"


def test_exemplars_lead_to_requests(site: tuple) -> None:
    url, _ = site
    trace = "5" * 32
    ask(url, "/v1/moderations", {"model": "router", "input": "x"}, traceparent=f"00-{trace}-{PARENT}-01", **{"x-request-id": "shown-1"})
    request = urllib.request.Request(f"{url}/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        page = reply.read().decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    samples = families["highroad_inference_duration_seconds"].samples
    shown = [one.exemplar.labels for one in samples if one.exemplar and one.labels["member"] == "router"]
    assert {"trace_id": trace, "request_id": "shown-1"} in shown
    assert families["highroad_inference_requests"].type == "counter"
    plain = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    assert "trace_id" not in plain
    lint = subprocess.run([shutil.which("promtool"), "check", "metrics"], input=plain, capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout + lint.stderr
    assert 'gen_ai_client_token_usage_sum{gen_ai_operation_name="chat"' in plain


def test_dashboard_and_rules_name_what_there_is(site: tuple) -> None:
    url, _ = site
    rules, dashboard = ROOT / "deploy" / "prometheus" / "rules.yml", ROOT / "deploy" / "grafana" / "highroad.json"
    for command in [["check", "rules", rules], ["test", "rules", rules.with_name("rules_test.yml")]]:
        done = subprocess.run([shutil.which("promtool"), *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    ask(url, "/v1/moderations", {"model": "router", "input": "x"})
    time.sleep(1.5)  # objectives are looked at every second
    page = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    described = source_metrics()
    there = set(re.findall(r"^# TYPE (\S+)", page, re.M))
    shown = json.loads(dashboard.read_text())
    expressions = [target["expr"] for panel in shown["panels"] for target in panel.get("targets", [])]
    expressions += [variable["definition"] for variable in shown["templating"]["list"] if "definition" in variable]
    named = set(re.findall(r"highroad_[a-z_]+", " ".join(expressions) + rules.read_text()))
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert len(named) > 25 and named <= described, named - described
    # What only some portfolios have is described in the source; everything else is on the page of this one.
    rare = {name for name in named if re.search(r"_(hosted|budget|webhook|alert|alerts|shadow)_", name)}
    rare |= {"highroad_pipeline_requests_total"}
    assert named - rare <= there, named - rare - there
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])


def source_metrics() -> set[str]:
    files = [ROOT / "crates" / "serve" / "src" / "telemetry.rs", ROOT / "crates" / "service" / "src" / "metrics.rs"]
    return set(re.findall(r'&str =\s+"(highroad_[a-z_]+)"', "".join(file.read_text() for file in files)))


def test_our_own_tracking_server_keeps_the_spans(site: tuple, highroad: Path, tracking_uri: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.create_experiment("spans of a server")
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": tracking_uri, "OTEL_EXPORTER_OTLP_HEADERS": f"x-mlflow-experiment-id={experiment}"}
    env = os.environ | told | {"HIGHROAD_HOME": str(tmp_path / "home"), "OTEL_BSP_SCHEDULE_DELAY": "100"}
    command = [str(highroad), "serve", "--development", str(site[1] / "embedder"), "--listen", "127.0.0.1:0"]
    with serving(command, tmp_path / "serve.log", env=env) as url:
        name = ask(url, "/v1/models")[0]["data"][0]["id"]
        ask(url, "/v1/embeddings", {"model": name, "input": "x"})
    # A server that stops sends what it still has.
    spans = [span for trace in client.search_traces(locations=[experiment]) for span in trace.data.spans]
    (model,) = [span for span in spans if span.name == f"embeddings {name}"]
    assert model.attributes["gen_ai.request.model"] == name
