"""The routes of Text Embeddings Inference as the Hugging Face client calls them, and vectors of fewer dimensions and bits."""

from __future__ import annotations

import base64
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cohere
import highroad
import numpy as np
import openai
import pytest
from conftest import REPO, serving
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from playwright.sync_api import expect, sync_playwright
from test_serve_clients import DOCUMENTS, QUERY, TEXTS, Site, case

MEMBERS = {"embedder": "embed", "moderation": "classify-a", "reranker": "rerank"}


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An embedder that may be cut to 4 or 8 of its 16 dimensions, a classifier and a reranker."""
    home = tmp_path_factory.mktemp("tei")
    site = Site(highroad, home, {name: home / name for name in MEMBERS.values()})
    for name, package in site.packages.items():
        source = shutil.copytree(REPO / "conformance" / "packages" / name, home / f"{name}.source")
        if name == "embed":
            text = (source / "package.toml").read_text()
            told = text.replace("normalized = true", "normalized = true\nmatryoshka_dimensions = [4, 8]")
            (source / "package.toml").write_text(told)
        site.run("pack", source, "-o", package)
    members = [f'[members.{name}]\nmodel = "{site.packages[package]}"\nthreads = 1\n' for name, package in MEMBERS.items()]
    portfolio = home / "portfolio.toml"
    portfolio.write_text("[limits]\nbody_bytes = 100000\ninputs = 16\n" + "".join(members))
    command = [str(highroad), "serve", "--portfolio", str(portfolio), "--development", "--listen", "127.0.0.1:0"]
    with serving(command, home / "serve.log", env=site.env(), cwd=home) as site.url:
        yield site


def client(site: Site, member: str = "") -> InferenceClient:
    return InferenceClient(f"{site.url}/tei/{member}" if member else site.url, provider="hf-inference")


def ask(site: Site, path: str, body: object) -> tuple[int, object, dict[str, str]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{site.url}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read()), dict(reply.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)


def expected(site: Site, texts: list[str]) -> np.ndarray:
    """What the runtime says in this process."""
    return np.stack(highroad.load(site.packages["embed"])(texts))


def cut(vectors: np.ndarray, width: int) -> np.ndarray:
    kept = np.float64(vectors[..., :width])
    return np.float32(kept / np.linalg.norm(kept, axis=-1, keepdims=True))


@pytest.mark.parametrize("member", ["", "embedder"])
def test_the_hugging_face_client_extracts_features(site: Site, member: str) -> None:
    hub = client(site, member)
    np.testing.assert_array_equal(hub.feature_extraction(TEXTS[0])[0], expected(site, TEXTS[:1])[0])
    vectors = hub.feature_extraction(TEXTS, normalize=True, truncate=True, truncation_direction="right")
    np.testing.assert_array_equal(vectors, expected(site, TEXTS))
    np.testing.assert_allclose(hub.feature_extraction(TEXTS, dimensions=8), cut(expected(site, TEXTS), 8), rtol=1e-6)
    with pytest.raises(HfHubHTTPError, match="`dimensions` is 5, and the model gives 4, 8 or 16"):
        hub.feature_extraction(TEXTS, dimensions=5)
    with pytest.raises(HfHubHTTPError, match="no prompt `query`: it has none"):
        hub.feature_extraction(TEXTS, prompt_name="query")


@pytest.mark.parametrize("member", ["", "moderation"])
def test_the_hugging_face_client_classifies(site: Site, member: str) -> None:
    answer = highroad.load(site.packages["classify-a"])(TEXTS[1])
    found = client(site, member).text_classification(TEXTS[1])
    assert {element.label: np.float32(element.score) for element in found} == {
        label: np.float32(score) for label, score in answer.scores.items()
    }
    assert found[0].label == answer.label and found[0].score >= found[1].score
    assert [element.label for element in client(site, member).text_classification(TEXTS[1], top_k=1)] == [answer.label]


@pytest.mark.parametrize("member", ["", "embedder"])
def test_the_hugging_face_client_compares_sentences(site: Site, member: str) -> None:
    source, *others = np.float64(expected(site, TEXTS))
    cosines = [source @ other / np.linalg.norm(source) / np.linalg.norm(other) for other in others]
    found = client(site, member).sentence_similarity(TEXTS[0], TEXTS[1:])
    np.testing.assert_allclose(found, cosines, rtol=1e-6)


def test_the_hugging_face_client_asks_what_is_served(site: Site) -> None:
    info = client(site, "moderation").get_endpoint_info()
    assert info["model_type"]["classifier"]["id2label"] == {"0": "benign", "1": "injection"}
    assert info["served_model_name"] == "moderation" and info["max_input_length"] == 48 and info["auto_truncate"]
    assert client(site, "embedder").health_check() and not client(site, "nobody").health_check()
    with pytest.raises(HfHubHTTPError, match="more than one model"):
        client(site).get_endpoint_info()


def test_texts_that_are_too_long_are_cut_where_the_client_says(site: Site) -> None:
    words = "one two three four five six seven eight nine ten " * 12
    by = lambda **how: ask(site, "/embed", {"inputs": words, **how})  # noqa: E731
    status, vectors, headers = by()
    assert status == 200 and headers["x-highroad-truncated"] == "1"
    assert by(truncate=True, truncation_direction="Right")[1] == vectors
    assert by(truncation_direction="Left")[1] != vectors
    status, refused, _ = by(truncate=False)
    assert status == 422 and refused["error_type"] == "Validation" and "48" in refused["error"]
    # The end that is kept is what a text of that end alone gives.
    tokens = ask(site, "/tei/embedder/tokenize", {"inputs": words, "add_special_tokens": False})[1][0][-46:]
    assert by(truncation_direction="Left")[1] == ask(site, "/embed", {"inputs": [[2, *(token["id"] for token in tokens), 3]]})[1]


def test_tokens_are_parts_of_the_text(site: Site) -> None:
    status, [tokens], headers = ask(site, "/tei/embedder/tokenize", {"inputs": "please tell me"})
    assert status == 200 and headers["x-highroad-package"].startswith("sha256:")
    assert [(token["text"], token["start"], token["special"]) for token in tokens] == [
        ("[CLS]", None, True),
        ("please", 0, False),
        ("tell", 7, False),
        ("me", 12, False),
        ("[SEP]", None, True),
    ]
    ids = [token["id"] for token in tokens]
    assert ask(site, "/tei/embedder/decode", {"ids": ids[1:-1]})[1] == ["please tell me"]
    assert ask(site, "/tei/embedder/decode", {"ids": [ids], "skip_special_tokens": False})[1] == ["[CLS] please tell me [SEP]"]


def test_rerank_below_a_model_and_at_the_root_are_one(site: Site) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS}
    status, best, headers = ask(site, "/tei/reranker/rerank", body)
    assert status == 200 and int(headers["x-compute-tokens"]) > 0 and "x-inference-time" in headers
    assert best == ask(site, "/rerank", body)[1] == ask(site, "/", body)[1] == ask(site, "/tei/reranker", body)[1]


@pytest.mark.parametrize(
    ("path", "body", "status", "error_type", "message"),
    [
        ("/embed", {"inputs": []}, 400, "Empty", "`inputs` is empty"),
        ("/embed", {"inputs": 7}, 422, "Validation", "`inputs` is a string"),
        ("/embed", b'{"inputs": NaN}', 422, "Validation", "not JSON"),
        ("/embed", b"\xff\xfe", 422, "Validation", "not JSON"),
        ("/embed", {"inputs": ["a"] * 17}, 413, "Validation", "17 inputs; the limit is 16"),
        ("/embed", {"inputs": "a" * 100_001}, 413, "Validation", "limit of 100000"),
        ("/embed", {"inputs": [[999_999]]}, 422, "Validation", "not in the vocabulary"),
        ("/tei/nobody/embed", {"inputs": "a"}, 404, "Validation", "`nobody` does not exist"),
        ("/tei/moderation/embed", {"inputs": "a"}, 424, "Backend", "for classification, not for embeddings"),
        ("/embed_sparse", {"inputs": "a"}, 424, "Backend", "sparse"),
        ("/embed_all", {"inputs": "a"}, 424, "Backend", "pooled"),
        ("/predict", {"inputs": "a", "raw_scores": True}, 422, "Validation", "softmax"),
        ("/predict", {"inputs": ["a", "b"]}, 422, "Validation", "read one text"),
        ("/tei/embedder/predict", {"inputs": "a"}, 424, "Backend", "not for classification"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty", "`inputs.sentences` is empty"),
        ("/rerank", {"query": "a", "texts": "b"}, 422, "Validation", "`texts` is a list"),
        ("/decode", {"ids": [999_999]}, 422, "Tokenizer", "not in the vocabulary"),
        ("/tokenize", {"inputs": [1]}, 422, "Validation", "`inputs` is a string"),
    ],
)
def test_refusals_have_the_words_and_the_status_of_tei(
    site: Site, path: str, body: object, status: int, error_type: str, message: str
) -> None:
    if path == "/tokenize" or path == "/decode":
        path = f"/tei/embedder{path}"
    found, reply, headers = ask(site, path, body)
    assert (found, reply["error_type"]) == (status, error_type) and message in reply["error"], reply
    assert headers["x-request-id"]


def test_an_answer_to_tei_is_replayed(site: Site, tmp_path: Path) -> None:
    for path, body in [
        ("/embed", {"inputs": TEXTS}),
        ("/predict", {"inputs": [["hello"]]}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/v2/embed", {"texts": TEXTS, "embedding_types": ["int8"]}),
        ("/embed", {"inputs": "one two three " * 400, "truncation_direction": "left"}),
        ("/v2/embed", {"texts": ["one two three " * 400], "truncate": "START"}),
    ]:
        _, _, headers = ask(site, path, body)
        done = site.run("replay", headers["x-request-id"], "--input", case(tmp_path, body))
        assert done.stdout.startswith("the same bits\n"), path


def test_the_openai_client_gets_the_dimensions_that_the_package_declares(site: Site) -> None:
    api = openai.OpenAI(base_url=f"{site.url}/v1", api_key="none")
    whole = expected(site, TEXTS)
    for width in (4, 8, 16):
        packed = api.embeddings.create(model="embedder", input=TEXTS, dimensions=width).data
        plain = api.embeddings.create(model="embedder", input=TEXTS, dimensions=width, encoding_format="float").data
        found = np.float32([item.embedding for item in packed])
        np.testing.assert_array_equal(found, np.float32([item.embedding for item in plain]))
        np.testing.assert_allclose(found, whole if width == 16 else cut(whole, width), rtol=1e-6)
    with pytest.raises(openai.BadRequestError, match="`dimensions` is 12, and the model gives 4, 8 or 16") as refused:
        api.embeddings.create(model="embedder", input=TEXTS, dimensions=12)
    assert refused.value.param == "dimensions"


def test_the_cohere_client_embeds(site: Site) -> None:
    api = cohere.ClientV2(api_key="none", base_url=site.url)
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    reply = api.embed(model="embedder", texts=TEXTS, input_type="search_document", embedding_types=types)
    whole = expected(site, TEXTS)
    found = reply.embeddings
    np.testing.assert_array_equal(np.float32(found.float_), whole)
    np.testing.assert_array_equal([np.frombuffer(base64.b64decode(row), "<f4") for row in found.base64], whole)
    scaled = np.round(np.float64(whole) / np.abs(np.float64(whole)).max(axis=1, keepdims=True) * 127)
    np.testing.assert_array_equal(found.int8, scaled)
    np.testing.assert_array_equal(found.uint8, scaled + 128)
    np.testing.assert_array_equal(found.ubinary, np.packbits(whole > 0, axis=1))
    np.testing.assert_array_equal(found.binary, np.packbits(whole > 0, axis=1).astype(int) - 128)
    assert reply.texts == TEXTS and reply.meta.billed_units.input_tokens > 0
    small = api.embed(
        model="embedder", texts=TEXTS, input_type="search_query", embedding_types=["float"], output_dimension=4
    )
    np.testing.assert_allclose(small.embeddings.float_, cut(whole, 4), rtol=1e-6)
    for refused, how in [("gives 4, 8 or 16", {"output_dimension": 3}), ("may not be cut", {"truncate": "NONE"})]:
        with pytest.raises(cohere.BadRequestError, match=refused):
            api.embed(model="embedder", texts=["word " * 99], input_type="search_query", embedding_types=["float"], **how)
    with pytest.raises(cohere.NotFoundError, match="nobody"):
        api.embed(model="nobody", texts=TEXTS, input_type="search_query", embedding_types=["float"])


def test_the_document_names_every_route_and_the_page_calls_them(site: Site) -> None:
    document = json.loads(urllib.request.urlopen(f"{site.url}/openapi.json", timeout=10).read())
    assert document["openapi"] == "3.1.0" and "/tei/{model}/embed" in document["paths"]
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed: run `scripts/debian-tools chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        elsewhere, faults = [], []
        page.on("request", lambda request: request.url.startswith((site.url, "data:")) or elsewhere.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{site.url}/docs")
        route = page.locator("#operations-Text_Embeddings_Inference-post_embed")
        route.locator(".opblock-summary-control").click()
        route.get_by_role("button", name="Try it out").click()
        route.get_by_role("button", name="Execute").click()
        answer = route.locator(".live-responses-table .response-col_status").last
        expect(answer).to_contain_text("200")
        browser.close()
    assert not elsewhere and not faults
