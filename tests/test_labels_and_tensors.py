"""Classifiers that find any number of labels, programs that take and give tensors, and programs without a package: each through its real
clients and beside PyTorch, and replayed to the bit."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import highroad as highroad_module
import numpy as np
import openai
import pytest
import requests
import tokenizers
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

CLIENTS = {"grpc": triton_grpc, "http": triton_http}
LABELS = ["hate", "self_harm", "spam"]
THRESHOLDS = [0.5, 0.5, 0.4]
# A word that makes each label hold, and words that make none.
WORDS, HARMLESS = ["ignore", "secret", "system"], ["hello", "what is the weather", "tell me how"]
TEXTS = [" ".join([start, *words]) for start in HARMLESS for n in range(4) for words in itertools.combinations(WORDS, n)]


class Tagger(torch.nn.Module):
    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.words, self.head = torch.nn.Embedding(n_tokens, 16), torch.nn.Linear(16, len(LABELS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        return self.head((self.words(input_ids) * mask).sum(1))


class Scorer(torch.nn.Module):
    """Two tensors of two kinds in, two out."""

    def __init__(self) -> None:
        super().__init__()
        self.country, self.head = torch.nn.Embedding(10, 3), torch.nn.Linear(7, 2)

    def forward(self, features: torch.Tensor, country: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.head(torch.cat([features, self.country(country)], dim=1))
        return scores, scores.argmax(1)


def rows(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = [tokenizer.encode(text).ids for text in texts]
    width = max(map(len, encoded))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in encoded])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded])


def trained(tokenizer: tokenizers.Tokenizer) -> Tagger:
    torch.manual_seed(0)
    model, inputs = Tagger(tokenizer.get_vocab_size()), rows(tokenizer, TEXTS)
    wanted = torch.tensor([[float(word in text) for word in WORDS] for text in TEXTS])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(*inputs), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ((torch.sigmoid(model(*inputs)) >= torch.tensor(THRESHOLDS)) == wanted.bool()).all()
    return model.eval()


class Site:
    def __init__(self, run: Callable, folder: Path, tagger: Tagger, tokenizer: tokenizers.Tokenizer, scorer: Scorer) -> None:
        self.run, self.folder, self.tagger, self.tokenizer, self.scorer, self.url = run, folder, tagger, tokenizer, scorer, ""

    def scores(self, text: str) -> np.ndarray:
        with torch.no_grad():
            return torch.sigmoid(self.tagger(*rows(self.tokenizer, [text])))[0].numpy()

    def is_replayed(self, request_id: str, case: object) -> None:
        path = self.folder / "case.json"
        path.write_text(json.dumps(case))
        assert json.loads(self.run("replay", request_id, "--input", path, "--json").stdout)["same_bits"] is True


@pytest.fixture(scope="module")
def site(highroad: Path, call: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:  # noqa: F811
    folder = tmp_path_factory.mktemp("labels")
    tokenizer = tokenizers.Tokenizer.from_file(str(ROOT / "conformance" / "packages" / "embed" / "tokenizer.json"))
    tagger, scorer = trained(tokenizer), Scorer().eval()
    told = {"licence": "Apache-2.0", "owner": "highroad tests"}
    highroad_module.export(
        tagger, rows(tokenizer, TEXTS[:2]), folder / "tagger-source", name="tagger", task="classify", labels=LABELS, flagged="*",
        thresholds=THRESHOLDS, tokenizer=tokenizer, max_tokens=48, parity_inputs=[rows(tokenizer, TEXTS[:9])], **told,
    )
    batch = torch.export.Dim("batch", min=1)
    inputs = (torch.rand(3, 4), torch.tensor([1, 2, 3]))
    highroad_module.export(
        scorer, inputs, folder / "scorer-source", name="scorer", task="tensors", dynamic_shapes=({0: batch}, {0: batch}),
        parity_inputs=[inputs, (torch.rand(1, 4), torch.tensor([9]))], **told,
    )

    def run(*args: object, **more: object):
        return call(*args, cwd=folder, **more)

    for name in ("tagger", "scorer"):
        run("pack", f"{name}-source", "-o", name)
        run("verify", name)
    shutil.copy(folder / "scorer-source" / "program.pt2", folder / "bare.pt2")
    (folder / "portfolio.toml").write_text(
        "[members.tagger]\nmodel = './tagger'\nthreads = 1\n[members.scorer]\nmodel = './scorer'\nthreads = 1\n"
        "[members.bare]\nmodel = './bare.pt2'\nthreads = 1\n"
        "[pipelines.safe]\nsteps = [{ name = 'tags', classify = 'tagger', stop_when = ['spam'] }]\n"
        "[pipelines.metered]\nsteps = [{ name = 'tags', classify = 'tagger' }]\n"
        "[budgets.pipelines.metered]\ntokens_per_day = 12\n"
    )
    command = [str(highroad), "serve", "--development", "--listen", "127.0.0.1:0"]
    site = Site(run, folder, tagger, tokenizer, scorer)
    with serving(command, folder / "serve.log", cwd=folder, env={"HIGHROAD_HOME": str(folder / ".highroad")}) as site.url:
        yield site


def test_every_label_is_a_category_to_the_openai_client(site: Site) -> None:
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="none")
    text = "hello ignore system"
    raw = client.moderations.with_raw_response.create(model="tagger", input=[text, "hello"])
    both, none = raw.parse().results
    categories = both.categories.model_dump(by_alias=True)
    assert both.flagged and categories["hate"] and categories["spam"] and not categories["self-harm"]
    assert not none.flagged and not any(none.categories.model_dump(by_alias=True).values())
    told = both.category_scores.model_dump(by_alias=True)
    np.testing.assert_allclose([told[name] for name in ("hate", "self-harm", "spam")], site.scores(text), rtol=1e-5, atol=1e-7)
    assert both.model_extra["highroad"]["label"] == "hate, spam" and none.model_extra["highroad"]["label"] == ""
    site.is_replayed(raw.headers["x-request-id"], {"model": "tagger", "input": [text, "hello"]})


def test_the_hugging_face_client_reads_sigmoid_scores(site: Site) -> None:
    client = InferenceClient(f"{site.url}/tei/tagger")
    found = client.text_classification("hello secret system", function_to_apply="sigmoid")
    assert [entry.label for entry in found[:2]] in (["self_harm", "spam"], ["spam", "self_harm"])
    scores = dict(zip(LABELS, site.scores("hello secret system"), strict=True))
    assert all(abs(entry.score - scores[entry.label]) < 1e-5 for entry in found)
    with pytest.raises(HfHubHTTPError, match="422"):
        client.text_classification("secret", function_to_apply="softmax")


@pytest.mark.parametrize("kind", CLIENTS)
def test_tritonclient_gets_labels_and_scores(site: Site, kind: str) -> None:
    triton = CLIENTS[kind]
    text = triton.InferInput("text", [2], "BYTES")
    text.set_data_from_numpy(np.array(["hello ignore secret", "hello"], dtype=object))
    reply = triton.InferenceServerClient(site.url.removeprefix("http://")).infer("tagger", [text])
    assert [label.decode() for label in reply.as_numpy("label")] == ["hate, self_harm", ""]
    np.testing.assert_allclose(reply.as_numpy("scores")[0], site.scores("hello ignore secret"), rtol=1e-5, atol=1e-7)


def test_one_of_several_labels_ends_a_pipeline(site: Site) -> None:
    def ask(text: str) -> requests.Response:
        return requests.post(f"{site.url}/v1/pipelines/safe", json={"input": text}, timeout=10)

    stopped = ask("hello ignore system").json()["stopped"]
    assert stopped["label"] == "hate, spam" and ask("hello ignore").json()["stopped"] is None
    reply = ask("hello")
    assert reply.headers["x-highroad-evidence"] == "development" and reply.headers["x-highroad-version"].startswith("safe@sha256:")


def test_a_pipeline_spends_within_its_own_budget(site: Site) -> None:
    def ask() -> requests.Response:
        return requests.post(f"{site.url}/v1/pipelines/metered", json={"input": "hello system"}, timeout=10)

    n_tokens = len(site.tokenizer.encode("hello system").ids)
    assert [ask().status_code for _ in range(12 // n_tokens)] == [200] * (12 // n_tokens)
    refused = ask()
    assert refused.status_code == 429 and "the budget of pipeline `metered` is used up" in refused.text and refused.headers["retry-after"]
    found = requests.get(f"{site.url}/v1/highroad/budgets", timeout=10).json()["budgets"]
    (row,) = [row for row in found if row["scope"] == "pipeline" and row["most"] is not None]
    assert (row["name"], row["limit"], row["used"]) == ("metered", "tokens_per_day", 12 // n_tokens * n_tokens)
    # The member itself is not limited.
    assert requests.post(f"{site.url}/v1/moderations", json={"model": "tagger", "input": "hello"}, timeout=10).status_code == 200


def test_python_answers_as_the_server_does(site: Site) -> None:
    found = highroad_module.load(site.folder / "tagger")("hello ignore system")
    assert found.label == "hate, spam" and list(found.scores) == LABELS
    np.testing.assert_allclose(list(found.scores.values()), site.scores("hello ignore system"), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"thresholds": [0.5]}, "one for each of the 3 labels"),
        ({"thresholds": 1.0}, "between 0 and 1"),
        ({"labels": ["a, b", "c", "d"]}, "has a comma"),
        ({"thresholds": None}, "not one of the labels"),
    ],
)
def test_an_export_that_means_nothing_is_refused(site: Site, changes: dict, reason: str, tmp_path: Path) -> None:
    options = {"labels": LABELS, "flagged": "*", "thresholds": THRESHOLDS} | changes
    with pytest.raises(highroad_module.ExportError, match=reason):
        highroad_module.export(
            site.tagger, rows(site.tokenizer, TEXTS[:2]), tmp_path / "out", name="tagger", task="classify", tokenizer=site.tokenizer,
            max_tokens=48, parity_inputs=[rows(site.tokenizer, TEXTS[:9])], licence="Apache-2.0", owner="t", **options,
        )


@pytest.mark.parametrize("member", ["scorer", "bare"])
@pytest.mark.parametrize("kind", CLIENTS)
def test_tensors_go_in_and_out_by_name(site: Site, kind: str, member: str) -> None:
    triton = CLIENTS[kind]
    client = triton.InferenceServerClient(site.url.removeprefix("http://"))
    features, country = torch.rand(5, 4), torch.arange(5)
    inputs = [triton.InferInput("features", [5, 4], "FP32"), triton.InferInput("country", [5], "INT64")]
    for tensor, values in zip(inputs, (features, country), strict=True):
        tensor.set_data_from_numpy(values.numpy())
    reply = client.infer(member, inputs)
    metadata = client.get_model_metadata(member, as_json=True) if kind == "grpc" else client.get_model_metadata(member)
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["features", "country"]
    names = [tensor["name"] for tensor in metadata["outputs"]]
    with torch.no_grad():
        scores, best = site.scorer(features, country)
    np.testing.assert_allclose(reply.as_numpy(names[0]), scores.numpy(), rtol=1e-5, atol=1e-6)
    assert (reply.as_numpy(names[1]) == best.numpy()).all()


def test_a_model_of_tensors_says_what_it_takes_and_is_replayed(site: Site) -> None:
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": [0.1, 0.2, 0.3, 0.4]},
                       {"name": "country", "datatype": "INT64", "shape": [1], "data": [3]}]}
    reply = requests.post(f"{site.url}/v2/models/scorer/infer", json=body, timeout=10)
    site.is_replayed(reply.headers["x-request-id"], body)
    for path, asked in [("/v1/embeddings", {"model": "scorer", "input": "a"}), ("/tei/scorer/embed", {"inputs": "a"})]:
        refused = requests.post(site.url + path, json=asked, timeout=10)
        assert 400 <= refused.status_code < 500 and "tensors" in refused.text, refused.text
    text = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    refused = requests.post(f"{site.url}/v2/models/scorer/infer", json=text, timeout=10)
    assert refused.status_code == 400 and "the inputs of its program, by name" in refused.text
    wrong = body | {"inputs": body["inputs"][:1]}
    missing = requests.post(f"{site.url}/v2/models/scorer/infer", json=wrong, timeout=10).json()["error"]
    assert missing == "input `country` is missing; give `features`, `country`"


def test_a_bare_program_says_that_nothing_proves_it_and_stays_what_it_was(site: Site) -> None:
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": [0.1, 0.2, 0.3, 0.4]},
                       {"name": "country", "datatype": "INT64", "shape": [1], "data": [3]}]}
    before = requests.post(f"{site.url}/v2/models/bare/infer", json=body, timeout=10)
    assert before.headers["x-highroad-development"].startswith("a bare program")
    # Whoever writes over the file changes nothing of what is served from it.
    (site.folder / "bare.pt2").write_bytes(b"nothing")
    after = requests.post(f"{site.url}/v2/models/bare/infer", json=body, timeout=10)
    assert after.json()["outputs"] == before.json()["outputs"]
    shutil.copy(site.folder / "scorer-source" / "program.pt2", site.folder / "bare.pt2")
    refused = site.run("serve", "./bare.pt2", "--listen", "127.0.0.1:0", code=2)
    assert "a bare program has no verdict and can have none: `--development` serves it as it is" in refused.stderr


def test_sets_of_labels_are_judged_and_what_no_gate_judges_serves_by_a_named_persons_word(
    site: Site, highroad: Path, call: Callable, tracking_uri: str, tmp_path: Path  # noqa: F811
) -> None:
    golden, rules = tmp_path / "golden.jsonl", tmp_path / "gates.toml"
    expected = [[label for label, word in zip(LABELS, WORDS, strict=True) if word in text] for text in TEXTS]
    # In any order; an empty list is that none holds.
    cases = [{"id": f"c{i}", "input": {"text": text}, "expected": labels[::-1]} for i, (text, labels) in enumerate(zip(TEXTS, expected, strict=True))]
    golden.write_text("".join(json.dumps(case) + "\n" for case in cases))
    rules.write_text("[[rule]]\nmetric = 'exact_match'\nfloor = 0.5\nmargin = 0.1\n")
    bless(call, golden, site.folder)
    summaries = json.loads(site.run("eval", "tagger", "--golden", golden, "--json").stdout)["summaries"]
    measured = {metric["metric"]: metric["value"] for metric in summaries[0]["metrics"]}
    assert measured["exact_match"] == 1.0 and measured["token_f1"] == 1.0
    verdict = json.loads(site.run("gate", "tagger", "--baseline", "trivial", "--golden", golden, "--gates", rules, "--json").stdout)
    assert verdict["outcome"] == "pass" and verdict["evidence"] == "bit-exact"
    page, other = tmp_path / "page.html", tmp_path / "other.jsonl"
    other.write_text('{"id": "a", "input": {"text": "hello"}, "expected": ["spam", "hate"]}\n{"id": "b", "input": {"text": "hello ignore"}, "expected": []}\n')
    site.run("eval", "tagger", "--golden", other, "--html", page)
    assert "spam, hate" in page.read_text() and "no label" in page.read_text()
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"id": "a", "input": {"text": "hello"}, "expected": ["toxic"]}\n')
    assert "`toxic`, which the package does not have" in site.run("eval", "tagger", "--golden", wrong, code=2).stderr
    refused = site.run("eval", "scorer", "--golden", golden, code=2)
    assert "compute tensors" in refused.stderr, refused.stderr

    for name in ("tagger", "scorer"):
        site.run("push", name, name, HIGHROAD_TRACKING_URI=tracking_uri)
    site.run("promote", "tagger", 1, HIGHROAD_TRACKING_URI=tracking_uri)
    word = ["--override", "--by", "ann", "--why", "read its answers", "--expires", "1d"]
    site.run("promote", "scorer", 1, *word, HIGHROAD_TRACKING_URI=tracking_uri)
    env = {"HIGHROAD_HOME": str(tmp_path / "home"), "HIGHROAD_TRACKING_URI": tracking_uri}
    command = [str(highroad), "serve", "tagger", "scorer", "--listen", "127.0.0.1:0"]
    with serving(command, tmp_path / "log", cwd=tmp_path, env=env) as url:
        reply = requests.post(f"{url}/v1/moderations", json={"input": "hello system"}, timeout=10)
        assert reply.headers["x-highroad-evidence"] == "bit-exact" and reply.json()["results"][0]["categories"]["spam"]
        assert requests.get(f"{url}/v2/models/scorer", timeout=10).headers["x-highroad-evidence"] == "override"
        through = site.run("eval", "tagger", "--golden", golden, "--through", url, "--json", HIGHROAD_TRACKING_URI=tracking_uri, code=None)
        assert json.loads(through.stdout)["summaries"][0]["metrics"][0]["value"] == 1.0, through.stderr
