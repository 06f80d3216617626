"""Traces, what is said about them, golden datasets and `mlflow.genai.evaluate`, with the real client and an OpenTelemetry exporter."""

from __future__ import annotations

import gzip
import json
import urllib.request
from collections.abc import Iterator

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from test_mlflow import client, experiment, unique

__all__ = ["client", "experiment"]


@pytest.fixture(autouse=True)
def traced(client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traces are sent when they end, not by a thread some time later."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.set_experiment(experiment_id=experiment)
    yield
    mlflow.tracing.reset()


@mlflow.trace(attributes={"who": "größe"})
def answer(question: str) -> str:
    with mlflow.start_span("look up", span_type="TOOL") as span:
        span.set_inputs({"question": question, "deep": [1, {"a": None}]})
        span.set_outputs({"found": 0.5})
    if not question:
        raise ValueError("nothing was asked")
    mlflow.update_current_trace(tags={"team": "a"}, metadata={"build": "7"})
    return question.upper()


def ask(question: str) -> str:
    answer(question)
    return mlflow.get_last_active_trace_id()


def test_a_trace_comes_back_whole(client: MlflowClient) -> None:
    trace = mlflow.get_trace(ask("why?"))
    assert (trace.info.state, trace.info.request_preview, trace.info.response_preview) == ("OK", '{"question": "why?"}', '"WHY?"')
    assert trace.info.tags["team"] == "a" and trace.info.trace_metadata["build"] == "7"
    assert trace.info.execution_duration >= 0
    root, child = trace.data.spans
    assert (root.name, root.inputs, root.outputs, root.attributes["who"]) == ("answer", {"question": "why?"}, "WHY?", "größe")
    assert (child.name, child.span_type, child.parent_id) == ("look up", "TOOL", root.span_id)
    assert child.inputs == {"question": "why?", "deep": [1, {"a": None}]} and child.outputs == {"found": 0.5}
    with pytest.raises(ValueError, match="nothing was asked"):
        answer("")
    failed = mlflow.get_trace(mlflow.get_last_active_trace_id())
    assert failed.info.state == "ERROR"
    assert failed.data.spans[0].events[0].name == "exception"


def test_traces_are_found(client: MlflowClient, experiment: str) -> None:
    with mlflow.start_run() as run:
        first = ask("one")
    second = ask("two")
    with pytest.raises(ValueError):
        answer("")
    failed = mlflow.get_last_active_trace_id()
    mlflow.log_feedback(trace_id=second, name="good", value=True)

    def search(text: str, **more: object) -> list[str]:
        order = {"order_by": ["timestamp_ms ASC"]} | more
        found = client.search_traces(locations=[experiment], filter_string=text, include_spans=False, **order)
        return [trace.info.trace_id for trace in found]

    assert search("") == [first, second, failed]
    assert search("", order_by=["timestamp_ms DESC"], max_results=2) == [failed, second]
    assert search("trace.status = 'ERROR'") == [failed]
    assert search("tag.team = 'a' AND metadata.build = '7'") == [first, second]
    assert search("tag.team IS NULL") == [failed]
    assert search("trace.name = 'answer'") == [first, second, failed]
    assert search(f"trace.run_id = '{run.info.run_id}'") == [first]
    assert search("span.type = 'TOOL' AND span.name LIKE 'look%'") == [first, second, failed]
    assert search("feedback.good = 'true'") == [second]
    assert search("trace.text LIKE '%two%'") == [second]
    assert search("trace.execution_time_ms >= 0 AND trace.timestamp_ms > 5") == [first, second, failed]
    with pytest.raises(MlflowException, match="Invalid key"):
        search("trace.nope = 'x'")
    client.link_traces_to_run([second], run.info.run_id)
    assert search(f"trace.run_id = '{run.info.run_id}'") == [first, second]
    page = client.search_traces(locations=[experiment], max_results=2)
    rest = client.search_traces(locations=[experiment], max_results=2, page_token=page.token)
    assert {t.info.trace_id for t in [*page, *rest]} == {first, second, failed} and not rest.token
    frame = mlflow.search_traces(locations=[experiment], filter_string="tag.team = 'a'")
    assert set(frame.trace_id) == {first, second} and len(frame.spans[0]) == 2
    client.set_trace_tag(first, "later", "x")
    client.delete_trace_tag(first, "later")
    assert "later" not in mlflow.get_trace(first).info.tags
    assert client.delete_traces(experiment, trace_ids=[first]) == 1
    assert client.delete_traces(experiment, max_timestamp_millis=2**62, max_traces=1) == 1
    assert search("") == [failed]


def test_what_people_and_judges_say(client: MlflowClient) -> None:
    trace_id = ask("judged")
    feedback = mlflow.log_feedback(trace_id=trace_id, name="good", value=True, rationale="short")
    expected = mlflow.log_expectation(trace_id=trace_id, name="right", value={"words": ["JUDGED"]})
    better = mlflow.override_feedback(trace_id=trace_id, assessment_id=feedback.assessment_id, value=False)
    changed = mlflow.entities.Expectation(name="right", value="JUDGED")
    mlflow.update_assessment(trace_id=trace_id, assessment_id=expected.assessment_id, assessment=changed)

    kept = {each.assessment_id: each for each in mlflow.get_trace(trace_id).info.assessments}
    assert kept[feedback.assessment_id].valid is False and kept[feedback.assessment_id].rationale == "short"
    assert kept[better.assessment_id].overrides == feedback.assessment_id and kept[better.assessment_id].value is False
    assert mlflow.get_assessment(trace_id, expected.assessment_id).value == "JUDGED"
    mlflow.delete_assessment(trace_id=trace_id, assessment_id=better.assessment_id)
    [back] = [each for each in mlflow.get_trace(trace_id).info.assessments if each.name == "good"]
    assert back.valid is True
    with pytest.raises(MlflowException, match="not found"):
        mlflow.get_assessment(trace_id, "a-none")
    with pytest.raises(MlflowException, match="not found"):
        mlflow.log_feedback(trace_id="tr-none", name="good", value=True)


def test_an_opentelemetry_exporter(tracking_uri: str, experiment: str) -> None:
    """Spans of a program that knows nothing of MLflow, root last, in two batches; protobuf, JSON and gzip."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    ids = {"trace_id": bytes(range(16)), "span_id": b"12345678"}
    child, root = ExportTraceServiceRequest(), ExportTraceServiceRequest()
    child.resource_spans.add().scope_spans.add().spans.add(
        trace_id=ids["trace_id"], span_id=b"87654321", parent_span_id=ids["span_id"], name="inner",
        start_time_unix_nano=2_000_000_000, end_time_unix_nano=3_000_000_000,
    )
    span = root.resource_spans.add().scope_spans.add().spans.add(
        **ids, name="outer", start_time_unix_nano=1_000_000_000, end_time_unix_nano=4_000_000_000
    )
    span.status.code = 1
    attribute = span.attributes.add(key="n")
    attribute.value.int_value = 3

    def export(body: bytes, **headers: str) -> int:
        headers = {"x-mlflow-experiment-id": experiment, "content-type": "application/x-protobuf"} | headers
        request = urllib.request.Request(tracking_uri + "/v1/traces", body, headers)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    trace_id = "tr-" + ids["trace_id"].hex()
    assert export(child.SerializeToString()) == 200
    assert mlflow.get_trace(trace_id).info.state == "IN_PROGRESS"
    assert export(gzip.compress(root.SerializeToString()), **{"content-encoding": "gzip"}) == 200
    trace = mlflow.get_trace(trace_id)
    assert (trace.info.state, trace.info.request_time, trace.info.execution_duration) == ("OK", 1000, 3000)
    assert trace.info.tags["mlflow.traceName"] == "outer"
    assert [span.name for span in trace.data.spans] == ["outer", "inner"] and trace.data.spans[0].attributes["n"] == 3
    otlp_json = {"resourceSpans": [{"scopeSpans": [{"spans": [{
        "traceId": "ab" * 16, "spanId": "cd" * 8, "name": "by JSON", "startTimeUnixNano": "1000000", "endTimeUnixNano": "2000000",
    }]}]}]}  # fmt: skip
    assert export(json.dumps(otlp_json).encode(), **{"content-type": "application/json"}) == 200
    assert mlflow.get_trace("tr-" + "ab" * 16).data.spans[0].name == "by JSON"
    assert export(b"\xff\xff") == 400
    assert export(b"{", **{"content-type": "application/json"}) == 400
    assert export(b"x", **{"content-encoding": "gzip"}) == 400
    assert export(b"x", **{"content-encoding": "br"}) in (400, 415)
    assert export(root.SerializeToString(), **{"content-type": "text/plain"}) == 400
    assert export(root.SerializeToString(), **{"x-mlflow-experiment-id": "424242"}) == 404


def test_a_golden_dataset(client: MlflowClient, experiment: str) -> None:
    from mlflow.genai import datasets

    name = unique("golden")
    made = datasets.create_dataset(name=name, experiment_id=[experiment], tags={"owner": "me"})
    empty = made.digest
    made.merge_records([
        {"inputs": {"q": "1"}, "expectations": {"a": "x"}, "tags": {"s": "t"}},
        {"inputs": {"q": "2"}},
    ])
    full = datasets.get_dataset(name=name).digest
    made.merge_records([{"inputs": {"q": "1"}, "expectations": {"b": 2}}])
    kept = datasets.get_dataset(dataset_id=made.dataset_id)
    assert len({empty, full, kept.digest}) == 3, "the digest tells what the records say"
    assert json.loads(kept.profile) == {"num_records": 2}
    assert json.loads(kept.schema)["expectations"] == {"a": "string", "b": "integer"}
    assert kept.tags["owner"] == "me"
    frame = kept.to_df()
    assert list(frame.inputs) == [{"q": "1"}, {"q": "2"}] and frame.expectations[0] == {"a": "x", "b": 2}
    ask("from a trace")
    made.merge_records(mlflow.search_traces(locations=[experiment], return_type="list"))
    assert len(datasets.get_dataset(name=name).to_df()) == 3

    assert [d.name for d in datasets.search_datasets(experiment_ids=[experiment], filter_string=f"name = '{name}'")] == [name]
    datasets.set_dataset_tags(dataset_id=made.dataset_id, tags={"x": "y"})
    assert datasets.search_datasets(filter_string="tags.x = 'y'")[0].dataset_id == made.dataset_id
    datasets.delete_dataset_tag(dataset_id=made.dataset_id, key="x")
    other = client.create_experiment(unique("other"))
    datasets.add_dataset_to_experiments(dataset_id=made.dataset_id, experiment_ids=[other])
    assert set(datasets.get_dataset(dataset_id=made.dataset_id).experiment_ids) == {experiment, other}
    datasets.remove_dataset_from_experiments(dataset_id=made.dataset_id, experiment_ids=[other])
    assert datasets.search_datasets(experiment_ids=[other]) == []
    [record, *_] = frame.dataset_record_id
    assert datasets.get_dataset(dataset_id=made.dataset_id).delete_records([record]) == 1
    assert len(datasets.get_dataset(name=name).to_df()) == 2
    datasets.delete_dataset(dataset_id=made.dataset_id)
    with pytest.raises(MlflowException, match="not found"):
        datasets.get_dataset(dataset_id=made.dataset_id)


def test_prompts(client: MlflowClient) -> None:
    name = unique("prompt")
    mlflow.genai.register_prompt(name, "Say {{what}}", commit_message="first", tags={"k": "v"})
    mlflow.genai.register_prompt(name, [{"role": "user", "content": "Shout {{what}}"}])
    assert mlflow.genai.load_prompt(f"prompts:/{name}/1").format(what="hi") == "Say hi"
    mlflow.genai.set_prompt_alias(name, alias="live", version=1)
    assert mlflow.genai.load_prompt(f"prompts:/{name}@live").version == 1
    assert mlflow.genai.load_prompt(name).template == [{"role": "user", "content": "Shout {{what}}"}]
    assert [p.name for p in mlflow.genai.search_prompts(f"name = '{name}'")] == [name]
    assert client.search_registered_models(f"name = '{name}'") == []
    with mlflow.start_span("uses a prompt"):
        mlflow.genai.load_prompt(f"prompts:/{name}/1")
    assert mlflow.get_trace(mlflow.get_last_active_trace_id()) is not None


def test_genai_evaluation(client: MlflowClient, experiment: str) -> None:
    @mlflow.genai.scorers.scorer
    def exact(outputs: str, expectations: dict) -> bool:
        return outputs == expectations["expected_response"]

    data = [
        {"inputs": {"question": "a"}, "expectations": {"expected_response": "A"}},
        {"inputs": {"question": "b"}, "expectations": {"expected_response": "x"}},
    ]
    result = mlflow.genai.evaluate(data=data, predict_fn=lambda question: question.upper(), scorers=[exact])
    assert result.metrics["exact/mean"] == 0.5
    assert client.get_run(result.run_id).data.metrics["exact/mean"] == 0.5
    found = mlflow.search_traces(locations=[experiment], run_id=result.run_id, return_type="list")
    said = sorted(each.value for trace in found for each in trace.info.assessments if each.name == "exact")
    assert said == [False, True]
