"""`highroad eval --shard` and `--merge`, weights in a gate: what several runs answer is what one run answers."""

import json
import random

import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401

WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
N_CASES = 90
RULES = "[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\n[[rule]]\nmetric = 'log_loss'\nmargin = 0.5\n"


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call):  # noqa: F811
    """Packages `a` and `b`, a golden set of labels, the same set with weights."""
    folder = tmp_path_factory.mktemp("shards")
    for name in "ab":
        call("pack", ROOT / "conformance" / "packages" / f"classify-{name}", "-o", name, cwd=folder)
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) + f" {n}" for n in range(N_CASES)]
    write(folder / "all.jsonl", [{"id": f"c{n}", "input": {"text": text}, "expected": "benign"} for n, text in enumerate(texts)])
    labels = answers(call, folder, "a", "all.jsonl")
    cases = [{"id": f"c{n}", "input": {"text": text}, "expected": labels[n], "slices": [["even", "odd"][n % 2]]} for n, text in enumerate(texts)]
    write(folder / "golden.jsonl", cases)
    write(folder / "weighted.jsonl", [case | {"weight": 5 if n % 9 == 0 else 1} for n, case in enumerate(cases)])
    (folder / "gates.toml").write_text(RULES)
    for name in ("golden.jsonl", "weighted.jsonl"):
        bless(call, name, folder)
    return folder


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def answers(call, folder, package, golden):  # noqa: F811
    call("eval", package, "--golden", golden, "--out", "answers.json", cwd=folder)
    return [case["value"]["class"]["label"] for case in json.loads((folder / "answers.json").read_text())["cases"]]


def timeless(told: str) -> dict:
    """What does not depend on time, nor on who answered first."""
    found = json.loads(told)
    for key in ("latency", "inputs_per_s", "created_at", "speed"):
        found.pop(key, None)
    found.get("checked", {}).pop("n_kept", None)
    return found


def test_shards_join_to_the_answers_metrics_and_verdict_of_one_run(desk, call):  # noqa: F811
    shards = {}
    for package in "ab":
        shards[package] = [f"{package}{number}.json" for number in (1, 2, 3)]
        for number, path in enumerate(shards[package], 1):
            call("eval", package, "--golden", "golden.jsonl", "--shard", f"{number}/3", "--out", path, "--no-cache", cwd=desk)
    whole = call("eval", "a", "--golden", "golden.jsonl", "--json", "--out", "whole.json", "--no-cache", cwd=desk).stdout
    merged = ["eval", "a", "--golden", "golden.jsonl", "--json", "--out", "merged.json"]
    assert timeless(call(*merged, "--merge", *reversed(shards["a"]), cwd=desk).stdout) == timeless(whole)
    assert timeless((desk / "merged.json").read_text()) == timeless((desk / "whole.json").read_text())

    gate = ["gate", "b", "--baseline", "a", "--golden", "golden.jsonl", "--json"]
    judged = call(*gate, "--no-cache", cwd=desk, code=1).stdout
    of_shards = ["--answers-of-shards", *shards["b"], "--baseline-answers-of-shards", *shards["a"]]
    assert timeless(call(*gate, *of_shards, cwd=desk, code=1).stdout) == timeless(judged)

    refused = call(*merged, "--merge", *shards["a"][:2], cwd=desk, code=2)
    assert "shard 3/3 is missing" in refused.stderr
    refused = call(*merged, "--merge", shards["a"][0], *shards["b"][1:], cwd=desk, code=2)
    assert "differ in the package" in refused.stderr
    refused = call("eval", "b", "--golden", "golden.jsonl", "--merge", *shards["a"], cwd=desk, code=2)
    assert "the shards were answered by package" in refused.stderr


def test_weights_move_metrics_and_the_verdict_says_what_they_cost(desk, call):  # noqa: F811
    from sklearn.metrics import accuracy_score, log_loss

    call("eval", "b", "--golden", "weighted.jsonl", "--out", "b.json", cwd=desk)
    told = json.loads(call("eval", "b", "--golden", "weighted.jsonl", "--json", cwd=desk).stdout)
    cases = [json.loads(line) for line in (desk / "weighted.jsonl").read_text().splitlines()]
    results = json.loads((desk / "b.json").read_text())
    expected, weights = [case["expected"] for case in cases], [case["weight"] for case in cases]
    answered = [case["value"]["class"] for case in results["cases"]]
    found = {measured["metric"]: measured["value"] for measured in told["summaries"][0]["metrics"] if "label" not in measured}
    accuracy = accuracy_score(expected, [answer["label"] for answer in answered], sample_weight=weights)
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    loss = log_loss(expected, [answer["scores"] for answer in answered], labels=results["labels"], sample_weight=weights)
    assert found["log_loss"] == pytest.approx(loss, abs=1e-6)
    effective = sum(weights) ** 2 / sum(weight**2 for weight in weights)
    assert told["summaries"][0]["n_effective"] == pytest.approx(effective)

    verdict = json.loads(call("gate", "b", "--baseline", "a", "--golden", "weighted.jsonl", "--json", cwd=desk, code=1).stdout)
    check = verdict["checks"][0]
    assert check["candidate"] == pytest.approx(accuracy, abs=1e-12) and check["test"] != "exact_mcnemar"
    assert f"by their weights the {N_CASES} cases count as {effective:.0f}" in check["power_note"]
    changed = call("golden", "diff", "golden.jsonl", "weighted.jsonl", "--json", cwd=desk, code=1).stdout
    assert {tuple(edited["changed"]) for edited in json.loads(changed)["edited"]} == {("weight",)}
    call("golden", "edit", "c1", "--golden", "weighted.jsonl", "--weight", 3, cwd=desk)
    refused = call("gate", "b", "--baseline", "a", "--golden", "weighted.jsonl", cwd=desk, code=2)
    assert "1 edited (`c1`)" in refused.stderr
    refused = call("golden", "edit", "c1", "--golden", "weighted.jsonl", "--weight", 0, cwd=desk, code=2)
    assert "weight 0 must be" in refused.stderr
