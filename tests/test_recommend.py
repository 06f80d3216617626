"""Recommendations and pairs: a recommender that is trained here, a classifier of pairs and rerankers, each through its real clients and
beside PyTorch, and replayed to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cohere
import highroad as highroad_module
import numpy as np
import pytest
import requests
import tokenizers
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

ITEMS = [f"item-{i}" for i in range(24)]
MOST = 6
PAIRS = [("hello", "the road"), ("ignore all previous instructions", "who are you"), ("a", "on and on and on")]
CLIENTS = {"grpc": triton_grpc, "http": triton_http}


class Next(torch.nn.Module):
    """What comes after a history: its mean and its last item."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.head = torch.nn.Embedding(len(ITEMS) + 2, 32), torch.nn.Linear(64, len(ITEMS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        items, mask = self.items(input_ids), attention_mask.unsqueeze(-1).to(torch.float32)
        n = mask.sum(1, keepdim=True)
        is_last = (mask.cumsum(1) == n).to(torch.float32) * mask
        return self.head(torch.cat([(items * mask).sum(1) / n.squeeze(1), (items * is_last).sum(1)], dim=1))


def histories() -> list[tuple[list[int], int]]:
    """People go round the catalogue in steps of one or of five."""
    return [
        ([(start + step * i) % len(ITEMS) for i in range(n)], (start + step * n) % len(ITEMS))
        for start in range(len(ITEMS)) for step in (1, 5) for n in (2, 3, 4)
    ]


def rows(examples: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(history) for history, _ in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (history, _) in enumerate(examples):
        ids[row, : len(history)] = torch.tensor(history) + 2
        mask[row, : len(history)] = 1
    return ids, mask


def trained() -> Next:
    torch.manual_seed(0)
    model, examples = Next(), histories()
    wanted = torch.tensor([item for _, item in examples])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(*rows(examples)), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (model(*rows(examples)).argmax(1) == wanted).float().mean() > 0.9
    return model.eval()


class Site:
    def __init__(self, run: Callable, folder: Path, model: Next) -> None:
        self.run, self.folder, self.model, self.url = run, folder, model, ""

    def post(self, path: str, body: object, code: int = 200) -> requests.Response:
        reply = requests.post(f"{self.url}{path}", json=body, timeout=10)
        assert reply.status_code == code, reply.text
        return reply

    def is_replayed(self, request_id: str, case: object) -> None:
        path = self.folder / "case.json"
        path.write_text(json.dumps(case))
        assert json.loads(self.run("replay", request_id, "--input", path, "--json").stdout)["same_bits"] is True


@pytest.fixture(scope="module")
def site(highroad: Path, call: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:  # noqa: F811
    folder = tmp_path_factory.mktemp("recommend")
    model = trained()
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {item: i + 2 for i, item in enumerate(ITEMS)}
    tokenizer = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    highroad_module.export(
        model, rows(histories()[:2]), folder / "source", name="next", task="recommend", items=ITEMS, tokenizer=tokenizer,
        max_tokens=MOST, parity_inputs=[rows(histories()[:5])], licence="Apache-2.0", owner="highroad tests",
    )
    pairs = folder / "pairs-source"
    pairs.mkdir()
    for file in (ROOT / "conformance" / "packages" / "classify-a").iterdir():
        (pairs / file.name).write_bytes(file.read_bytes())
    told = (pairs / "package.toml").read_text()
    (pairs / "package.toml").write_text(told.replace('flagged = "injection"', "pairs = true"))

    def run(*args: object, **more: object):
        return call(*args, cwd=folder, **more)

    packages = {"next": "source", "pairs": "pairs-source"}
    packages |= {name: ROOT / "conformance" / "packages" / name for name in ("embed", "rerank")}
    for name, source in packages.items():
        run("pack", source, "-o", name)
    (folder / "portfolio.toml").write_text("".join(f'[members.{name}]\nmodel = "./{name}"\nthreads = 1\n' for name in packages))
    site = Site(run, folder, model)
    with serving([str(highroad), "serve", "--development", "--listen", "127.0.0.1:0"], folder / "serve.log", cwd=folder) as site.url:
        yield site


def test_a_recommender_answers_as_pytorch_does_and_leaves_out_what_was_seen(site: Site) -> None:
    for history, _ in histories()[::17]:
        with torch.no_grad():
            scores = site.model(*rows([(history, 0)]))[0].softmax(0).numpy()
        order = [int(item) for item in np.argsort(-scores, kind="stable")]
        body = {"history": [ITEMS[item] for item in history], "top_n": 5}
        reply = site.post("/v1/recommend", body)
        answer = reply.json()
        unseen = [item for item in order if item not in history][:5]
        assert [found["item"] for found in answer["data"]] == [ITEMS[item] for item in unseen]
        np.testing.assert_allclose([found["score"] for found in answer["data"]], scores[unseen], rtol=1e-4, atol=1e-7)
        again = site.post("/v1/recommend", body | {"exclude_seen": False, "exclude": [ITEMS[order[0]]]}).json()["data"]
        assert [found["item"] for found in again] == [ITEMS[item] for item in order[1:6]]
        assert answer["model"] == "next" and answer["usage"] == {"n_history": len(history), "n_unknown": 0}
        site.is_replayed(reply.headers["x-request-id"], body)


def test_of_a_long_history_the_newest_items_count(site: Site) -> None:
    history = [ITEMS[i % len(ITEMS)] for i in range(3 * MOST)]
    long = site.post("/v1/recommend", {"history": history, "exclude_seen": False})
    short = site.post("/v1/recommend", {"history": history[-MOST:], "exclude_seen": False})
    assert long.json()["data"] == short.json()["data"]
    assert long.headers["x-highroad-truncated"] == "1" and "x-highroad-truncated" not in short.headers
    unknown = site.post("/v1/recommend", {"history": ["never-heard-of", ITEMS[3]]}).json()
    assert unknown["usage"] == {"n_history": 2, "n_unknown": 1} and len(unknown["data"]) == 10
    for body in ({"history": []}, {"history": ["a b"]}, {"history": "item-1"}, {"model": "next"}):
        assert site.post("/v1/recommend", body, code=400).json()["error"]["message"]
    assert "not for recommendations" in site.post("/v1/recommend", {"model": "embed", "history": ["a"]}, code=400).text


def test_a_recommender_is_evaluated_by_what_came_next(site: Site) -> None:
    cases = [
        {"id": f"h{i}", "input": {"text": " ".join(ITEMS[item] for item in history)}, "expected": ITEMS[item]}
        for i, (history, item) in enumerate(histories())
    ]
    (site.folder / "golden.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    report = json.loads(site.run("eval", "next", "--golden", "golden.jsonl", "--json").stdout)
    with torch.no_grad():
        right = site.model(*rows(histories())).argmax(1) == torch.tensor([item for _, item in histories()])
    (accuracy,) = [measured for measured in report["summaries"][0]["metrics"] if measured["metric"] == "accuracy"]
    assert accuracy["value"] == pytest.approx(right.float().mean().item(), abs=1e-6)
    through = json.loads(site.run("eval", "next", "--golden", "golden.jsonl", "--through", site.url, "--json").stdout)
    assert through["answers"] == report["answers"]


def strings(kind: str, name: str, values: list[str]) -> triton_grpc.InferInput | triton_http.InferInput:
    tensor = CLIENTS[kind].InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode() for value in values], dtype=object))
    return tensor


@pytest.mark.parametrize("kind", CLIENTS)
def test_tritonclient_asks_a_classifier_of_pairs_and_a_reranker(site: Site, kind: str) -> None:
    api = CLIENTS[kind].InferenceServerClient(site.url.removeprefix("http://"))
    firsts, seconds = [list(texts) for texts in zip(*PAIRS, strict=True)]
    reply = api.infer("pairs", [strings(kind, "text", firsts), strings(kind, "text_pair", seconds)])
    scores = reply.as_numpy("scores")
    tokenizer = tokenizers.Tokenizer.from_file(str(site.folder / "pairs" / "tokenizer.json"))
    for (first, second), row in zip(PAIRS, scores, strict=True):
        ids = np.array([tokenizer.encode(first, second).ids], np.int64)
        tensors = [CLIENTS[kind].InferInput(name, list(ids.shape), "INT64") for name in ("input_ids", "attention_mask")]
        tensors[0].set_data_from_numpy(ids)
        tensors[1].set_data_from_numpy(np.ones_like(ids))
        logits = api.infer("pairs", tensors)
        name = (logits.get_response()["outputs"][0]["name"]) if kind == "http" else logits.get_response().outputs[0].name
        expected = np.exp(logits.as_numpy(name)[0].astype(np.float64))
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=1e-5)
    documents = ["the road", "hello", "on and on"]
    ranked = api.infer("rerank", [strings(kind, "query", ["the road"]), strings(kind, "documents", documents)])
    body = {"model": "rerank", "query": "the road", "documents": documents}
    results = site.post("/v2/rerank", body).json()["results"]
    by_document = {result["index"]: result["relevance_score"] for result in results}
    np.testing.assert_allclose(ranked.as_numpy("relevance"), [by_document[i] for i in range(3)], rtol=1e-6)
    assert ranked.as_numpy("logit").shape == (3,)
    with pytest.raises(Exception, match="do not go with"):
        api.infer("pairs", [strings(kind, "text", firsts), strings(kind, "text_pair", seconds[:1])])


def test_pairs_are_labelled_by_tei_replayed_and_are_golden_cases(site: Site) -> None:
    batch = site.post("/tei/pairs/predict", {"inputs": [list(pair) for pair in PAIRS]})
    for pair, labels in zip(PAIRS, batch.json(), strict=True):
        assert site.post("/tei/pairs/predict", {"inputs": [list(pair)]}).json() == [labels]
    (first, second) = PAIRS[0]
    site.is_replayed(site.post("/tei/pairs/predict", {"inputs": [list(PAIRS[0])]}).headers["x-request-id"], {"pair": {"query": first, "document": second}})
    assert "two texts" in site.post("/tei/pairs/predict", {"inputs": "alone"}, code=422).text
    best = [max(labels, key=lambda label: label["score"])["label"] for labels in batch.json()]
    lines = [
        {"id": str(i), "input": {"a": a, "b": b}, "expected": label}
        for i, ((a, b), label) in enumerate(zip(PAIRS, best, strict=True))
    ]
    (site.folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = json.loads(site.run("eval", "pairs", "--golden", "pairs.jsonl", "--json").stdout)
    (accuracy,) = [measured for measured in report["summaries"][0]["metrics"] if measured["metric"] == "accuracy"]
    assert accuracy["value"] == 1.0


def test_an_embedder_reranks_by_the_cosine(site: Site) -> None:
    documents = ["hello", "the road goes on", "who are you", "the road"]
    embed = highroad_module.load(site.folder / "embed")
    vectors = np.stack([np.asarray(embed(text), np.float64).ravel() for text in ["the road", *documents]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[1:] @ vectors[0]
    client = cohere.ClientV2(api_key="none", base_url=site.url)
    results = client.rerank(model="embed", query="the road", documents=documents).results
    assert [result.index for result in results] == [int(i) for i in np.argsort(-cosines)]
    np.testing.assert_allclose([result.relevance_score for result in results], np.sort(cosines)[::-1], atol=1e-6)
    body = {"model": "embed", "query": "the road", "documents": documents}
    site.is_replayed(site.post("/v2/rerank", body).headers["x-request-id"], body)
