"""Programs of any tensors on the whole road: a golden set of real patients, a gate, the registry, a server that takes nothing without a
verdict, its real client, and a replay; and PyTorch and another server in the place of the runtime."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import highroad as highroad_module
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import torch
import tritonclient.http as triton_http
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving
from sklearn import metrics

RULES = """
[[rule]]
metric = "mae"
output = "progression"
margin = 3.0

[[rule]]
metric = "r2"
floor = 0.3
margin = 0.1

[[rule]]
metric = "rmse"
slice = "younger"
ceiling = 70
"""


def regression() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_regression", ROOT / "conformance" / "make_regression.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Site:
    """Three networks for one golden set: one in production, one of another seed, and one that saw too few patients."""

    def __init__(self, call: Callable, folder: Path) -> None:  # noqa: F811
        self.call, self.folder, self.golden, self.gates = call, folder, folder / "golden.jsonl", folder / "gates.toml"
        made = regression()
        # Threads of a product this small only wait for each other.
        torch.set_num_threads(1)
        measurements, self.progression, self.held_out = made.patients()
        self.measurements = torch.tensor(measurements, dtype=torch.float32)
        self.golden.write_bytes(made.GOLDEN.read_bytes())
        self.gates.write_text(RULES)
        self.models = {"good": made.trained(0), "again": made.trained(1), "worse": made.trained(2, n_patients=20)}
        batch = torch.export.Dim("batch", min=1)
        for name, model in self.models.items():
            highroad_module.export(
                model, (self.measurements[:3],), folder / f"{name}-source", name="progression", task="tensors", dynamic_shapes=({0: batch},),
                parity_inputs=[(self.measurements[:1],), (self.measurements[:5],)], licence="Apache-2.0", owner="highroad tests",
            )
            self.run("pack", f"{name}-source", "-o", name)
            self.run("verify", name)

    def run(self, *args: object, **more: object) -> subprocess.CompletedProcess[str]:
        return self.call(*args, cwd=self.folder, **more)

    def predicted(self, name: str) -> np.ndarray:
        with torch.no_grad():
            return self.models[name](self.measurements[self.held_out])["progression"].numpy()[:, 0]

    def gate(self, candidate: str, baseline: str, *more: object, **options: object) -> subprocess.CompletedProcess[str]:
        return self.run("gate", candidate, "--baseline", baseline, "--golden", self.golden, "--gates", self.gates, "--json", *more, **options)


@pytest.fixture(scope="module")
def site(call: Callable, tmp_path_factory: pytest.TempPathFactory) -> Site:  # noqa: F811
    site = Site(call, tmp_path_factory.mktemp("tensors"))
    bless(call, site.golden, site.folder)
    return site


def test_what_is_measured_is_what_scikit_learn_measures_of_pytorch(site: Site, tmp_path: Path) -> None:
    report = json.loads(site.run("eval", "good", "--golden", site.golden, "--json", "--html", tmp_path / "page.html").stdout)
    assert "measurements [1, 10]: 59.0000, 2.0000" in (tmp_path / "page.html").read_text()
    whole, *slices = report["summaries"]
    found = {metric["metric"]: metric["value"] for metric in whole["metrics"]}
    right, given = site.progression[site.held_out], site.predicted("good")
    expected = {
        "mae": metrics.mean_absolute_error(right, given), "rmse": metrics.root_mean_squared_error(right, given),
        "r2": metrics.r2_score(right, given), "mape": metrics.mean_absolute_percentage_error(right, given),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert {summary["slice"] for summary in slices} == {"old", "younger"} and report["batch_invariant"] and report["evidence"] == "bit-exact"
    for metric in whole["metrics"]:
        low, high = metric["interval"]
        assert low < metric["value"] < high, metric
    again = json.loads(site.run("eval", "good", "--golden", site.golden, "--json").stdout)
    assert again["answers"] == report["answers"] and again["checked"]["n_kept"] == again["checked"]["n_inputs"] == len(right)


def test_an_equal_model_passes_and_a_worse_one_does_not(site: Site) -> None:
    passed = json.loads(site.gate("again", "good").stdout)
    assert passed["outcome"] == "pass" and passed["evidence"] == "bit-exact", passed
    assert any('mean absolute error of "progression"' in check["rule"] for check in passed["checks"])
    failed = json.loads(site.gate("worse", "good", code=1).stdout)
    assert failed["outcome"] == "fail"
    (mae,) = [check for check in failed["checks"] if "mean absolute error" in check["rule"]]
    assert mae["outcome"] == "fail" and mae["p_value"] < 0.01
    assert mae["candidate"] == pytest.approx(metrics.mean_absolute_error(site.progression[site.held_out], site.predicted("worse")), rel=1e-4)


WRONG = [
    ({"measurements": [[1, 2]]}, {"progression": [[1]]}, "input `measurements` has shape [1, 2]"),
    ({"measurements": [[1] * 10, [1]]}, {"progression": [[1]]}, "input tensor `measurements`: lists side by side have one length"),
    ({"measurements": [["1"] * 10]}, {"progression": [[1]]}, "input tensor `measurements`: `\"1\"` is no number"),
    ({"measurement": [[1] * 10]}, {"progression": [[1]]}, "there is no input `measurement`: the program takes `measurements`"),
    ({"measurements": [[1e39] * 10]}, {"progression": [[1]]}, "is no f32"),
    ({"measurements": [[1] * 10]}, {"progress": [[1]]}, "there is no output `progress`: the program gives `progression`, `fast`"),
    ({"measurements": [[1] * 10]}, {"progression": [1]}, "output `progression` has shape [1, 1], and the case expects [1]"),
    ({"measurements": [[1] * 10]}, {"progression": [[]]}, "expected tensor `progression` has no number"),
    ({"measurements": [[1] * 10]}, {}, "`tensors` names no expected tensor"),
]


@pytest.mark.parametrize(("given", "expected", "problem"), WRONG)
def test_a_case_that_does_not_fit_is_told(site: Site, tmp_path: Path, given: dict, expected: dict, problem: str) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text(json.dumps({"id": "odd-one", "input": {"tensors": given}, "expected": {"tensors": expected}}) + "\n")
    told = site.run("eval", "good", "--golden", golden, code=2).stderr
    assert problem in told and ("odd-one" in told or "golden.jsonl:1" in told), told


def test_other_kinds_of_golden_sets_and_packages_are_told_apart(site: Site, tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"id": "a", "input": {"text": "a"}, "expected": "b"}\n')
    assert "made to compute tensors, but the golden set asks for labels" in site.run("eval", "good", "--golden", golden, code=2).stderr
    first = {"id": "a", "input": {"tensors": {"x": 1}}, "expected": {"tensors": {"y": 1}}}
    golden.write_text("\n".join(map(json.dumps, [first, first | {"id": "b", "expected": {"tensors": {"z": 1}}}])))
    assert "all cases expect the same tensors: `y` before, `z` here" in site.run("eval", "good", "--golden", golden, code=2).stderr
    golden.write_text(json.dumps(first | {"must_pass": True}))
    assert "give its tensors a `tolerance`" in site.run("eval", "good", "--golden", golden, code=2).stderr


def tolerated(site: Site, folder: Path, wanted: dict[str, object]) -> Path:
    """The patients whose progression a network may miss by so much, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    golden = folder / "golden.jsonl"
    cases = [json.loads(line) for line in site.golden.read_text().splitlines()]
    golden.write_text("".join(json.dumps(case | {"expected": case["expected"] | wanted}) + "\n" for case in cases))
    return golden


def test_cases_pass_within_a_tolerance_flip_and_are_accepted(site: Site, tmp_path: Path) -> None:
    golden = tolerated(site, tmp_path, {"tolerance": {"atol": 25, "rtol": 0.3}})
    ids = [json.loads(line)["id"] for line in golden.read_text().splitlines()]
    right = site.progression[site.held_out]
    close = {name: np.isclose(site.predicted(name), right, atol=25, rtol=0.3) for name in site.models}
    report = json.loads(site.run("eval", "good", "--golden", golden, "--json").stdout)
    (share,) = [metric for metric in report["summaries"][0]["metrics"] if metric["metric"] == "within_tolerance"]
    assert share["value"] == pytest.approx(close["good"].mean()) and share["method"] == "wilson"

    (tmp_path / "gates.toml").write_text("[[rule]]\nmetric = 'within_tolerance'\nmargin = 0.02\n")
    gate = ("gate", "again", "--baseline", "good", "--golden", golden, "--gates", tmp_path / "gates.toml", "--json")
    bless(site.call, golden, site.folder)
    verdict = json.loads(site.run(*gate, code=3).stdout)
    lost, gained = (close["good"] & ~close["again"], close["again"] & ~close["good"])
    flips = {flip["case"]: flip["regression"] for flip in verdict["flips"]}
    assert flips == {name: bool(was) for name, was, now in zip(ids, lost, gained, strict=True) if was or now} and lost.any()
    (told, *_) = [flip for flip in verdict["flips"] if flip["regression"]]
    assert 'number 0 of "progression"), off by' in told["candidate"], told
    check = next(check for check in verdict["checks"] if check.get("baseline") is not None)
    assert check["test"] == "exact_mcnemar" and check["waivable"] and set(check["regressions"]) == {case for case, regression in flips.items() if regression}
    accepted = [part for case, regression in flips.items() if regression for part in ("--accept", case)]
    waived = json.loads(site.run(*gate, *accepted, "--by", "ann", "--why", "read each").stdout)
    assert waived["outcome"] == "pass" and {waiver["case"] for waiver in waived["waivers"]} == set(check["regressions"])

    # The same case, once it must pass, fails every gate and cannot be accepted.
    site.run("golden", "edit", told["case"], "--golden", golden, "--must-pass", "true")
    bless(site.call, golden, site.folder)
    failed = json.loads(site.run(*gate, code=1).stdout)
    assert failed["outcome"] == "fail" and failed["flips"][0]["must_pass"] and failed["flips"][0]["case"] == told["case"]


def test_golden_sets_of_tensors_are_kept_as_others_are(site: Site, tmp_path: Path) -> None:
    golden = tolerated(site, tmp_path, {"tolerance": {"atol": 25}})
    before = tmp_path / "before.jsonl"
    before.write_bytes(golden.read_bytes())
    assert "exact McNemar finds" in site.run("golden", "coverage", golden).stdout
    assert "No drop is told" in site.run("golden", "coverage", site.golden).stdout
    site.run("golden", "lint", golden)
    case = json.loads(golden.read_text().splitlines()[0])
    asked = tmp_path / "case.json"
    asked.write_text(json.dumps(case | {"id": "again", "expected": case["expected"] | {"tolerance": {"atol": 5}}}))
    site.run("golden", "add", "--golden", golden, "--json", asked)
    # One question, and another tolerance.
    assert "again" in site.run("golden", "lint", golden, code=1).stdout
    site.run("golden", "edit", "again", "--golden", golden, "--expected", '{"tensors": {"progression": [[7]]}, "tolerances": {"progression": {"rtol": 0.1}}}')
    line = json.loads(golden.read_text().splitlines()[-1])
    assert line["expected"] == {"tensors": {"progression": [[7]]}, "tolerances": {"progression": {"rtol": 0.1}}}
    site.run("golden", "edit", case["id"], "--golden", golden, "--expected", json.dumps(case["expected"] | {"tolerance": {"atol": 26}}))
    difference = json.loads(site.run("golden", "diff", before, golden, "--json", code=1).stdout)
    assert difference["added"] == ["again"] and difference["edited"][0]["changed"] == ["expected"]
    assert [text.rsplit("; ", 1)[1] for text in difference["edited"][0]["expected"]] == ["progression within atol 25", "progression within atol 26"]
    refused = site.run("golden", "edit", "again", "--golden", golden, "--expected", '{"tensors": {"progression": [[7]]}, "tolerance": {"eps": 1}}', code=2)
    assert "tolerance of `progression`: unknown field `eps`" in refused.stderr
    assert golden.read_text().splitlines()[-1] == json.dumps(line)


def test_a_golden_set_of_tensors_is_parquet_too(site: Site, tmp_path: Path) -> None:
    golden = tolerated(site, tmp_path, {"tolerance": {"atol": 25}})
    cases = [json.loads(line) for line in golden.read_text().splitlines()]
    rows = np.array([case["input"]["tensors"]["measurements"] for case in cases])
    right = np.array([case["expected"]["tensors"]["progression"] for case in cases], dtype=np.float32)
    tolerance = pa.array([{"atol": 25.0, "rtol": None}] * len(cases))

    def lists(values: np.ndarray, item: pa.DataType) -> pa.Array:
        return pa.array(values.tolist(), pa.list_(pa.list_(item)))

    def fixed(values: np.ndarray, item: pa.DataType) -> pa.Array:
        flat = pa.array(values.ravel(), item)
        for size in reversed(values.shape[1:]):
            flat = pa.FixedSizeListArray.from_arrays(flat, size)
        return flat

    def shaped(values: np.ndarray, item: pa.DataType) -> pa.Array:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values.astype(item.to_pandas_dtype())))

    native = json.loads(site.run("eval", "good", "--golden", golden, "--json").stdout)
    for layout in (lists, fixed, shaped):
        def nested(values: np.ndarray, name: str, item: pa.DataType) -> pa.Array:
            return pa.StructArray.from_arrays([layout(values, item)], [name])

        table = pa.table({
            "id": [case["id"] for case in cases], "slices": [case["slices"] for case in cases],
            "input": pa.StructArray.from_arrays([nested(rows, "measurements", pa.float64())], ["tensors"]),
            "expected": pa.StructArray.from_arrays([nested(right, "progression", pa.float32()), tolerance], ["tensors", "tolerance"]),
        })
        parquet = tmp_path / f"{layout.__name__}.parquet"
        pq.write_table(table, parquet)
        report = json.loads(site.run("eval", "good", "--golden", parquet, "--json").stdout)
        assert report["answers"] == native["answers"] and report["summaries"] == native["summaries"], layout.__name__


def test_pytorch_is_judged_by_the_same_cases(site: Site) -> None:
    report = json.loads(site.run("eval", "good", "--golden", site.golden, "--engine", "torch", "--compare", "--json").stdout)
    assert report["evidence"] == "same-engine" and report["from_native"]["max_relative_rms"] < 1e-5
    mae = next(metric["value"] for metric in report["summaries"][0]["metrics"] if metric["metric"] == "mae")
    assert mae == pytest.approx(metrics.mean_absolute_error(site.progression[site.held_out], site.predicted("good")), rel=1e-4)


@pytest.fixture(scope="module")
def production(site: Site, highroad: Path, tracking_uri: str) -> Iterator[str]:
    """A server without `--development`, of the package that passed its first gate."""
    site.gate("good", "trivial")
    site.run("push", "good", "progression", HIGHROAD_TRACKING_URI=tracking_uri)
    site.run("promote", "progression", 1, HIGHROAD_TRACKING_URI=tracking_uri)
    env = {"HIGHROAD_HOME": str(site.folder / ".highroad"), "HIGHROAD_TRACKING_URI": tracking_uri}
    command = [str(highroad), "serve", "progression", "--listen", "127.0.0.1:0"]
    with serving(command, site.folder / "log", cwd=site.folder, env=env) as url:
        yield url


def test_a_server_serves_it_by_its_verdict_and_replays_what_it_served(site: Site, production: str, tracking_uri: str) -> None:
    client = triton_http.InferenceServerClient(production.removeprefix("http://"))
    assert [tensor["name"] for tensor in client.get_model_metadata("progression")["outputs"]] == ["progression", "fast"]
    tensor = triton_http.InferInput("measurements", [4, 10], "FP32")
    tensor.set_data_from_numpy(site.measurements[:4].numpy())
    found = client.infer("progression", [tensor]).as_numpy("progression")
    with torch.no_grad():
        np.testing.assert_allclose(found, site.models["good"](site.measurements[:4])["progression"].numpy(), rtol=1e-4)
    case = json.loads(site.golden.read_text().splitlines()[0])
    values = case["input"]["tensors"]["measurements"]
    body = {"inputs": [{"name": "measurements", "datatype": "FP32", "shape": [1, 10], "data": values}]}
    reply = requests.post(f"{production}/v2/models/progression/infer", json=body, timeout=10)
    assert reply.headers["x-highroad-evidence"] == "bit-exact" and "x-highroad-development" not in reply.headers
    # The body that was sent, and the golden case itself.
    for asked in (body, case):
        path = site.folder / "case.json"
        path.write_text(json.dumps(asked))
        replayed = site.run("replay", reply.headers["x-request-id"], "--input", path, "--json", HIGHROAD_TRACKING_URI=tracking_uri)
        assert json.loads(replayed.stdout)["same_bits"] is True
    through = site.run("eval", "good", "--golden", site.golden, "--through", production, "--json", HIGHROAD_TRACKING_URI=tracking_uri)
    native = site.run("eval", "good", "--golden", site.golden, "--json")
    assert json.loads(through.stdout)["answers"] == json.loads(native.stdout)["answers"]


def test_a_server_elsewhere_is_judged_as_a_hosted_model_and_then_served(site: Site, production: str, highroad: Path) -> None:
    def described(name: str, **more: object) -> Path:
        path = site.folder / name
        oip = "".join(f"{key} = {value}\n" for key, value in more.items())
        path.write_text(
            f"highroad_hosted = 1\ntask = 'infer'\nprotocol = 'oip'\nbase_url = '{production}'\nmodel = 'progression'\n[oip]\n{oip}"
        )
        return path

    told = site.run("eval", described("unnamed.toml"), "--golden", site.golden, code=2).stderr
    assert "does not say what datatypes the inputs have" in told
    inputs = "{ measurements = 'FP32' }"
    reports = [
        json.loads(site.run("eval", described(f"{binary}.toml", inputs=inputs, binary=binary), "--golden", site.golden, "--json").stdout)
        for binary in ("true", "false")
    ]
    for report in reports:
        found = {metric["metric"]: metric["value"] for metric in report["summaries"][0]["metrics"]}
        assert found["mae"] == pytest.approx(metrics.mean_absolute_error(site.progression[site.held_out], site.predicted("good")), rel=1e-4)
        assert report["evidence"] == "observed" and report["hosted"]["n_questions"] == site.held_out.sum()
    assert reports[0]["answers"] == json.loads(site.run("eval", "good", "--golden", site.golden, "--json").stdout)["answers"]
    verdict = json.loads(site.gate("true.toml", "worse", code=None).stdout)
    assert verdict["outcome"] == "pass" and verdict["evidence"] == "observed"
    (site.folder / "portfolio.toml").write_text("[members.elsewhere]\nhosted = 'true.toml'\n")
    command = [str(highroad), "serve", "--portfolio", "portfolio.toml", "--listen", "127.0.0.1:0"]
    with serving(command, site.folder / "elsewhere.log", cwd=site.folder, env={"HIGHROAD_HOME": str(site.folder / ".highroad")}) as url:
        body = {"inputs": [{"name": "measurements", "datatype": "FP32", "shape": [1, 10], "data": site.measurements[0].tolist()}]}
        reply = requests.post(f"{url}/v2/models/elsewhere/infer", json=body, timeout=10)
        assert reply.status_code == 200 and reply.headers["x-highroad-evidence"] == "observed", reply.text
        assert reply.json()["outputs"][0]["name"] == "progression"


def test_the_registry_takes_the_next_one_only_if_it_passes(site: Site, production: str, tracking_uri: str) -> None:
    def online(*args: object, **more: object) -> subprocess.CompletedProcess[str]:
        return site.run(*args, HIGHROAD_TRACKING_URI=tracking_uri, **more)

    site.gate("worse", "good", code=1)
    online("push", "worse", "progression")
    refused = online("promote", "progression", 2, code=None)
    assert refused.returncode != 0 and "verdict" in refused.stderr, refused.stderr
    site.gate("again", "good")
    online("push", "again", "progression")
    online("promote", "progression", 3)


def test_a_rollout_compares_what_two_networks_give(site: Site, production: str, tracking_uri: str) -> None:
    def online(*args: object, **more: object) -> subprocess.CompletedProcess[str]:
        return site.run(*args, HIGHROAD_TRACKING_URI=tracking_uri, **more)

    rollout = online("deploy", "progression", 2, "--shadow", "100%", "--max-relative", "0.05", "--by", "ann", "--why", "to see").stdout.strip()
    client = triton_http.InferenceServerClient(production.removeprefix("http://"))

    def ended() -> dict | None:
        found = requests.get(f"{production}/v1/highroad/rollouts", timeout=10).json()["rollouts"]
        return found[0] if found and found[0]["rollout"]["id"] == rollout and found[0]["end"] else None

    deadline = time.monotonic() + 60
    while not (trial := ended()):
        assert time.monotonic() < deadline
        for row in site.measurements[site.held_out][:20]:
            tensor = triton_http.InferInput("measurements", [1, 10], "FP32")
            tensor.set_data_from_numpy(row.numpy()[None])
            client.infer("progression", [tensor])
    assert trial["end"]["outcome"] == "aborted" and "answered differently" in trial["end"]["reason"], trial
    assert 0.05 < trial["apart"]["mean_relative"] < 2 and trial["worst"][0]["absolute"] > 0
    told = online("deploy", "status", "progression", "--server", production, code=1).stdout
    assert "relative difference" in told and "progression [1, 1]: " in told
