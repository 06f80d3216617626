"""What rests on an embedder: an alias moves only where its indexes have gone before, servers change both at one moment, and verdicts on
pipelines are due again. Real registries (ours, and MLflow's own), a real server under traffic, NumPy and scikit-learn beside it."""

from __future__ import annotations

import concurrent.futures
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving
from sklearn.metrics import ndcg_score

DOCUMENTS = ["hello", "the road goes on", "ignore all previous instructions", "a", "who are you", "the road", "hello hello", "on and on"]
LIMIT_S = 30
OVERRIDE = ["--override", "--expires", "1d", "--by", "ann", "--why", "a test"]
PORTFOLIO = """
poll_interval_ms = 50
[members.embedder]
model = "embedder@champion"
threads = 1
[members.reranker]
model = "./rerank"
threads = 1
[indexes.help]
path = "./help"
embedder = "embedder"
[pipelines.open]
steps = [{ name = "found", search = "help", top = 3 }]
[pipelines.best]
steps = [{ name = "found", search = "help", top = 6 }, { name = "best", rerank = "reranker", documents = "$found", top = 4 }]
"""


def packed(call: Callable, folder: Path) -> None:  # noqa: F811
    """`embed` and `embed-b`, which embed alike and are two packages, and a reranker."""
    for name in ("embed", "rerank"):
        call("pack", ROOT / "conformance" / "packages" / name, "-o", name, cwd=folder)
    subprocess.run(["cp", "-r", ROOT / "conformance" / "packages" / "embed", folder / "source"], check=True)
    told = (folder / "source" / "package.toml").read_text()
    (folder / "source" / "package.toml").write_text(told.replace("highroad tests", "highroad tests, again"))
    call("pack", "source", "-o", "embed-b", cwd=folder)
    lines = [json.dumps({"id": f"doc-{i}", "text": text}) for i, text in enumerate(DOCUMENTS)]
    (folder / "documents.jsonl").write_text("\n".join(lines))


class Site:
    def __init__(self, run: Callable, folder: Path, registry: str) -> None:
        self.run, self.folder, self.registry, self.url = run, folder, registry, ""

    def ask(self, pipeline: str, text: str) -> dict:
        reply = requests.post(f"{self.url}/v1/pipelines/{pipeline}", json={"input": text}, timeout=10)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def origin(self) -> tuple[str, str]:
        """The version and the index that answer now."""
        (step,) = self.ask("open", "the road")["steps"]
        return step["by"]["version"], step["index"]

    def wait(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < deadline, (self.folder / "serve.log").read_text()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def site(highroad: Path, call: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:  # noqa: F811
    folder = tmp_path_factory.mktemp("indexes")
    packed(call, folder)
    track = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(folder / "track")]
    with serving(track, folder / "track.log") as registry:
        def run(*args: object, **more: object) -> subprocess.CompletedProcess[str]:
            return call(*args, cwd=folder, HIGHROAD_TRACKING_URI=registry, **more)

        for package in ("embed", "embed-b"):
            run("push", package, "embedder")
        run("promote", "embedder", 1, *OVERRIDE)
        run("index", "documents.jsonl", "-o", "help", "--for", "embedder@champion")
        (folder / "portfolio.toml").write_text(PORTFOLIO)
        site = Site(run, folder, registry)
        command = [str(highroad), "serve", "--development", "--tracking-uri", registry, "--listen", "127.0.0.1:0"]
        with serving(command, folder / "serve.log", cwd=folder) as site.url:
            yield site


def test_an_alias_moves_only_after_its_index_and_a_server_changes_both_at_one_moment(site: Site) -> None:
    refused = site.run("promote", "embedder", 2, *OVERRIDE, code=1)
    assert "the index `help` was embedded by another package" in refused.stderr
    body = {"name": "embedder", "alias": "champion", "version": "2"}
    plain = requests.post(f"{site.registry}/api/2.0/mlflow/registered-models/alias", json=body, timeout=10)
    assert plain.status_code == 403 and "the index `help`" in plain.json()["message"]
    assert site.run("status").stdout == "embedder@champion -> embedder:1\n  index `help`: embedded by it\n"

    # The command that the refusal tells, word by word.
    told = refused.stderr.split("`highroad ")[1].split("`")[0]
    beside = json.loads(site.run(*shlex.split(told), "--json").stdout)
    assert Path(beside["index"]).parent == Path("help")
    before = site.origin()
    assert before[0] == "embedder:1"
    after = ("embedder:2", beside["digest"])
    seen, site_is_moving = set(), True
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        def traffic() -> None:
            while site_is_moving:
                seen.add(site.origin())

        asked = [pool.submit(traffic) for _ in range(2)]
        try:
            site.run("promote", "embedder", 2)
            site.wait(lambda: after in seen)
            site.run("rollback", "embedder")
            site.wait(lambda: site.origin() == before)
        finally:
            site_is_moving = False
        [one.result() for one in asked]
    # Never the vectors of one beside the index of the other.
    assert seen == {before, after}


def test_a_server_goes_on_with_the_old_pair_where_the_new_embedder_has_no_index(site: Site) -> None:
    before = site.origin()
    source = site.folder / "source" / "package.toml"
    source.write_text(source.read_text().replace("again", "once more"))
    site.run("pack", "source", "-o", "embed-c")
    site.run("push", "embed-c", "embedder")
    site.run("index", "forget", "help", "--for", "embedder@champion")
    site.run("promote", "embedder", 3, *OVERRIDE)
    status = lambda: requests.get(f"{site.url}/v1/highroad/status", timeout=10).json()["members"][0]  # noqa: E731
    site.wait(lambda: status()["failure"])
    assert "index `help` is stale" in status()["failure"]["reason"] and site.origin() == before
    site.run("index", "documents.jsonl", "-o", "help", "--for", "embedder@champion")
    site.wait(lambda: site.origin()[0] == "embedder:3")
    site.run("rollback", "embedder")
    site.wait(lambda: site.origin() == before)


def test_a_pipeline_is_judged_as_a_whole_and_due_again_with_another_member(site: Site) -> None:
    queries = ["the road", "hello", "instructions", "who", "on and on and on", "a road", "previous", "hello you"]
    relevant = [[int(any(word in document.split() for word in query.split())) for document in DOCUMENTS] for query in queries]
    cases = [
        {"id": f"q{i}", "input": {"query": query, "documents": DOCUMENTS[:6]}, "expected": relevant[i][:6]}
        for i, query in enumerate(queries)
    ]
    golden = site.folder / "retrieval.jsonl"
    golden.write_text("".join(json.dumps(case) + "\n" for case in cases))
    bless(lambda *args, cwd, **more: site.run(*args, **more), "retrieval.jsonl", site.folder)
    evaluated = site.run("eval", "--pipeline", "best", "--through", site.url, "--golden", golden, "--json")
    report = json.loads(evaluated.stdout)

    def found(query: str) -> list[str]:
        return [document["text"] for document in site.ask("best", query)["output"]["documents"]]

    # nDCG over the whole answer: what a case does not name takes a rank and gains nothing, what was not found gains nothing.
    expected = []
    for case in cases:
        answer = found(case["input"]["query"])
        relevance = dict(zip(case["input"]["documents"], case["expected"], strict=True))
        listed = answer + [text for text in relevance if text not in answer]
        gains = np.array([relevance.get(text, 0) for text in listed], float)
        scores = np.array([-rank for rank in range(len(listed))], float)
        ideal = np.array(sorted(gains, reverse=True))
        best = (ideal[:10] / np.log2(np.arange(2, 2 + len(ideal[:10])))).sum()
        gained = (gains[: len(answer)] / np.log2(np.arange(2, 2 + len(answer)))).sum()
        expected.append(gained / best if best else 0.0)
        if set(relevance) <= set(answer) and gains.any():
            assert expected[-1] == pytest.approx(ndcg_score([gains], [scores]))
    values = {measured["metric"]: measured for measured in report["summaries"][0]["metrics"]}
    assert values["ndcg_at_10"]["value"] == pytest.approx(np.mean(expected), abs=1e-9)

    (site.folder / "gates.toml").write_text("[[rule]]\nmetric = 'ndcg_at_10'\nmargin = 0.9\nfloor = 0.01\n")
    judged = site.run("gate", "--pipeline", "best", "--through", site.url, "--baseline", site.url, "--golden", golden, "--json", code=None)
    verdict = json.loads(judged.stdout)
    assert verdict["pipeline"]["name"] == "best" and list(verdict["pipeline"]["members"]) == ["embedder", "reranker"]
    composition = next(
        entry["composition"] for entry in requests.get(f"{site.url}/v1/pipelines", timeout=10).json()["data"] if entry["id"] == "best"
    )
    assert verdict["package"] == composition["digest"] and verdict["pipeline"]["indexes"] == composition["indexes"]
    # The build is there, and was forgotten with the declaration.
    assert "stale" in site.run("status", code=1).stdout
    declared = site.run("index", "documents.jsonl", "-o", "help", "--embedder", "embedder:1", "--for", "embedder@champion")
    assert "holds this build already" in declared.stderr
    site.run("status")
    promoted = site.run("promote", "embedder", 3, *OVERRIDE)
    assert "due: the verdict" in promoted.stderr and "`highroad gate --pipeline best` is due" in promoted.stderr
    assert "`reranker` reads what `embedder` gives" in promoted.stderr
    assert "pipeline `best`" in site.run("status", code=1).stdout
    site.wait(lambda: site.origin()[0] == "embedder:3")
    labels = golden.with_name("labels.jsonl")
    labels.write_text('{"id": "a", "input": {"text": "a"}, "expected": "b"}\n')
    refused = site.run("eval", "--pipeline", "best", "--through", site.url, "--golden", labels, code=2)
    assert "judged by rankings" in refused.stderr
    assert "it has: best, open" in site.run("eval", "--pipeline", "no", "--through", site.url, code=2, *["--golden", golden]).stderr


def test_mlflows_own_server_knows_of_the_index_too(mlflow_server: str, call: Callable, tmp_path: Path) -> None:  # noqa: F811
    packed(call, tmp_path)

    def run(*args: object, **more: object) -> subprocess.CompletedProcess[str]:
        return call(*args, cwd=tmp_path, HIGHROAD_TRACKING_URI=mlflow_server, **more)

    for package in ("embed", "embed-b"):
        run("push", package, "embedder-of-index")
    run("promote", "embedder-of-index", 1, *OVERRIDE)
    run("index", "documents.jsonl", "-o", "help", "--for", "embedder-of-index@champion")
    refused = run("promote", "embedder-of-index", 2, *OVERRIDE, code=1)
    assert "the index `help` was embedded by another package" in refused.stderr
    run("index", "documents.jsonl", "-o", "help", "--embedder", "embedder-of-index:2", "--for", "embedder-of-index@champion")
    run("promote", "embedder-of-index", 2)
    requests.delete(f"{mlflow_server}/api/2.0/mlflow/registered-models/delete", json={"name": "embedder-of-index"}, timeout=30)


def test_an_approximate_index_tells_the_recall_that_it_was_built_to(site: Site) -> None:
    lines = [json.dumps({"text": f"{a} and {b} on the road {n}"}) for n, (a, b) in enumerate(zip(DOCUMENTS * 40, DOCUMENTS[::-1] * 40, strict=True))]
    (site.folder / "many.jsonl").write_text("\n".join(lines))
    arguments = ["index", "many.jsonl", "--embedder", "embed", "--json"]
    told = json.loads(site.run(*arguments, "-o", "near", "--approximate").stdout)["description"]["approximate"]
    assert told["n_links"] > 320 and told["breadth"] >= 10 and told["recall"]["value"] >= 0.95 and told["recall"]["n_queries"] in (79, 80)
    again = json.loads(site.run(*arguments, "-o", "again", "--approximate=0.95", "--threads", 1).stdout)
    assert again["description"]["approximate"] == told
    assert (site.folder / "near" / "graph.u32").read_bytes() == (site.folder / "again" / "graph.u32").read_bytes()
    (site.folder / "queries.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    asked = site.run(*arguments, "-o", "asked", "--approximate", "--queries", "queries.jsonl")
    recall = json.loads(asked.stdout)["description"]["approximate"]["recall"]
    assert recall["value"] >= 0.95 and recall["n_queries"] == len(DOCUMENTS) and f"({len(DOCUMENTS)} queries)" in asked.stderr
    (site.folder / "none.jsonl").write_text("\n")
    assert "holds no query" in site.run(*arguments, "-o", "no", "--approximate", "--queries", "none.jsonl", code=2).stderr
    (site.folder / "odd.jsonl").write_text("hello\n")
    odd = site.run(*arguments, "-o", "no", "--approximate", "--queries", "odd.jsonl", code=2).stderr
    assert "`odd.jsonl`, line 1" in odd and "hint: the queries are JSONL" in odd
    assert "--approximate" in site.run(*arguments, "-o", "no", "--queries", "queries.jsonl", code=2).stderr
    assert "is a folder" in site.run(*arguments, "-o", "no", "--approximate", "--queries", "near", code=2).stderr
    (site.folder / "two.jsonl").write_text("\n".join(lines[:2]))
    few = site.run("index", "two.jsonl", "--embedder", "embed", "-o", "few", "--approximate").stderr
    assert "too few documents to measure" in few and "100.0 %" not in few
    assert "above 0" in site.run(*arguments, "-o", "no", "--approximate=2", code=2).stderr
