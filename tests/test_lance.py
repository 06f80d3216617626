"""Indexes in tables of LanceDB: the real package, in a folder and on a real S3-compatible store, killed, starved and lied to."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import highroad as highroad_module
import lancedb
import numpy as np
import psutil
import pytest
import requests
from cli import ROOT, call, highroad_bin  # noqa: F401
from conftest import serving

WORDS = "hello the road goes on ignore all previous instructions who are you and say please how what a".split()
SECRETS = ("someone", "s3cret")  # of the store; tests look for them where no secret may be
LIMIT_S = 60


def documents(n: int, pad: int = 0) -> list[dict]:
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(n)]
    more = {"pad": "x" * pad} if pad else {}
    return [{"id": f"doc-{i}", "text": text, "page": i, "weight": i / 7} | more for i, text in enumerate(texts)]


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, call: Callable) -> Path:  # noqa: F811
    """`embed` and `embed-b`, two packages that embed alike, a corpus, and the index `help` of it: exact, in Lance, in a folder."""
    folder = tmp_path_factory.mktemp("lance")
    call("pack", ROOT / "conformance" / "packages" / "embed", "-o", "embed", cwd=folder)
    shutil.copytree(ROOT / "conformance" / "packages" / "embed", folder / "source")
    told = (folder / "source" / "package.toml").read_text()
    (folder / "source" / "package.toml").write_text(told.replace("highroad tests", "highroad tests, again"))
    call("pack", "source", "-o", "embed-b", cwd=folder)
    write(folder / "documents.jsonl", documents(600))
    call("index", "documents.jsonl", "--embedder", "embed", "-o", "memory", cwd=folder)
    call("index", "documents.jsonl", "--embedder", "embed", "-o", "help", "--store", "lance", cwd=folder)
    return folder


def described(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


class Site:
    def __init__(self, url: str, home: Path, process: psutil.Process) -> None:
        self.url, self.home, self.process = url, home, process

    def ask(self, text: str, pipeline: str = "open") -> requests.Response:
        return requests.post(f"{self.url}/v1/pipelines/{pipeline}", json={"input": text}, timeout=30)

    def found(self, text: str, pipeline: str = "open") -> list[dict]:
        reply = self.ask(text, pipeline)
        assert reply.status_code == 200, reply.text
        return reply.json()["output"]["documents"]

    def log(self) -> str:
        return (self.home / "serve.log").read_text()

    def metric(self, start: str) -> float:
        lines = requests.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))

    def status(self) -> dict:
        return requests.get(f"{self.url}/v1/highroad/status", timeout=30).json()["members"][0]

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in self.process.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "-P" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found

    def wait(self, holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


def portfolio(desk: Path, indexes: dict[str, tuple[Path, dict]], python: str = sys.executable, embedder: str = "embed") -> str:
    text = f'[members.embedder]\nmodel = "{desk / embedder}"\nthreads = 1\n'
    for name, (path, keys) in indexes.items():
        keys = {"path": str(path), "embedder": "embedder"} | keys
        text += f"[indexes.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        text += f'[pipelines.{name}]\nsteps = [{{ name = "found", search = "{name}", top = 5 }}]\n'
    return text


@contextlib.contextmanager
def site(highroad: Path, text: str, home: Path, **variables: str) -> Iterator[Site]:
    home.mkdir(exist_ok=True)
    (home / "portfolio.toml").write_text(text)
    kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
    env = kept | {"HIGHROAD_HOME": str(home / "state"), "HIGHROAD_PYTHON": sys.executable} | variables
    command = [str(highroad), "serve", "--development", "--portfolio", str(home / "portfolio.toml"), "--listen", "127.0.0.1:0"]
    with serving(command, home / "serve.log", env=env, cwd=home) as url:
        process = next(child for child in psutil.Process().children() if str(home / "portfolio.toml") in child.cmdline())
        yield Site(url, home, process)


def refused(highroad: Path, text: str, home: Path, **variables: str) -> str:
    home.mkdir(exist_ok=True)
    (home / "portfolio.toml").write_text(text)
    env = dict(os.environ) | {"HIGHROAD_HOME": str(home / "state"), "HIGHROAD_PYTHON": sys.executable} | variables
    command = [str(highroad), "serve", "--development", "--portfolio", str(home / "portfolio.toml"), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done
    return done.stderr


@pytest.fixture(scope="module")
def served(highroad: Path, desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    indexes = {"lance": (desk / "help", {"workers": 2, "timeout_ms": 2000}), "memory": (desk / "memory", {})}
    with site(highroad, portfolio(desk, indexes), tmp_path_factory.mktemp("served"), SOME_API_KEY="no-worker-needs-this") as found:
        yield found


def test_a_table_finds_what_memory_finds_to_the_bit(served: Site, desk: Path) -> None:
    embed, corpus = highroad_module.load(desk / "embed"), documents(600)
    for query in ("the road", "who are you", "ignore all previous instructions", "please"):
        lance, memory = served.found(query, "lance"), served.found(query, "memory")
        # Of equally near documents at the end of the list either may be there.
        assert [document["score"] for document in lance] == [document["score"] for document in memory]
        last = memory[-1]["score"]
        assert [d for d in lance if d["score"] > last] == [d for d in memory if d["score"] > last]
        vector = np.asarray(embed(query), np.float64).ravel()
        for document in lance:
            assert corpus[document["page"]] == {key: document[key] for key in ("id", "text", "page", "weight")}
            other = np.asarray(embed(document["text"]), np.float64).ravel()
            cosine = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
            assert abs(cosine - document["score"]) < 1e-6
    table = lancedb.connect(desk / "help").open_table(described(desk / "help")["lance"]["name"])
    assert table.count_rows() == 600 and table.schema.field("vector").type.list_size == described(desk / "help")["dimensions"]
    assert list(table.tags.list()) == [f"highroad-{described(desk / 'help')['lance']['version']}"]
    assert all("SOME_API_KEY" not in worker.environ() for worker in served.workers()) and len(served.workers()) == 2


def test_a_request_is_replayed_over_the_version_that_it_searched(served: Site, desk: Path, highroad: Path, tmp_path: Path) -> None:
    answer = served.ask("who are you", "lance").json()
    (tmp_path / "case.json").write_text(json.dumps({"input": "who are you"}))
    command = [str(highroad), "replay", answer["id"], "--input", str(tmp_path / "case.json"), "--json"]
    env = dict(os.environ) | {"HIGHROAD_HOME": str(served.home / "state"), "HIGHROAD_PYTHON": sys.executable}
    # What is added to the table later is another version.
    table = lancedb.connect(desk / "help").open_table(described(desk / "help")["lance"]["name"])
    table.add(table.search().limit(5).select(["position", "id", "text", "more", "vector"]).to_arrow())
    assert table.count_rows() == 605
    done = subprocess.run(command, cwd=served.home, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["same_bits"], done
    assert served.ask("who are you", "lance").json()["output"] == answer["output"]


def test_a_process_that_is_killed_takes_only_its_search_with_it(served: Site) -> None:
    right, stop, replies = served.found("the road", "lance"), time.monotonic() + 5, []

    def ask() -> None:
        while time.monotonic() < stop:
            reply = served.ask("the road", "lance")
            replies.append((reply.status_code, reply.json()))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        time.sleep(0.5)
        max(served.workers(), key=lambda worker: sum(worker.cpu_times()[:2])).send_signal(signal.SIGKILL)
        [one.result() for one in asking]
    failed = [body for code, body in replies if code != 200]
    assert len(replies) > 20 and len(failed) <= 2, (len(replies), failed)
    assert all(code in (200, 503) and (code != 200 or body["output"]["documents"] == right) for code, body in replies)
    served.wait(lambda: served.metric('highroad_index_workers{index="lance"}') == 2)
    assert served.metric('highroad_index_worker_ends_total{index="lance",reason="ended"}') == 1
    assert served.status()["failure"] is None


def test_a_process_that_hangs_is_ended_in_time_and_readiness_tells(served: Site) -> None:
    stopped = served.workers()
    for worker in stopped:
        worker.suspend()
    begun = time.monotonic()
    reply = served.ask("a-text-that-no-log-may-hold", "lance")
    assert reply.status_code == 503 and time.monotonic() - begun < 15, reply.text
    assert served.ask("hello", "memory").status_code == 200
    served.wait(lambda: served.metric('highroad_index_worker_ends_total{index="lance",reason="hung"}') >= 1)
    for worker in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
    served.wait(lambda: served.metric('highroad_index_workers{index="lance"}') == 2)
    assert "did not answer within 2 s" in served.log() and "a-text-that-no-log-may-hold" not in served.log()
    served.wait(lambda: requests.get(f"{served.url}/ready", timeout=10).status_code == 200)


@pytest.mark.parametrize("kind", ["ivf-flat", "ivf-pq", "ivf-hnsw-sq"])
def test_an_approximate_index_reaches_the_recall_that_it_tells(desk: Path, call: Callable, kind: str) -> None:  # noqa: F811
    options = ["--store", "lance", "--approximate=0.9", "--ann", kind]
    call("index", "documents.jsonl", "--embedder", "embed", "-o", f"near-{kind}", *options, cwd=desk)
    told = described(desk / f"near-{kind}")["lance"]
    ann = told["ann"]
    assert ann["kind"] == kind and ann["recall"]["value"] >= 0.9 and ann["recall"]["n_queries"] == 256
    assert 1 <= ann["n_probes"] <= ann["n_partitions"]
    # Measured again, by LanceDB and NumPy alone.
    table = lancedb.connect(desk / f"near-{kind}").open_table(told["name"])
    table.checkout(told["version"])
    rows = table.search().select(["position", "vector"]).limit(600).to_arrow().sort_by("position")
    vectors = np.stack(rows["vector"].to_numpy(zero_copy_only=False))
    shares = []
    for own in range(0, 600, 20):
        scores = vectors @ vectors[own]
        search = table.search(vectors[own], vector_column_name="vector").distance_type("l2").nprobes(ann["n_probes"]).limit(11)
        found = search.refine_factor(ann["refine"]).select(["position", "_distance"]).to_arrow()["position"].to_pylist()
        found = [position for position in found if position != own][:10]
        least = np.sort(np.delete(scores, own))[-10]
        shares.append(np.mean(scores[found] >= least - 1e-6) if found else 0)
    assert np.mean(shares) > 0.8


def test_a_second_build_goes_where_the_first_is(desk: Path, call: Callable) -> None:  # noqa: F811
    shutil.copytree(desk / "near-ivf-flat", desk / "two")
    call("index", "documents.jsonl", "--embedder", "embed-b", "-o", "two", cwd=desk)
    (beside,) = [path for path in (desk / "two").iterdir() if (path / "index.json").exists()]
    assert described(beside)["lance"]["ann"]["kind"] == "ivf-flat"
    assert described(beside)["embedder"]["package"] != described(desk / "two")["embedder"]["package"]
    again = call("index", "documents.jsonl", "--embedder", "embed-b", "-o", "two", cwd=desk, code=2)
    assert "exists already" in again.stderr


def test_an_index_in_a_bucket_is_built_and_served_without_its_secrets_anywhere(
    highroad: Path, desk: Path, call: Callable, s3: Path, tmp_path: Path  # noqa: F811
) -> None:
    (s3 / "tables").mkdir()
    options = ["--store", "lance", "--to", "s3://tables/help", "--approximate"]
    built = call("index", desk / "documents.jsonl", "--embedder", desk / "embed", "-o", "far", *options, cwd=tmp_path)
    told = described(tmp_path / "far")["lance"]
    assert told["uri"] == "s3://tables/help" and list((tmp_path / "far").iterdir()) == [tmp_path / "far" / "index.json"]
    assert (s3 / "tables" / "help" / f"{told['name']}.lance").is_dir()
    with site(highroad, portfolio(desk, {"open": (tmp_path / "far", {"workers": 1}), "memory": (desk / "memory", {})}), tmp_path / "home") as found:
        near, exact = found.found("the road goes on"), found.found("the road goes on", "memory")
        assert near[0]["score"] == exact[0]["score"]
        (worker,) = found.workers()
        shown = " ".join(worker.cmdline()) + found.log() + requests.get(f"{found.url}/v1/highroad/portfolio", timeout=10).text
        assert worker.environ()["AWS_SECRET_ACCESS_KEY"] == SECRETS[1]
    shown += built.stderr + built.stdout + (tmp_path / "far" / "index.json").read_text()
    assert not any(secret in shown for secret in SECRETS)
    for uri, reason in {"s3://someone:s3cret@tables/x": "nothing else", "http://tables/x": "is no place of a table"}.items():
        wrong = call("index", desk / "documents.jsonl", "--embedder", desk / "embed", "-o", "no", "--store", "lance", "--to", uri, cwd=tmp_path, code=2)
        assert reason in wrong.stderr and "s3cret" not in wrong.stderr
    # Keys that open nothing, and a bucket that is not there.
    text = portfolio(desk, {"open": (tmp_path / "far", {"workers": 1})})
    told = refused(highroad, text, tmp_path / "home", AWS_SECRET_ACCESS_KEY="another-secret", AWS_MAX_ATTEMPTS="1")
    assert "the index in LanceDB at `s3://tables/help`" in told and "another-secret" not in told


def test_credentials_of_a_file_open_a_bucket_too(desk: Path, call: Callable, s3: Path, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    (s3 / "tables").mkdir()
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = someone\naws_secret_access_key = s3cret\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    write(tmp_path / "few.jsonl", documents(3))
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_PROFILE": "team"}
    call("index", "few.jsonl", "--embedder", desk / "embed", "-o", "far", "--store", "lance", "--to", "s3://tables", cwd=tmp_path, **files)
    assert described(tmp_path / "far")["n_documents"] == 3


def test_a_corpus_goes_through_less_memory_than_it_takes(desk: Path, call: Callable, tmp_path: Path) -> None:  # noqa: F811
    limit_mb = 300  # LanceDB and Python take two thirds of it
    with (tmp_path / "large.jsonl").open("w") as file:
        for line in documents(360, pad=900_000):
            file.write(json.dumps(line) + "\n")
    assert (tmp_path / "large.jsonl").stat().st_size > (limit_mb << 20)
    options = ["--embedder", desk / "embed", "-o", "large", "--store", "lance", "--memory-mb"]
    call("index", "large.jsonl", *options, limit_mb, cwd=tmp_path)
    assert described(tmp_path / "large")["n_documents"] == 360
    (tmp_path / "large.jsonl").unlink()
    shutil.rmtree(tmp_path / "large")
    # That there is a limit, and that one which is too small says so.
    told = call("index", write(tmp_path / "few.jsonl", documents(5)), *options, 100, cwd=tmp_path, code=2)
    assert "of memory and was ended: it may take 100 MiB" in told.stderr and not (tmp_path / "large").exists()


def test_a_build_that_was_killed_is_no_index_and_goes_on(highroad: Path, desk: Path, call: Callable, tmp_path: Path) -> None:  # noqa: F811
    # Each append holds 32 MiB.
    write(tmp_path / "documents.jsonl", documents(40, pad=900_000))
    command = [str(highroad), "index", "documents.jsonl", "--embedder", str(desk / "embed"), "-o", "slow", "--store", "lance"]
    env = dict(os.environ) | {"HIGHROAD_HOME": str(tmp_path / "state"), "HIGHROAD_PYTHON": sys.executable}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".index-*/*.lance/data/*.lance")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        time.sleep(0.05)
        process.kill()
    assert not (tmp_path / "slow").exists()
    done = call("index", "documents.jsonl", "--embedder", desk / "embed", "-o", "slow", "--store", "lance", cwd=tmp_path)
    assert described(tmp_path / "slow")["n_documents"] == 40 and not list(tmp_path.glob(".index-*"))
    told = described(tmp_path / "slow")
    rows = lancedb.connect(tmp_path / "slow").open_table(told["lance"]["name"]).to_arrow()
    assert rows["position"].to_pylist() == list(range(40)), "in order, each once"
    assert "are there from an earlier build" in done.stderr
    vectors = np.stack(rows["vector"].to_numpy(zero_copy_only=False))
    assert told["vectors"] == "sha256:" + hashlib.sha256(vectors.astype("<f4").tobytes()).hexdigest()
    embed = highroad_module.load(desk / "embed")
    for position in range(0, 40, 5):
        vector = np.asarray(embed(rows["text"][position].as_py()), np.float64).ravel()
        np.testing.assert_allclose(vectors[position], vector / np.linalg.norm(vector), atol=1e-6)


def test_what_is_not_what_the_description_says_does_not_serve(highroad: Path, desk: Path, tmp_path: Path) -> None:
    def with_description(change: Callable[[dict], None]) -> str:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(desk / "help", folder)
        told = described(folder)
        change(told)
        (folder / "index.json").write_text(json.dumps(told))
        return refused(highroad, portfolio(desk, {"open": (folder, {"workers": 1})}), tmp_path / "home")

    assert "no longer exists" in with_description(lambda told: told["lance"].update(version=999))
    assert "and the index says 601 of 16" in with_description(lambda told: told.update(n_documents=601))
    assert "and the index says 600 of 8" in with_description(lambda told: told.update(dimensions=8))
    for change in (
        lambda told: told["lance"].update(name="../../etc"),
        lambda told: told["lance"].update(uri="http://169.254.169.254/latest"),
        lambda told: told["lance"].update(ann={"kind": "ivf-flat"}),
        lambda told: told.update(format=1),
        lambda told: told.update(more=1),
    ):
        assert "is no index" in with_description(change)
    (tmp_path / "changed" / "index.json").write_text("{")
    assert "is no index" in refused(highroad, portfolio(desk, {"open": (tmp_path / "changed", {})}), tmp_path / "home")


def test_what_lance_says_is_told_without_the_places_in_its_code(highroad: Path, desk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gutted"
    shutil.copytree(desk / "help", folder)
    for file in folder.glob("*.lance/data/*.lance"):
        file.unlink()
    with site(highroad, portfolio(desk, {"open": (folder, {"workers": 1})}), tmp_path / "home") as found:
        answer = found.ask("hello")
        told = answer.text + found.log()
    assert answer.status_code >= 500 and "Not found" in told and ".rs:" not in told, told


def test_options_and_environments_that_do_not_fit_are_told(highroad: Path, desk: Path, call: Callable, tmp_path: Path) -> None:  # noqa: F811
    told = refused(highroad, portfolio(desk, {"open": (desk / "memory", {"workers": 1})}), tmp_path / "home")
    assert "is not in LanceDB" in told
    told = refused(highroad, portfolio(desk, {"open": (desk / "help", {"workers": 65})}), tmp_path / "home")
    assert "`workers` is from 1 to 64" in told
    told = refused(highroad, portfolio(desk, {"open": (desk / "help", {"colour": 1})}), tmp_path / "home")
    assert "there is no `colour`" in told
    told = refused(highroad, portfolio(desk, {"open": (desk / "help", {})}, embedder="embed-b"), tmp_path / "home")
    assert "index `open` is stale" in told
    told = refused(highroad, portfolio(desk, {"open": (desk / "help", {"memory_mb": 50})}), tmp_path / "home")
    assert "it may take 50 MiB" in told
    # An interpreter without the package.
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).resolve()}" -S "$@"\n')
    bare.chmod(0o755)
    told = refused(highroad, portfolio(desk, {"open": (desk / "help", {"python": str(bare)})}), tmp_path / "home")
    assert "No module named 'lancedb'" in told and "pip install 'lancedb>=0.40'" in told
    for arguments, reason in [
        (["--to", "s3://a"], "add `--store lance`"),
        (["--store", "lance", "--ann", "ivf-pq"], "--approximate"),
        (["--store", "lance", "--approximate", "--ann", "tree"], "expected `ivf-flat`"),
        (["--store", "disk"], "expected `folder` or `lance`"),
        (["--store", "lance", "--python", str(bare)], "pip install 'lancedb>=0.40'"),
    ]:
        done = call("index", desk / "documents.jsonl", "--embedder", desk / "embed", "-o", "no", *arguments, cwd=tmp_path, code=2)
        assert reason in done.stderr and not (tmp_path / "no").exists(), done.stderr
    write(tmp_path / "twice.jsonl", [*documents(5), {"id": "doc-3", "text": "again"}])
    done = call("index", "twice.jsonl", "--embedder", desk / "embed", "-o", "no", "--store", "lance", cwd=tmp_path, code=2)
    assert "the id `doc-3` is there twice" in done.stderr and not list(tmp_path.glob(".index-*"))
