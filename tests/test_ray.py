"""`highroad train --on ray` and `highroad eval --ray`: a real Ray cluster, two machines' worth of processes, a tracked run."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from cli import ROOT, call, highroad_bin  # noqa: F401
from mlflow import MlflowClient

RAY = [sys.executable, "-m", "ray.scripts.scripts"]

STANDARD = """
[model]
name = "together"
kind = "custom"
owner = "platform team"
licence = "Apache-2.0"
[environment]
python = ">=3.11"
torch = ">=2.9"
[training]
seed = 7
[evaluation]
golden = "golden/test.jsonl"
[packaging]
max_tokens = 8
"""

# Each process adds its rank; the first writes the sum and reports it.
SCRIPT = """
import argparse, os
from pathlib import Path
import mlflow, torch, torch.distributed as dist
from safetensors.torch import save_file

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path)
options = parser.parse_args()
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
if dist.get_rank() == 0:
    options.output.mkdir(parents=True, exist_ok=True)
    save_file({"total": total}, options.output / "model.safetensors")
    with mlflow.start_run(run_id=os.environ["MLFLOW_RUN_ID"]):
        mlflow.log_metrics({"total": total.item(), "world": dist.get_world_size(), "threads": torch.get_num_threads()})
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Addresses of a Ray cluster with two processors: its job server's, and its own."""
    address, dashboard = f"127.0.0.1:{free_port()}", free_port()
    start = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}", "--num-cpus=2"]
    options = ["--include-dashboard=true", f"--dashboard-port={dashboard}", "--disable-usage-stats"]
    # Its own process group, so that ending it ends this cluster and no other.
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    with log.open("wb") as output:
        # A job's `python` is the one on the path of its machine.
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        ray = subprocess.Popen(
            [*RAY, *start, *options], env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            until_answered(f"http://127.0.0.1:{dashboard}/api/version", ray, log)
            yield f"http://127.0.0.1:{dashboard}", address
        finally:
            # Ray's own way down waits half a minute for its servers; nothing here is worth saving.
            os.killpg(ray.pid, signal.SIGKILL)
            ray.wait(timeout=60)


@pytest.fixture(scope="module")
def cluster(machines):
    return machines[0]


def until_answered(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"Ray did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    repo = tmp_path_factory.mktemp("together")
    (repo / "highroad.toml").write_text(STANDARD)
    (repo / "train.py").write_text(SCRIPT)
    return repo


def test_processes_on_two_machines_train_together_in_one_run(cluster, repo, call, tracking_uri, tmp_path):
    options = ["--on", "ray", "--address", cluster, "--nnodes", 2, "--output", tmp_path, "--tracking-uri", tracking_uri]
    run_id = call("train", *options, cwd=repo, OMP_NUM_THREADS="1").stdout.strip()
    run = MlflowClient(tracking_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"total": 3.0, "world": 2.0, "threads": 1.0}
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert run.data.tags["highroad.weights.model.safetensors"] == f"sha256:{digest}"


def test_what_a_cluster_needs_is_said_before_anything_is_opened(repo, call, tracking_uri):
    refused = call("train", "--on", "ray", "--tracking-uri", tracking_uri, cwd=repo, code=2)
    assert "--output that begins with `/`" in refused.stderr
    assert "a tracking server they can reach" in call("train", "--on", "ray", cwd=repo, code=2).stderr
    shown = call("train", "--on", "slurm", "--nnodes", 2, "--output", "/shared", "--tracking-uri", tracking_uri, "--dry-run", cwd=repo)
    assert "#SBATCH --nodes=2" in shown.stdout and "sbatch" in shown.stdout


def test_shards_on_two_workers_are_one_evaluation(machines, call, tmp_path):
    call("pack", ROOT / "conformance" / "packages" / "classify-a", "-o", "package", cwd=tmp_path)
    cases = [{"id": str(n), "input": {"text": f"please say what {n}"}, "expected": "benign"} for n in range(40)]
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    options = ["eval", "package", "--golden", "golden.jsonl", "--json"]
    whole = json.loads(call(*options, "--no-cache", cwd=tmp_path).stdout)
    done = call(*options, "--ray", machines[1], "--shards", 2, cwd=tmp_path)
    joined = json.loads(done.stdout)
    assert "shard 1 of 2 is answered" in done.stderr and "shard 2 of 2 is answered" in done.stderr
    assert (joined["checked"]["n_kept"], whole["checked"]["n_kept"]) == (40, 0)
    for told in (whole, joined):
        del told["latency"], told["inputs_per_s"], told["checked"]["n_kept"]
    assert joined == whole

    (tmp_path / "golden.jsonl").write_text(json.dumps(cases[0] | {"expected": 0.5}) + "\n")
    refused = call(*options, "--ray", machines[1], "--shards", 1, cwd=tmp_path, code=2)
    assert "the model is made to classify, but the golden set asks for numbers" in refused.stderr
