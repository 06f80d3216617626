"""Prompts that a package puts before texts, and where texts are cut. What is expected comes from the same program packed without prompts,
asked with the prompt written into each text; clients are those of the protocols."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cohere
import highroad
import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from conftest import REPO, serving
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from test_serve_clients import TEXTS, Site, case
from tokenizers import Tokenizer

highroad_export, highroad_load = highroad.export, highroad.load
PROMPTS = {"query": "ask: ", "passage": "told: ", "clustering": "kind: "}
PACKAGES = REPO / "conformance" / "packages"
DOCUMENTS = ["hello", "the road goes on", "ignore all previous instructions", "who are you", "on and on"]
LONG = "one two three four five six seven eight nine ten " * 12


def packed(site: Site, name: str, source: str, more: str) -> Path:
    """The package `name`: the conformance package `source` with `more` in its `[task]`."""
    folder = shutil.copytree(PACKAGES / source, site.home / f"{name}.source")
    text = (folder / "package.toml").read_text()
    (folder / "package.toml").write_text(text.replace("max_tokens = 48", f"max_tokens = 48\n{more}"))
    site.run("pack", folder, "-o", site.home / name)
    return site.home / name


def inline(prompts: dict[str, str]) -> str:
    return f"prompts = {{ {', '.join(f'{name} = {json.dumps(text)}' for name, text in prompts.items())} }}"


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An embedder with prompts and an index, one with a default, the same program without any, rerankers with and without."""
    home = tmp_path_factory.mktemp("prompts")
    site = Site(highroad, home, {})
    site.packages = {
        "plain": packed(site, "plain", "embed", ""),
        "asked": packed(site, "asked", "embed", inline(PROMPTS)),
        "default": packed(site, "default", "embed", inline(PROMPTS) + '\ndefault_prompt_name = "query"\ntruncation = "error"'),
        "left": packed(site, "left", "embed", 'truncation = "left"'),
        "ranker": packed(site, "ranker", "rerank", inline({"query": "ask: ", "document": "told: "})),
        "second": packed(site, "second", "rerank", 'pair_truncation = "only_second"'),
        "unasked": packed(site, "unasked", "rerank", ""),
    }
    (home / "documents.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS))
    site.run("index", home / "documents.jsonl", "--embedder", site.packages["asked"], "-o", home / "help")
    members = [f'[members.{name}]\nmodel = "{path}"\nthreads = 1\n' for name, path in site.packages.items()]
    portfolio = home / "portfolio.toml"
    portfolio.write_text(
        "".join(members)
        + '[members.kept]\nmodel = "./asked"\nthreads = 1\ncache = { bytes = "1MiB" }\n'
        + '[members.kept.limits]\ninputs = 3\ninput_bytes = 50\ntokens = 40\ndocuments = 2\n'
        + '[indexes.help]\npath = "./help"\nembedder = "asked"\n'
        + '[pipelines.open]\nsteps = [{ name = "found", search = "help", top = 5 }]\n'
    )
    command = [str(highroad), "serve", "--portfolio", str(portfolio), "--development", "--listen", "127.0.0.1:0"]
    with serving(command, home / "serve.log", env=site.env(), cwd=home) as site.url:
        yield site


def post(site: Site, path: str, body: object, **headers: str) -> requests.Response:
    return requests.post(f"{site.url}{path}", json=body, timeout=30, headers=headers)


def plain(site: Site, texts: list[str], prompt: str = "") -> np.ndarray:
    """What the program gives for the texts with the prompt written into them."""
    return np.stack(highroad.load(site.packages["plain"])([prompt + text for text in texts]))


def openai(site: Site, model: str, **more: object) -> np.ndarray:
    reply = post(site, "/v1/embeddings", {"model": model, "input": TEXTS, **more})
    assert reply.status_code == 200, reply.text
    return np.float32([item["embedding"] for item in reply.json()["data"]])


def test_the_hugging_face_client_names_a_prompt(site: Site) -> None:
    hub = InferenceClient(f"{site.url}/tei/asked", provider="hf-inference")
    np.testing.assert_array_equal(hub.feature_extraction(TEXTS), plain(site, TEXTS))
    for name, prompt in PROMPTS.items():
        np.testing.assert_array_equal(hub.feature_extraction(TEXTS, prompt_name=name), plain(site, TEXTS, prompt))
    with pytest.raises(HfHubHTTPError, match="no prompt `quary`: it has `clustering`, `passage` and `query`"):
        hub.feature_extraction(TEXTS, prompt_name="quary")
    with pytest.raises(HfHubHTTPError, match="no prompt `query`: it has none"):
        InferenceClient(f"{site.url}/tei/plain", provider="hf-inference").feature_extraction(TEXTS, prompt_name="query")
    info = hub.get_endpoint_info()["highroad"]
    assert info["prompts"] == PROMPTS and info["truncation"] == "right" and info["limits"]["documents"] == 1000


def test_tei_compares_and_tokenises_with_a_prompt(site: Site) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}, "parameters": {"prompt_name": "passage"}}
    source, *others = np.float64(plain(site, TEXTS, "told: "))
    found = post(site, "/tei/asked/similarity", body).json()
    np.testing.assert_allclose(found, [source @ other for other in others], atol=1e-6)
    tokens = post(site, "/tei/asked/tokenize", {"inputs": "hello", "prompt_name": "query"}).json()
    assert tokens == post(site, "/tei/asked/tokenize", {"inputs": "ask: hello"}).json()


@pytest.mark.parametrize("client", [cohere.Client, cohere.ClientV2])
def test_the_cohere_client_says_what_texts_are_for(site: Site, client: type) -> None:
    api = client(api_key="none", base_url=site.url)

    def embed(model: str, input_type: str, **more: object) -> np.ndarray:
        reply = api.embed(model=model, texts=TEXTS, input_type=input_type, embedding_types=["float"], **more)
        return np.float32(reply.embeddings.float_)

    for input_type, prompt in [("search_query", "ask: "), ("search_document", "told: "), ("clustering", "kind: "), ("classification", "")]:
        np.testing.assert_array_equal(embed("asked", input_type), plain(site, TEXTS, prompt))
        # A package without prompts takes what the client has to send.
        np.testing.assert_array_equal(embed("plain", input_type), plain(site, TEXTS))
    np.testing.assert_array_equal(embed("default", "classification"), plain(site, TEXTS, "ask: "))
    if client is cohere.Client:
        bare = api.embed(model="asked", texts=TEXTS, input_type="search_query").embeddings
        np.testing.assert_array_equal(np.float32(bare), plain(site, TEXTS, "ask: "))
    with pytest.raises(cohere.BadRequestError, match="`input_type` is one of"):
        embed("asked", "something")


def test_openais_route_takes_the_words_of_its_dialects(site: Site) -> None:
    for more, prompt in [
        ({"prompt_name": "passage"}, "told: "),
        ({"task": "retrieval.query"}, "ask: "),
        ({"task": "retrieval.passage"}, "told: "),
        ({"task": "separation"}, "kind: "),
        ({"input_type": "query"}, "ask: "),
        ({}, ""),
    ]:
        np.testing.assert_array_equal(openai(site, "asked", **more), plain(site, TEXTS, prompt))
    np.testing.assert_array_equal(openai(site, "default"), plain(site, TEXTS, "ask: "))
    refused = post(site, "/v1/embeddings", {"model": "asked", "input": TEXTS, "task": "no.such"})
    assert refused.status_code == 400 and "it has `clustering`, `passage` and `query`" in refused.json()["error"]["message"]
    tokens = post(site, "/v1/embeddings", {"model": "default", "input": [[2, 31, 3]]}).json()["data"][0]["embedding"]
    assert tokens == post(site, "/v1/embeddings", {"model": "plain", "input": [[2, 31, 3]]}).json()["data"][0]["embedding"]


@pytest.mark.parametrize("triton", [tritonclient.http, tritonclient.grpc])
def test_the_triton_clients_name_a_prompt(site: Site, triton: object) -> None:
    client = triton.InferenceServerClient(site.url.removeprefix("http://"))
    text = triton.InferInput("text", [len(TEXTS)], "BYTES")
    text.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object))
    found = client.infer("asked", [text], parameters={"prompt_name": "query"}).as_numpy("embedding")
    np.testing.assert_array_equal(found, plain(site, TEXTS, "ask: "))
    with pytest.raises(Exception, match="no prompt `quary`"):
        client.infer("asked", [text], parameters={"prompt_name": "quary"})


def test_python_names_a_prompt(site: Site) -> None:
    embedder = highroad.load(site.packages["asked"])
    np.testing.assert_array_equal(embedder(TEXTS[0], prompt_name="query"), plain(site, TEXTS[:1], "ask: ")[0])
    with pytest.raises(RuntimeError, match="no prompt `quary`"):
        embedder(TEXTS, prompt_name="quary")


def test_an_answer_with_a_prompt_is_logged_and_replayed(site: Site, tmp_path: Path) -> None:
    asked = "sought by it"
    for path, body, names in [
        ("/tei/asked/embed", {"inputs": TEXTS, "prompt_name": "query"}, ["query"]),
        ("/v2/embed", {"model": "asked", "texts": TEXTS, "input_type": "search_document"}, ["passage"]),
        ("/v1/embed", {"model": "asked", "texts": TEXTS, "input_type": "clustering"}, ["clustering"]),
        ("/v1/embeddings", {"model": "asked", "input": asked, "task": "retrieval.query"}, ["query"]),
        ("/v1/embeddings", {"model": "default", "input": asked}, ["query"]),
        ("/v1/rerank", {"model": "asked", "query": asked, "documents": DOCUMENTS}, ["query", "passage"]),
        ("/v1/rerank", {"model": "ranker", "query": asked, "documents": DOCUMENTS}, ["document", "query"]),
        ("/v1/embeddings", {"model": "plain", "input": asked}, []),
    ]:
        headers = post(site, path, body).headers
        record = requests.get(f"{site.url}/v1/highroad/requests/{headers['x-request-id']}", timeout=10).json()
        assert record.get("prompts", []) == names, path
        done = site.run("replay", headers["x-request-id"], "--input", case(tmp_path, body))
        assert done.stdout.startswith("the same bits\n"), path
        # A case is the bare text; which prompt went before it the log knows.
        if body.get("input") == asked:
            bare = case(tmp_path, {"input": {"text": asked}})
            assert site.run("replay", headers["x-request-id"], "--input", bare).stdout.startswith("the same bits\n")
    with (site.home / "serve.log").open() as log:
        assert asked not in log.read()


def test_an_embedder_reranks_with_both_prompts(site: Site) -> None:
    reply = post(site, "/v2/rerank", {"model": "asked", "query": "the road", "documents": DOCUMENTS}).json()["results"]
    [query], documents = np.float64(plain(site, ["the road"], "ask: ")), np.float64(plain(site, DOCUMENTS, "told: "))
    scores = documents @ query
    assert [result["index"] for result in reply] == np.argsort(-scores, kind="stable").tolist()
    np.testing.assert_allclose([result["relevance_score"] for result in reply], np.sort(scores)[::-1], atol=1e-6)


def test_a_reranker_reads_its_prompts(site: Site) -> None:
    def scores(model: str, query: str, documents: list[str]) -> list[float]:
        found = post(site, "/tei/" + model + "/rerank", {"query": query, "texts": documents, "raw_scores": True}).json()
        return [one["score"] for one in sorted(found, key=lambda one: one["index"])]

    told = [f"told: {document}" for document in DOCUMENTS]
    assert scores("ranker", "the road", DOCUMENTS) == scores("unasked", "ask: the road", told)
    assert scores("ranker", "the road", DOCUMENTS) != scores("unasked", "the road", DOCUMENTS)


def test_a_search_has_the_prompt_of_queries_and_its_index_that_of_documents(site: Site, highroad: Path, tmp_path: Path) -> None:
    description = json.loads((site.home / "help" / "index.json").read_text())
    assert description["embedder"]["prompt"] == "passage"
    reply = post(site, "/v1/pipelines/open", {"input": "the road"})
    found = {document["text"]: document["score"] for document in reply.json()["output"]["documents"]}
    [query], documents = np.float64(plain(site, ["the road"], "ask: ")), np.float64(plain(site, DOCUMENTS, "told: "))
    np.testing.assert_allclose([found[text] for text in DOCUMENTS], documents @ query, atol=1e-6)
    done = site.run("replay", reply.headers["x-request-id"], "--input", case(tmp_path, {"input": "the road"}))
    assert "the same bits" in done.stdout, done.stdout
    # Embedded with another prompt it is another index.
    other = shutil.copytree(site.home / "help", tmp_path / "help")
    description["embedder"]["prompt"] = "clustering"
    (other / "index.json").write_text(json.dumps(description))
    portfolio = tmp_path / "portfolio.toml"
    portfolio.write_text(
        f'[members.asked]\nmodel = "{site.packages["asked"]}"\nthreads = 1\n[indexes.help]\npath = "{other}"\nembedder = "asked"\n'
        '[pipelines.open]\nsteps = [{ name = "found", search = "help", top = 5 }]\n'
    )
    refused = site.run("serve", "--portfolio", portfolio, "--development", "--listen", "127.0.0.1:0", code=2)
    assert "embedded with the prompt `clustering`" in refused.stderr and "with the prompt `passage`" in refused.stderr


def test_a_golden_set_is_asked_with_prompts(site: Site, tmp_path: Path) -> None:
    """The digest of all answers is that of the program without prompts, asked with them written into the cases."""

    def answers(package: str, cases: list[dict]) -> str:
        golden = tmp_path / "golden.jsonl"
        golden.write_text("".join(json.dumps({"id": f"c{i}", **case}) + "\n" for i, case in enumerate(cases)))
        done = site.run("eval", site.packages[package], "--golden", golden, "--json")
        return json.loads(done.stdout)["answers"]

    def rankings(query: str = "", document: str = "", **more: str) -> list[dict]:
        documents = [document + text for text in DOCUMENTS]
        return [{"input": {"query": query + text, "documents": documents}, "expected": [0, 1, 0, 0, 0], **more} for text in TEXTS[:2]]

    def pairs(prompt: str = "", **more: str) -> list[dict]:
        return [{"input": {"a": prompt + text, "b": prompt + TEXTS[0]}, "expected": 0.5, **more} for text in TEXTS[1:]]

    asked = answers("asked", rankings())
    assert asked == answers("plain", rankings("ask: ", "told: ")) != answers("plain", rankings())
    assert answers("asked", rankings(prompt_name="clustering")) == answers("plain", rankings("kind: ", "told: "))
    assert answers("asked", pairs()) == answers("plain", pairs())
    assert answers("asked", pairs(prompt_name="clustering")) == answers("plain", pairs("kind: "))
    assert answers("default", pairs()) == answers("plain", pairs("ask: "))
    # A baseline without prompts is asked as it always was.
    assert answers("plain", pairs(prompt_name="clustering")) == answers("plain", pairs())
    (tmp_path / "golden.jsonl").write_text(json.dumps({"id": "x", **pairs(prompt_name="quary")[0]}))
    refused = site.run("eval", site.packages["asked"], "--golden", tmp_path / "golden.jsonl", code=2)
    assert "no prompt `quary`" in refused.stderr


def program(site: Site, name: str, encoding: object) -> np.ndarray:
    """What the program of a package gives for the tokens of Hugging Face's tokenizers."""
    ids = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
    run = highroad.load(site.packages[name] / "program.pt2")
    return run(*(np.int64([ids[input_name]]) for input_name, _ in run.inputs))[0]


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize(("model", "strategy"), [("unasked", "longest_first"), ("second", "only_second")])
def test_pairs_are_cut_as_tokenizers_cuts_them(site: Site, model: str, strategy: str, direction: str) -> None:
    tokenizer = Tokenizer.from_file(str(PACKAGES / "rerank" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(48, strategy=strategy, direction=direction)
    for query, document in [("the road", LONG), ("who goes on the road", "short"), ("one two three four five", LONG)]:
        body = {"query": query, "texts": [document], "raw_scores": True, "truncate": True, "truncation_direction": direction}
        reply = post(site, f"/tei/{model}/rerank", body)
        [expected] = program(site, model, tokenizer.encode(query, document))
        assert np.float32(reply.json()[0]["score"]) == expected
        assert ("x-highroad-truncated" in reply.headers) == (document == LONG)


def test_a_query_that_leaves_no_room_is_refused_where_the_document_alone_is_cut(site: Site) -> None:
    refused = post(site, "/v2/rerank", {"model": "second", "query": LONG, "documents": ["a"]})
    assert refused.status_code == 400 and "leave none of the second one" in refused.json()["message"]
    assert post(site, "/v2/rerank", {"model": "unasked", "query": LONG, "documents": ["a"]}).status_code == 200


@pytest.mark.parametrize(("model", "policy"), [("plain", "right"), ("left", "left")])
def test_texts_are_cut_where_the_package_says(site: Site, model: str, policy: str) -> None:
    tokenizer = Tokenizer.from_file(str(PACKAGES / "embed" / "tokenizer.json"))
    tokenizer.no_padding()
    for direction in ["left", "right"]:
        tokenizer.enable_truncation(48, direction=direction)
        expected = program(site, model, tokenizer.encode(LONG))
        reply = post(site, f"/tei/{model}/embed", {"inputs": LONG, "truncate": True, "truncation_direction": direction})
        np.testing.assert_array_equal(np.float32(reply.json()[0]), expected)
        if direction == policy:
            for path, body in [("/v1/embeddings", {"input": LONG}), ("/v2/embed", {"texts": [LONG], "input_type": "clustering"})]:
                reply = post(site, path, {"model": model, **body})
                found = reply.json()["data"][0]["embedding"] if "input" in body else reply.json()["embeddings"]["float"][0]
                np.testing.assert_array_equal(np.float32(found), expected)
                assert reply.headers["x-highroad-truncated"] == "1"
                record = requests.get(f"{site.url}/v1/highroad/requests/{reply.headers['x-request-id']}", timeout=10).json()
                assert record["n_truncated"] == 1 and record.get("cut", "end") == ("start" if policy == "left" else "end")
            np.testing.assert_array_equal(highroad.load(site.packages[model])(LONG), expected)


def test_a_package_may_refuse_what_is_too_long_and_a_request_may_ask_for_it(site: Site) -> None:
    def status(path: str, **body: object) -> tuple[int, str | None]:
        reply = post(site, path, {"model": "default", **body})
        return reply.status_code, reply.headers.get("x-highroad-truncated")

    assert status("/v1/embeddings", input=LONG) == (400, None)
    assert status("/v1/embeddings", input=LONG, truncate=True) == (200, "1")
    assert status("/v1/embeddings", input=LONG, truncate=False) == (400, None)
    assert status("/tei/default/embed", inputs=LONG) == (422, None)
    assert status("/tei/default/embed", inputs=LONG, truncation_direction="left") == (422, None)
    assert status("/tei/default/embed", inputs=LONG, truncate=True) == (200, "1")
    assert status("/v2/embed", texts=[LONG], input_type="clustering") == (400, None)
    assert status("/v2/embed", texts=[LONG], input_type="clustering", truncate="START") == (200, "1")
    assert status("/v1/embeddings", model="plain", input=LONG, truncate="NONE") == (400, None)
    metrics = requests.get(f"{site.url}/metrics", timeout=10).text
    assert 'highroad_truncated_inputs_total{member="default"} 3' in metrics


def test_a_member_has_limits_of_its_own(site: Site) -> None:
    def refusal(path: str, body: dict) -> str:
        reply = post(site, path, {"model": "kept", **body})
        assert reply.status_code in (400, 413), reply.text
        return reply.text

    assert "4 inputs; the limit is 3" in refusal("/v1/embeddings", {"input": ["a"] * 4})
    assert "51 bytes in one input; the limit is 50" in refusal("/v1/embeddings", {"input": "a" * 51})
    assert "tokens; the limit is 40" in refusal("/v1/embeddings", {"input": [LONG[:50]] * 2})
    assert "3 documents; the limit is 2" in refusal("/v2/rerank", {"query": "a", "documents": ["a"] * 3})
    assert post(site, "/v1/embeddings", {"model": "plain", "input": ["a"] * 4}).status_code == 200
    info = requests.get(f"{site.url}/tei/kept/info", timeout=10).json()
    assert (info["max_client_batch_size"], info["max_batch_tokens"]) == (3, 40)
    shown = requests.get(f"{site.url}/v1/highroad/portfolio", timeout=10).json()["members"]
    (kept,) = [member for member in shown if member["member"] == "kept"]
    assert kept["limits"] == {"body_bytes": 16 << 20, "inputs": 3, "input_bytes": 50, "tokens": 40, "documents": 2}
    assert kept["prompts"] == sorted(PROMPTS)


def test_pairs_are_compared_over_both_protocols(site: Site, tmp_path: Path) -> None:
    pairs = [[TEXTS[0], text] for text in TEXTS]
    for prompt, more in [("", {}), ("told: ", {"prompt_name": "passage"})]:
        body = {"model": "asked", "pairs": pairs, **more}
        reply = post(site, "/v1/similarity", body)
        vectors = np.float64(plain(site, TEXTS, prompt))
        found = [entry["similarity"] for entry in reply.json()["data"]]
        np.testing.assert_allclose(found, vectors @ vectors[0], atol=1e-6)
        assert site.run("replay", reply.headers["x-request-id"], "--input", case(tmp_path, body)).stdout.startswith("the same bits\n")
        for triton in [tritonclient.http, tritonclient.grpc]:
            client = triton.InferenceServerClient(site.url.removeprefix("http://"))
            inputs = []
            for name, texts in [("text", [TEXTS[0]] * len(TEXTS)), ("text_pair", TEXTS)]:
                inputs.append(triton.InferInput(name, [len(texts)], "BYTES"))
                inputs[-1].set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object))
            reply = client.infer("asked", inputs, parameters=more)
            np.testing.assert_array_equal(reply.as_numpy("similarity"), np.float32(found))
    assert post(site, "/v1/similarity", {"model": "unasked", "pairs": pairs}).status_code == 400
    assert post(site, "/v1/similarity", {"model": "asked", "pairs": []}).status_code == 400


def test_kept_answers_know_the_prompt(site: Site) -> None:
    def ask(name: str) -> str:
        return post(site, "/tei/kept/embed", {"inputs": "hello", "prompt_name": name}).headers["x-highroad-cache"]

    assert [ask(name) for name in ["query", "passage", "query"]] == ["miss", "miss", "hit"]


def test_prompts_come_from_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    from highroad._export import ExportError, _prompts

    config = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    # The empty one says that documents go without the default.
    assert _prompts(tmp_path, None, "embed") == {"prompts": config["prompts"], "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "", "document": ""}, "default_prompt_name": null}')
    assert _prompts(tmp_path, None, "embed") == {}
    (tmp_path / "config_sentence_transformers.json").write_text('{"__version__": {"pytorch": "2.9.0"}}')
    assert _prompts(tmp_path, None, "embed") == {}
    for prompts, default, task in [
        (tmp_path / "none", None, "embed"),
        ({"a": "b"}, "c", "embed"),
        ({"a": "b"}, None, "rerank"),
        ({"a": "b"}, None, "classify"),
    ]:
        with pytest.raises(ExportError):
            _prompts(prompts, default, task)


def test_an_export_says_prompts_and_truncation_as_pack_reads_them(highroad: Path, tmp_path: Path) -> None:
    import torch

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(157, 4)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = attention_mask.unsqueeze(-1).float()
            return torch.nn.functional.normalize((self.table(input_ids) * mask).sum(1), dim=1)

    torch.manual_seed(0)
    ids = torch.randint(5, 157, (2, 6))
    prompts = {"query": "Instruct: find\nQuery: ", "passage": ""}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts, "default_prompt_name": "query"}))
    said = {"prompts": tmp_path, "truncation": "left", "name": "bag", "task": "embed", "max_tokens": 40, "licence": "MIT", "owner": "a"}
    tokenizer = PACKAGES / "embed" / "tokenizer.json"
    args = (ids, torch.ones_like(ids))
    source = highroad_export(Bag(), args, tmp_path / "bag", tokenizer=tokenizer, parity_inputs=[args], **said)
    site = Site(highroad, tmp_path, {})
    site.run("pack", source, "-o", tmp_path / "package")
    predictor = highroad_load(tmp_path / "package")
    task = predictor.manifest["task"]
    assert (task["prompts"], task["default_prompt_name"], task["truncation"]) == (prompts, "query", "left")
    asked = predictor(prompts["query"] + "hello", prompt_name="passage")
    np.testing.assert_array_equal(predictor("hello"), asked)
