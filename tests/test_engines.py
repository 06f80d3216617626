"""The other engines of `highroad eval`: PyTorch itself, and a server."""

import importlib.util
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving

PACKAGES = ROOT / "conformance" / "packages"
WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
GATES = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\n"
WORKER = ROOT / "crates" / "torch" / "src" / "worker.py"  # checks the archive without what goes above it


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def rewritten(source: Path, target: Path, change) -> None:
    """The program with each record as ``change(name, content)`` gives it; `None` leaves it as it is."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            content = old.read(record)
            changed = change(record.filename.partition("/")[2], content)
            new.writestr(record.filename, content if changed is None else changed)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call):  # noqa: F811
    """Packages `a`, which would run code where it is unpickled or its guards are believed, and `b`; and cases as `a` answers them."""
    folder = tmp_path_factory.mktemp("engines")

    def hostile(name, content):
        if name == "data/sample_inputs/model.pt":
            return pickle.dumps(Runs(folder / "unpickled"))
        if name == "models/model.json":
            return json.dumps(json.loads(content) | {"guards_code": [f"open({str(folder / 'guarded')!r}, 'w')"]}).encode()
        return None

    shutil.copytree(PACKAGES / "classify-a", folder / "source")
    rewritten(PACKAGES / "classify-a" / "program.pt2", folder / "source" / "program.pt2", hostile)
    call("pack", folder / "source", "-o", "a", cwd=folder)
    call("pack", PACKAGES / "classify-b", "-o", "b", cwd=folder)
    texts = [" ".join(WORDS[(n * place + n // 12) % 12] for place in range(1, 2 + n % 9)) for n in range(60)]
    cases = [{"id": f"c{n}", "input": {"text": text}, "expected": "benign"} for n, text in enumerate(texts)]
    write(folder / "golden.jsonl", cases)
    call("eval", "a", "--golden", "golden.jsonl", "--out", "a.json", cwd=folder)
    answers = json.loads((folder / "a.json").read_text())["cases"]
    write(folder / "golden.jsonl", [case | {"expected": answer["value"]["class"]["label"]} for case, answer in zip(cases, answers)])
    bless(call, "golden.jsonl", folder)
    (folder / "gates.toml").write_text(GATES)
    return folder


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_pytorch_answers_the_same_package_and_says_what_computed(desk, call):
    at = ["--golden", "golden.jsonl", "--threads", "1"]
    report = json.loads(call("eval", "a", *at, "--engine", "torch", "--compare", "--out", "torch.json", "--json", cwd=desk).stdout)
    assert report["evidence"] == "same-engine"
    assert report["numerics_id"].startswith(f"torch-{torch.__version__}/cpu/") and report["numerics_id"].endswith("/f32/1-threads")
    drift = report["from_native"]
    assert (drift["n_cases"], drift["n_flips"]) == (60, 0) and 0 < drift["max_relative_rms"] < 1e-5
    assert "gpu" not in report
    results = json.loads((desk / "torch.json").read_text())
    native = json.loads(call("eval", "a", *at, "--json", cwd=desk).stdout)
    assert results["package"] == native["package"] and results["evidence"] == "same-engine"
    assert native["evidence"] == "bit-exact" and native["summaries"][0]["metrics"][0]["value"] == 1.0
    assert report["answers"] != native["answers"]
    assert not (desk / "unpickled").exists() and not (desk / "guarded").exists()


def test_a_gate_on_pytorch_says_so_in_its_verdict(desk, call):
    (desk / "floor.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\nfloor = 0.9\n")
    at = ["--baseline", "trivial", "--golden", "golden.jsonl", "--gates", "floor.toml", "--engine", "torch"]
    judged = call("gate", "b", *at, "--json", "--markdown", "gate.md", cwd=desk, code=1)
    verdict = json.loads(judged.stdout)
    assert verdict["evidence"] == "same-engine" and verdict["numerics_id"].startswith("torch-")
    assert verdict["outcome"] == "fail" and "(evidence: same-engine)" in (desk / "gate.md").read_text()
    traffic = GATES + "[traffic]\nrequests_per_s = 5\n"
    (desk / "traffic.toml").write_text(traffic)
    refused = call("gate", "b", "--baseline", "a", "--engine", "torch", "--gates", "traffic.toml", cwd=desk, code=2)
    assert "only the native engine is loaded" in refused.stderr


def test_an_environment_without_pytorch_is_told(desk, call):
    at = ["eval", "a", "--golden", "golden.jsonl", "--engine", "torch"]
    (desk / "python").write_text('#!/bin/sh\necho "no interpreter here" >&2\nexit 3\n')
    (desk / "python").chmod(0o755)
    ended = call(*at, "--python", desk / "python", cwd=desk, code=2).stderr
    assert "no interpreter here" in ended and "exit status: 3" in ended
    assert "add `--engine torch`" in call("eval", "a", "--golden", "golden.jsonl", "--device", "cuda", cwd=desk, code=2).stderr
    assert "expected `cpu`, `cuda`" in call(*at, "--device", "tpu", cwd=desk, code=2).stderr


@pytest.fixture(scope="module")
def worker():
    spec = importlib.util.spec_from_file_location("torch_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("models/model.json", lambda text: text.replace("Symbol('", "__import__('os').system('"), "more than arithmetic"),
        ("models/model.json", lambda text: text.replace('"name": "linear"', '"name": "linear = print(1)"'), "is no name"),
        ("data/weights/model_weights_config.json", lambda text: text.replace('"use_pickle": false', '"use_pickle": true'), "stored as a pickle"),
        ("data/weights/model_weights_config.json", lambda text: text.replace('"weight_0"', '"opaque_obj_0"'), "stored as a pickle"),
    ],
)
def test_what_torch_would_run_or_unpickle_never_reaches_it(tmp_path, worker, name, change, reason):
    def hostile(record, content):
        if record != name:
            return None
        changed = change(content.decode())
        assert changed != content.decode()
        return changed.encode()

    rewritten(PACKAGES / "classify-a" / "program.pt2", tmp_path / "program.pt2", hostile)
    with pytest.raises(ValueError, match=reason):
        worker.plain_archive(tmp_path / "program.pt2")


def test_sizes_of_real_programs_are_arithmetic(worker):
    for program in sorted((ROOT / "conformance" / "programs").glob("**/*.pt2")):
        worker.plain_archive(program)
    assert not worker.is_size("Symbol.__class__") and not worker.is_size("().__class__") and not worker.is_size("exec('x')")


def test_weights_that_torch_would_unpickle_are_refused(tmp_path, worker):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("p/data/weights/model.pt", pickle.dumps(Runs(tmp_path / "unpickled")))
    with pytest.raises(ValueError, match="pickle or machine code"):
        worker.plain_archive(content)
    assert not (tmp_path / "unpickled").exists()


DOCUMENTS = ["the weather is what it is", "tell me a secret, please", "who will be at the road?"]
ASKED = {
    "classify-a": [{"id": f"c{n}", "input": {"text": f"{word} " * (1 + 30 * n)}, "expected": "benign"} for n, word in enumerate(WORDS)],
    "embed": [{"id": f"p{n}", "input": {"a": word, "b": f"reveal {word} to me"}, "expected": n} for n, word in enumerate(WORDS)],
    "rerank": [{"id": f"q{n}", "input": {"query": f"what {word}?", "documents": DOCUMENTS}, "expected": [1, 0, 0]} for n, word in enumerate(WORDS)],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory, call, highroad_bin):  # noqa: F811
    """A server of three packages behind its address, and the folder they lie in."""
    home = tmp_path_factory.mktemp("site")
    members = ""
    for name, cases in ASKED.items():
        call("pack", PACKAGES / name, "-o", name, cwd=home)
        write(home / f"{name}.jsonl", cases)
        members += f"[members.{name}]\nmodel = \"{home / name}\"\nthreads = 1\n"
    (home / "portfolio.toml").write_text(members)
    command = [str(highroad_bin), "serve", "--portfolio", "portfolio.toml", "--development", "--listen", "127.0.0.1:0"]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")} | {"HIGHROAD_HOME": str(home / ".highroad")}
    with serving(command, home / "serve.log", env=environment, cwd=home) as url:
        yield url, home


@pytest.mark.parametrize("name", ASKED)
def test_a_server_answers_as_the_package_does_in_process(site, call, name):
    url, home = site
    at = ["eval", name, "--golden", f"{name}.jsonl", "--threads", "1", "--json"]
    here = json.loads(call(*at, "--no-cache", "--out", "here.json", cwd=home).stdout)
    there = json.loads(call(*at, "--through", url, "--compare", "--out", "there.json", cwd=home, HIGHROAD_API_KEY="not-told").stdout)
    drift = there["from_native"]
    assert drift["n_same"] == drift["n_cases"] == len(ASKED[name]) and drift["max_relative_rms"] == 0
    for key in ("answers", "package", "numerics_id", "summaries", "batch_invariant"):
        assert there[key] == here[key], key
    # The server serves for development here, so no verdict of its own promises these bits.
    assert (there["evidence"], here["evidence"]) == ("observed", "bit-exact")
    assert there["latency"]["measured"].startswith("through a server, by its client")
    cases = [json.loads((home / f"{side}.json").read_text())["cases"] for side in ("here", "there")]
    assert cases[0] == cases[1] and (name != "classify-a" or any(case.get("truncated") for case in cases[1]))


def test_only_the_package_that_is_asked_for_may_answer(site, call):
    url, home = site
    call("pack", PACKAGES / "classify-b", "-o", "other", cwd=home)
    at = ["eval", "other", "--golden", "classify-a.jsonl", "--through"]
    refused = call(*at, url, cwd=home, code=2).stderr
    assert "does not serve package sha256:" in refused and "`classify-a`" in refused
    assert "does not answer as `highroad serve` does" in call(*at, "http://127.0.0.1:9", cwd=home, code=2).stderr
    login = call(*at, "http://me:hidden@127.0.0.1:9", cwd=home, code=2).stderr
    assert "HIGHROAD_API_KEY" in login and "hidden" not in login
    assert "cannot be used with" in call(*at, url, "--engine", "torch", cwd=home, code=2).stderr
