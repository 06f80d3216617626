"""The Open Inference Protocol over gRPC, and its binary tensors over HTTP, as tritonclient speaks them."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import highroad
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from conftest import serving
from google.protobuf.json_format import MessageToJson
from test_serve_clients import TEXTS, Site, open_site
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

CLIENTS = {"grpc": triton_grpc, "http": triton_http}


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("grpc")
    site = open_site(highroad, home)
    members = {"embedder": "embed", "moderation": "classify-a"}
    tables = [f'[members.{name}]\nmodel = "{site.packages[package]}"\nthreads = 1\n' for name, package in members.items()]
    portfolio = home / "portfolio.toml"
    portfolio.write_text("[limits]\nbody_bytes = 100000\ninputs = 64\n" + "".join(tables))
    command = [str(highroad), "serve", "--portfolio", str(portfolio), "--development", "--listen", "127.0.0.1:0"]
    with serving(command, home / "serve.log", env=site.env(), cwd=home) as site.url:
        yield site


def client(site: Site, kind: str) -> triton_grpc.InferenceServerClient | triton_http.InferenceServerClient:
    return CLIENTS[kind].InferenceServerClient(site.url.removeprefix("http://"))


def texts(kind: str, values: list[str], shape: list[int] | None = None) -> triton_grpc.InferInput | triton_http.InferInput:
    tensor = CLIENTS[kind].InferInput("text", shape or [len(values)], "BYTES")
    array = np.array([value.encode() for value in values], dtype=object)
    tensor.set_data_from_numpy(array.reshape(shape or [-1]))
    return tensor


def tokens(kind: str, name: str, values: list[list[int]]) -> triton_grpc.InferInput | triton_http.InferInput:
    array = np.array(values, dtype=np.int64)
    tensor = CLIENTS[kind].InferInput(name, list(array.shape), "INT64")
    tensor.set_data_from_numpy(array)
    return tensor


@pytest.mark.parametrize("kind", CLIENTS)
def test_tritonclient_asks_about_server_and_models(site: Site, kind: str) -> None:
    api = client(site, kind)
    assert api.is_server_live() and api.is_server_ready() and api.is_model_ready("moderation")
    assert not api.is_model_ready("nobody") and not api.is_model_ready("moderation", "9")
    as_json = {"as_json": True} if kind == "grpc" else {}
    assert "binary_tensor_data" in api.get_server_metadata(**as_json)["extensions"]
    metadata = api.get_model_metadata("embedder", **as_json)
    assert metadata["inputs"][0]["name"] == "text" and metadata["outputs"][0]["datatype"] == "FP32"
    assert metadata["platform"] == "highroad_pt2" and len(metadata["versions"]) == 1
    assert api.is_model_ready("embedder", metadata["versions"][0])


@pytest.mark.parametrize("kind", CLIENTS)
def test_texts_and_tokens_give_the_bits_of_the_runtime(site: Site, kind: str) -> None:
    api = client(site, kind)
    expected = np.stack(highroad.load(site.packages["embed"])(TEXTS))
    found = api.infer("embedder", [texts(kind, TEXTS)], request_id="mine")
    np.testing.assert_array_equal(found.as_numpy("embedding"), expected)
    reply = found.get_response()
    assert (reply.id if kind == "grpc" else reply["id"]) == "mine"
    by_tokens = [[2, 130, 3]]
    inputs = [tokens(kind, "input_ids", by_tokens), tokens(kind, "attention_mask", [[1, 1, 1]])]
    names = {tensor["name"] for tensor in client(site, "http").get_model_metadata("embedder")["inputs"]}
    if "token_type_ids" in names:
        inputs.append(tokens(kind, "token_type_ids", [[0, 0, 0]]))
    found = api.infer("embedder", inputs)
    output = client(site, "http").get_model_metadata("embedder")["outputs"][-1]["name"]
    body = json.dumps({"model": "embedder", "input": by_tokens}).encode()
    request = urllib.request.Request(f"{site.url}/v1/embeddings", body)
    vector = json.loads(urllib.request.urlopen(request, timeout=30).read())["data"][0]["embedding"]
    np.testing.assert_array_equal(found.as_numpy(output)[0], np.float32(vector))


@pytest.mark.parametrize("kind", CLIENTS)
def test_labels_scores_and_the_best_classes(site: Site, kind: str) -> None:
    api = client(site, kind)
    answers = highroad.load(site.packages["classify-a"])(TEXTS)
    found = api.infer("moderation", [texts(kind, TEXTS, [len(TEXTS), 1])])
    assert [label.decode() for label in found.as_numpy("label")] == [answer.label for answer in answers]
    scores = np.float32([list(answer.scores.values()) for answer in answers])
    np.testing.assert_array_equal(found.as_numpy("scores"), scores)
    wanted = [CLIENTS[kind].InferRequestedOutput("scores", class_count=1)]
    best = api.infer("moderation", [texts(kind, TEXTS)], outputs=wanted).as_numpy("scores")
    assert [row[0].decode().split(":")[2] for row in best] == [answer.label for answer in answers]


def test_messages_may_be_compressed_and_calls_overlap(site: Site) -> None:
    api = client(site, "grpc")
    expected = np.stack(highroad.load(site.packages["embed"])(TEXTS))
    for compression in ("gzip", None):
        found = api.infer("embedder", [texts("grpc", TEXTS)], compression_algorithm=compression, client_timeout=30)
        np.testing.assert_array_equal(found.as_numpy("embedding"), expected)
    waiting: list[concurrent.futures.Future] = []
    for text in TEXTS * 4:
        future: concurrent.futures.Future = concurrent.futures.Future()
        waiting.append(future)
        keep = lambda result, error, future=future: future.set_exception(error) if error else future.set_result(result)  # noqa: E731
        api.async_infer("embedder", [texts("grpc", [text])], keep)
    rows = [future.result(timeout=30).as_numpy("embedding")[0] for future in waiting]
    np.testing.assert_array_equal(rows, np.tile(expected, (4, 1)))


def stub(site: Site) -> service_pb2_grpc.GRPCInferenceServiceStub:
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(site.url.removeprefix("http://")))


def message(datatype: str = "BYTES", shape: tuple[int, ...] = (1,), name: str = "text", model: str = "embedder", **how: object):
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=how.pop("raw", []))
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in how.items():
        getattr(tensor.contents, field).extend(values)
    return request


def test_typed_contents_are_answered_typed(site: Site) -> None:
    expected = highroad.load(site.packages["embed"])(TEXTS[:1])[0]
    reply = stub(site).ModelInfer(message(bytes_contents=[TEXTS[0].encode()]), timeout=30)
    assert not reply.raw_output_contents and list(reply.outputs[0].shape) == [1, 16]
    np.testing.assert_array_equal(np.float32(reply.outputs[0].contents.fp32_contents), expected)


def test_every_answer_says_where_it_comes_from(site: Site) -> None:
    call = stub(site).ModelInfer.with_call
    _, done = call(message(bytes_contents=[b"hello"]), timeout=30, metadata=[("x-request-id", "from-grpc")])
    told = dict(done.initial_metadata())
    assert told["x-request-id"] == "from-grpc" and told["x-highroad-evidence"] == "development"
    assert told["x-highroad-package"].startswith("sha256:") and told["x-highroad-version"]
    record = json.loads(urllib.request.urlopen(f"{site.url}/v1/highroad/requests/from-grpc", timeout=10).read())
    assert record["package"] == told["x-highroad-package"] and record["member"] == "embedder"


@pytest.mark.parametrize(
    ("request_message", "code", "reason"),
    [
        (message(model="nobody", bytes_contents=[b"a"]), grpc.StatusCode.NOT_FOUND, "`nobody` does not exist"),
        (message(bytes_contents=[b"\xff"]), grpc.StatusCode.INVALID_ARGUMENT, "not UTF-8"),
        (message(bytes_contents=[b"a"], shape=(2,)), grpc.StatusCode.INVALID_ARGUMENT, "takes 2 elements"),
        (message(bytes_contents=[b"a"], shape=(-1,)), grpc.StatusCode.INVALID_ARGUMENT, "negative"),
        (message(raw=[b"\xff\xff\xff\xffa"]), grpc.StatusCode.INVALID_ARGUMENT, "longer than the data"),
        (message(raw=[b"a", b"b"]), grpc.StatusCode.INVALID_ARGUMENT, "1 inputs and 2 entries"),
        (message("FP32", name="input_ids", raw=[b"\0\0\xc0\x7f"]), grpc.StatusCode.INVALID_ARGUMENT, "not a number"),
        (message("FP32", name="input_ids", fp32_contents=[1.0]), grpc.StatusCode.INVALID_ARGUMENT, "is missing"),
        (message("INT9", name="input_ids", raw=[b"a"]), grpc.StatusCode.INVALID_ARGUMENT, "`INT9` is not taken"),
        (message(shape=(65,), bytes_contents=[b"a"] * 65), grpc.StatusCode.INVALID_ARGUMENT, "65 inputs; the limit is 64"),
        (message(bytes_contents=[b"a" * 100_001]), grpc.StatusCode.OUT_OF_RANGE, "100000"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_grpc(
    site: Site, request_message: service_pb2.ModelInferRequest, code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub(site).ModelInfer(request_message, timeout=30)
    assert refused.value.code() == code and reason in refused.value.details(), refused.value
    told = dict(refused.value.initial_metadata() or refused.value.trailing_metadata())
    assert told["x-request-id"]
    # Whoever was asked is named; a message that is too large is refused before anybody is.
    was_asked = request_message.model_name != "nobody" and code != grpc.StatusCode.OUT_OF_RANGE
    assert told.get("x-highroad-package", "").startswith("sha256:" if was_asked else "") and ("x-highroad-package" in told) == was_asked


def test_a_small_message_that_unfolds_into_a_large_one_is_refused(site: Site) -> None:
    with pytest.raises(InferenceServerException, match="100000 bytes"):
        client(site, "grpc").infer("embedder", [texts("grpc", ["a" * 5_000_000])], compression_algorithm="gzip")
    with pytest.raises(grpc.RpcError) as refused:
        stub(site).ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("how", ["raw", "typed", "json", "tensors"])
def test_an_answer_over_grpc_or_to_binary_tensors_is_replayed(site: Site, tmp_path: Path, how: str) -> None:
    asked = message(bytes_contents=[TEXTS[0].encode()])
    if how == "raw":
        asked = message(raw=[len(TEXTS[0]).to_bytes(4, "little") + TEXTS[0].encode()])
    if how == "tensors":
        names = [tensor["name"] for tensor in client(site, "http").get_model_metadata("embedder")["inputs"]]
        rows = {"input_ids": [[2, 130, 3]], "attention_mask": [[1, 1, 1]], "token_type_ids": [[0, 0, 0]]}
        inputs = [tokens("http", name, row) for name, row in rows.items() if name in names]
        body, json_bytes = triton_http.InferenceServerClient.generate_request_body(inputs)
        url = f"{site.url}/v2/models/embedder/infer"
        request = urllib.request.Request(url, body, {"Inference-Header-Content-Length": str(json_bytes)})
        request_id = urllib.request.urlopen(request, timeout=10).headers["x-request-id"]
    else:
        request_id = dict(stub(site).ModelInfer.with_call(asked)[1].initial_metadata())["x-request-id"]
        body = MessageToJson(asked).encode() if how == "json" else asked.SerializeToString()
    (tmp_path / "case").write_bytes(body)
    done = site.run("replay", request_id, "--input", tmp_path / "case")
    assert done.stdout.startswith("the same bits\n")
