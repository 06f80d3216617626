"""Metrics of one's own: a Python function and a program, as `eval` and `gate` run them."""

from __future__ import annotations

import json
import sys

import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401

N_CASES = 60
FUNCTION = """
import words

def length(case):
    print("what a function prints is no value")
    assert set(case) == {"id", "input", "expected", "answer", "slices"}, case
    return words.share(case["input"]["text"], case["answer"]["class"]["label"])
"""
PROGRAM = """
import json, sys
rows = [json.loads(line) for line in sys.stdin]
for row in reversed(rows):
    scores = row["answer"]["class"]["scores"]
    print(json.dumps({"id": row["id"], "value": 1 - max(scores)}))
"""
GATES = """
[custom.length]
python = "metrics/own.py:length"

[custom.doubt]
command = [PYTHON, "metrics/doubt.py"]
lower_is_better = true

[[rule]]
metric = "custom"
custom = "length"
margin = 0.05

[[rule]]
metric = "custom_loss"
custom = "doubt"
slice = "odd"
ceiling = 0.9
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call):  # noqa: F811
    folder = tmp_path_factory.mktemp("custom")
    for source, name in [("classify-a", "a"), ("classify-b", "b")]:
        call("pack", ROOT / "conformance" / "packages" / source, "-o", name, cwd=folder)
    texts = ["what " * (n % 7) + f"do you see at {n}" for n in range(N_CASES)]
    cases = [{"id": f"c{n}", "input": {"text": text}, "expected": "benign", "slices": [["even", "odd"][n % 2]]} for n, text in enumerate(texts)]
    (folder / "golden.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    bless(call, "golden.jsonl", folder)
    (folder / "metrics").mkdir()
    (folder / "metrics" / "own.py").write_text(FUNCTION)
    (folder / "metrics" / "words.py").write_text("def share(text, label):\n    return len(text.split()) / 20 + 0.01 * (label == 'benign')\n")
    (folder / "metrics" / "doubt.py").write_text(PROGRAM)
    (folder / "gates.toml").write_text(GATES.replace("PYTHON", json.dumps(sys.executable)))
    return folder


def test_a_function_and_a_program_are_judged_and_bound_to_their_files(desk, call):  # noqa: F811
    done = call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", "--json", cwd=desk)
    verdict = json.loads(done.stdout)
    assert [check["rule"].split(":")[0] for check in verdict["checks"]] == ['own metric "length"', 'own loss "doubt", slice "odd"']
    assert verdict["checks"][1]["n_cases"] == N_CASES // 2
    evidence = {metric["name"]: metric for metric in verdict["custom"]}
    assert set(evidence["length"]["files"]) == {"metrics/own.py"} and set(evidence["doubt"]["files"]) == {"metrics/doubt.py"}
    assert all(digest.startswith("sha256:") for metric in evidence.values() for digest in metric["files"].values())
    assert "what a function prints is no value" in done.stderr


def test_eval_shows_the_mean_on_all_cases_and_each_slice(desk, call):  # noqa: F811
    shown = json.loads(call("eval", "a", "--golden", "golden.jsonl", "--gates", "gates.toml", "--json", "--out", "a.json", cwd=desk).stdout)
    answers = {case["id"]: case["value"]["class"] for case in json.loads((desk / "a.json").read_text())["cases"]}
    means = {summary["slice"]: {metric["label"]: metric for metric in summary["metrics"] if metric["metric"].startswith("custom")} for summary in shown["summaries"]}
    assert set(means) == {None, "even", "odd"}
    doubts = [1 - max(answer["scores"]) for case, answer in answers.items() if int(case[1:]) % 2]
    assert means["odd"]["doubt"]["value"] == pytest.approx(sum(doubts) / len(doubts), abs=1e-12)
    low, high = means[None]["length"]["interval"]
    assert low < means[None]["length"]["value"] < high


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit('it broke')", "its program ended with exit status: 1"),
        ("print('{}')", "line 1 of its program's output is no value"),
        ("print(json.dumps({'id': 'c0', 'value': 1})); print(json.dumps({'id': 'c0', 'value': 1}))", "gives `c0` a second value"),
        ("print(json.dumps({'id': 'other', 'value': 1}))", "is about `other`, which is no case"),
        ("print('{\"id\": \"c0\", \"value\": NaN}')", "line 1 of its program's output is no value"),
        ("print(json.dumps({'id': 'c0', 'value': 1}))", f"gave 1 of {N_CASES} cases a value; not `c1`"),
        ("print('x' * (1 << 21))", "line 1 of its program's output cannot be read"),
        ("import time; time.sleep(60)", f"was ended after 0.5 s, when 0 of {N_CASES} cases had a value"),
    ],
)
def test_a_program_that_does_not_give_each_case_one_value_is_an_error_and_no_verdict(desk, call, program, message):  # noqa: F811
    (desk / "metrics" / "bad.py").write_text(f"import json\n{program}\n")
    gates = f'[custom.own]\ncommand = [{json.dumps(sys.executable)}, "metrics/bad.py"]\ntimeout_s = {0.5 if "sleep" in program else 30}\n'
    (desk / "bad.toml").write_text(gates + "[[rule]]\nmetric = 'custom'\ncustom = 'own'\nmargin = 0.1\n")
    done = call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", "--gates", "bad.toml", cwd=desk, code=2)
    assert message in done.stderr and "metric `own`" in done.stderr, done.stderr


def test_a_function_that_is_not_there_is_told(desk, call):  # noqa: F811
    (desk / "none.toml").write_text("[custom.own]\npython = 'metrics/own.py:missing'\n[[rule]]\nmetric = 'custom'\ncustom = 'own'\nmargin = 0.1\n")
    done = call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", "--gates", "none.toml", cwd=desk, code=2)
    assert "`metrics/own.py` has no function `missing`" in done.stderr


def test_a_program_that_decides_says_0_or_1_and_its_flips_are_listed(desk, call):  # noqa: F811
    (desk / "metrics" / "even.py").write_text("def even(case):\n    return int(case['answer']['class']['label'] == 'benign')\n\ndef half(case):\n    return 0.5\n")
    gates = "[custom.own]\npython = 'metrics/even.py:even'\ndecides = true\n[[rule]]\nmetric = 'custom_share'\ncustom = 'own'\nfloor = 0.01\nmargin = 0.9\n"
    (desk / "decides.toml").write_text(gates)
    verdict = json.loads(call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", "--gates", "decides.toml", "--json", cwd=desk).stdout)
    by_program = {flip["case"]: flip["regression"] for flip in verdict["flips"] if flip["expected"] == '1 from "own"'}
    by_label = {flip["case"]: flip["regression"] for flip in verdict["flips"] if flip["expected"] == "benign"}
    assert by_program == by_label, "every case expects `benign`, so both decide alike"
    assert verdict["checks"][0]["test"] == "exact_mcnemar" and verdict["checks"][0]["rule"].endswith("not worse by more than 90.0 points")
    (desk / "decides.toml").write_text(gates.replace(":even", ":half"))
    done = call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", "--gates", "decides.toml", cwd=desk, code=2)
    assert "gives `c0` the value 0.5, and what decides gives 0 or 1" in done.stderr
