"""Monitoring of a program that takes and gives tensors: scikit-learn's breast cancer data and a classifier of them, traffic of rows that
it was not trained on, and the same rows with one feature in another unit."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import highroad as highroad_module
import numpy as np
import pytest
import requests
import safetensors.numpy
import torch
from conftest import serving
from scipy import stats
from sklearn.datasets import load_breast_cancer
from test_hosted import describe, jsonl
from test_hosted_protocols import MLSERVER
from test_monitor import Site, metrics, wait

DATA = load_breast_cancer()
COLUMNS = [str(name) for name in DATA.feature_names]
ORDER = np.random.default_rng(3).permutation(len(DATA.data))
TRAINED, HELD = (DATA.data[ids].astype(np.float32) for ids in (ORDER[:400], ORDER[400:]))
# Each is asked rows of its own seed: none of them may alarm.
SAME = [f"same-{seed}" for seed in range(6)]
N_REQUESTS = 150


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(TRAINED.mean(0)))
        self.register_buffer("deviation", torch.tensor(TRAINED.std(0)))
        self.head = torch.nn.Linear(len(COLUMNS), 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head((features - self.mean) / self.deviation), dim=1)


def trained() -> Classifier:
    torch.manual_seed(0)
    model, inputs, wanted = Classifier(), torch.tensor(TRAINED), torch.tensor(DATA.target[ORDER[:400]])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        loss = torch.nn.functional.nll_loss(torch.log(model(inputs)), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (model(inputs).argmax(1) == wanted).float().mean() > 0.95
    return model.eval()


class Tensors(Site):
    def infer(self, member: str, rows: np.ndarray, code: int = 200, **more: object) -> dict:
        tensor = {"name": "features", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()} | more
        reply = self.post(f"/v2/models/{member}/infer", {"inputs": [tensor]})
        assert reply.status_code == code, reply.text
        return reply.json()

    def signals(self, member: str) -> dict[str, dict]:
        return {signal["signal"]: signal for signal in self.monitor(member)["signals"]}


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tensors]:
    site = Tensors(highroad, tmp_path_factory.mktemp("tensors"))
    batch = torch.export.Dim("batch", min=1)
    example = (torch.tensor(TRAINED[:3]),)
    highroad_module.export(
        trained(), example, site.home / "source", name="cancer", task="tensors", dynamic_shapes=({0: batch},), parity_inputs=[example],
        licence="Apache-2.0", owner="highroad tests", training_inputs=(torch.tensor(TRAINED),),
    )
    for _ in range(2):
        site.run("pack", "source", "-o", "package")
    assert not (site.home / "package" / "training.safetensors").exists()
    (kept,) = (site.home / "state" / "baselines").rglob("*.json")
    packed = json.loads(kept.read_text())
    assert packed["n_rows"] == 400 and packed["source"] | {"digest": ""} == {"kind": "data", "name": "training.safetensors", "digest": ""}
    header, rows = ",".join(COLUMNS), (",".join(map(str, row)) for row in TRAINED.tolist())
    (site.home / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    columns = [part for name in COLUMNS for part in ("--column", name)]
    made = json.loads(site.run("monitor", "baseline", "package", "--data", "train.csv", *columns, "--json").stdout)
    named = next(path for path in kept.parent.iterdir() if path != kept)
    at = COLUMNS.index("mean area")
    assert json.loads(named.read_text())["signals"]["input.features[mean area]"] == packed["signals"][f"input.features[{at}]"]
    kept.unlink()
    assert made["n_rows"] == 400 and {"input.features[mean area]", "input.features.missing", "output.softmax[1]"} <= set(made["signals"])
    members = [*SAME, "shifted", "wrong", "statistics"]
    (site.home / "portfolio.toml").write_text(
        "[monitor]\npane_s = 1\nmin_requests = 50\n" + "".join(f"[members.{name}]\nmodel = './package'\nthreads = 1\n" for name in members)
    )
    with serving(site.serve(), site.home / "serve.log", env=site.env(), cwd=site.home) as site.url:
        yield site


def rows_of(seed: int, n: int = N_REQUESTS) -> np.ndarray:
    return HELD[np.random.default_rng(seed).integers(0, len(HELD), n)]


def test_rows_like_those_of_the_training_are_no_drift_whatever_the_seed(site: Tensors) -> None:
    for seed, member in enumerate(SAME):
        for row in rows_of(seed):
            site.infer(member, row[None])
    for member in SAME:
        report = site.watched(N_REQUESTS, member)
        assert (report["state"], report["findings"]) == ("same", []), report["findings"]


def test_the_statistics_are_those_of_scipy(site: Tensors) -> None:
    for row in rows_of(77):
        site.infer("statistics", row[None])
    site.watched(N_REQUESTS, "statistics")
    kept = next((site.home / "state" / "baselines").rglob("*.json"))
    baseline, found = json.loads(kept.read_text())["signals"], site.signals("statistics")
    for at, name in enumerate(COLUMNS):
        signal, edges = f"input.features[{name}]", baseline[f"input.features[{name}]"]["edges"]
        trained, live = TRAINED[:, at], rows_of(77)[:, at]
        bins = [np.searchsorted(edges, side.astype(float)) for side in (trained, live)]
        assert np.bincount(bins[0], minlength=len(edges) + 1).tolist() == baseline[signal]["counts"]
        exact = stats.ks_2samp(*bins, method="asymp").statistic
        assert found[signal]["value"] == pytest.approx(exact, abs=1e-12)
        assert found[signal]["p"] == pytest.approx(stats.ks_2samp(*bins, method="exact").pvalue, rel=1e-6, abs=1e-12)
        # Of the values themselves it is at most a bin of each side larger.
        raw = stats.ks_2samp(trained, live).statistic
        assert exact - 1e-9 <= raw <= exact + 2 / 32 + 2 / len(trained), name
    adjusted = stats.false_discovery_control([signal["p"] for signal in found.values()])
    assert [signal["q"] for signal in found.values()] == pytest.approx(adjusted.tolist())


def test_a_feature_in_another_unit_is_found_and_named_and_so_is_what_it_does_to_the_answers(site: Tensors) -> None:
    rows = rows_of(8, 400)
    rows[:, COLUMNS.index("mean area")] /= 25.4**2
    for start in range(0, len(rows), 2):
        site.infer("shifted", rows[start : start + 2])
    report = site.watched(len(rows) // 2, "shifted")
    assert report["n_inputs"] == len(rows)
    found = {finding["signal"]: finding for finding in report["findings"]}
    named = {name for name in found if name.startswith("input.")}
    assert named == {"input.features[mean area]"}, named
    finding = found["input.features[mean area]"]
    assert finding["kind"] == "input_drift" and finding["effect"] > 1 and "mean area" in finding["message"]
    outputs = {signal["kind"] for name, signal in site.signals("shifted").items() if name.startswith("output.")}
    assert outputs == {"prediction"}
    wait(lambda: 'highroad_monitor_drifted{member="shifted",signal="input.features[mean area]"} 1' in metrics(site))
    done = site.run("monitor", "shifted", "--server", site.url, "--html", "page.html", "--fail-on-drift", code=1)
    assert "input.features[mean area]" in done.stdout and "mean area" in (site.home / "page.html").read_text()
    kept = b"".join(path.read_bytes() for path in (site.home / "state" / "monitor" / "shifted").rglob("*.json"))
    assert len(kept) < 1 << 20


def test_tensors_that_do_not_fit_are_counted_by_what_is_wrong_with_them(site: Tensors) -> None:
    row = HELD[:1]
    site.infer("wrong", row)
    site.infer("wrong", row[:, :7], 400)
    site.infer("wrong", row, 400, datatype="FP64")
    reply = site.post("/v2/models/wrong/infer", {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 1], "data": [None]}]})
    assert reply.status_code == 400
    bytes_of = row.copy()
    bytes_of[0, 3] = np.nan
    header = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30], "parameters": {"binary_data_size": 120}}]}
    encoded = json.dumps(header).encode()
    headers = {"inference-header-content-length": str(len(encoded)), "content-type": "application/octet-stream"}
    reply = site.http.post(f"{site.url}/v2/models/wrong/infer", data=encoded + bytes_of.tobytes(), headers=headers, timeout=10)
    assert reply.status_code == 400, reply.text
    violations = site.watched(1, "wrong")["violations"]
    assert violations == {"shape": 1, "dtype": 1, "wrong_type": 1, "not_a_number": 1}, violations
    assert 'highroad_monitor_violations_total{member="wrong",kind="shape"} 1' in metrics(site)


def test_a_baseline_of_named_tensors_and_what_is_no_data_of_the_program(site: Tensors) -> None:
    path = site.home / "train.safetensors"
    safetensors.numpy.save_file({"features": TRAINED.astype(np.float64)}, path)
    made = json.loads(site.run("monitor", "baseline", "package", "--data", path, "--json").stdout)
    assert made["n_rows"] == 400 and "input.features[3]" in made["signals"]
    said = site.run("monitor", "baseline", "package", "--data", "train.csv", "--column", "mean area", code=2).stderr
    assert "name each of the 30 features of `input.features`" in said
    safetensors.numpy.save_file({"features": TRAINED[0]}, path)
    assert "30" in site.run("monitor", "baseline", "package", "--data", path, code=2).stderr
    safetensors.numpy.save_file({"other": TRAINED}, path)
    assert "`features`" in site.run("monitor", "baseline", "package", "--data", path, code=2).stderr
    assert "--data" in site.run("monitor", "baseline", "package", code=2).stderr


MODEL = '''
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Score(MLModel):
    """Half of the sum of each row, and what has no rows."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        outputs = [("score", rows.sum(axis=1, keepdims=True) / 2), ("edition", np.array([7]))]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(name, of) for name, of in outputs])
'''


def test_a_program_of_tensors_that_mlserver_hosts_is_watched(highroad: Path, tmp_path: Path) -> None:
    site = Tensors(highroad, tmp_path)
    (tmp_path / "models" / "score").mkdir(parents=True)
    (tmp_path / "models" / "score" / "model.py").write_text(MODEL)
    (tmp_path / "models" / "score" / "model-settings.json").write_text(json.dumps({"name": "score", "implementation": "model.Score"}))
    ports = free_ports(3)
    settings = dict(zip(["http_port", "grpc_port", "metrics_port"], ports, strict=True)) | {"parallel_workers": 0, "host": "127.0.0.1"}
    (tmp_path / "models" / "settings.json").write_text(json.dumps(settings))
    host = f"http://127.0.0.1:{ports[0]}"
    describe(tmp_path, "score.toml", host, task="infer", model="score", protocol="oip", oip={"binary": False}, **{"oip.inputs": {"features": "FP32"}})
    held = HELD[:, :4]
    golden = jsonl(tmp_path / "golden.jsonl", [
        {"id": str(at), "input": {"tensors": {"features": [row.tolist()]}}, "expected": {"tensors": {"score": [[float(row.sum()) / 2]]}}}
        for at, row in enumerate(held)
    ])
    (tmp_path / "portfolio.toml").write_text("[monitor]\npane_s = 1\nmin_requests = 50\n[members.score]\nhosted = 'score.toml'\n")
    with open(tmp_path / "mlserver.log", "wb") as log:
        mlserver = subprocess.Popen([MLSERVER, "start", str(tmp_path / "models")], stdout=log, stderr=log)
        try:
            wait(lambda: is_ready(f"{host}/v2/models/score/ready"), 60)
            site.run("golden", "bless", golden, "--by", "tests", "--why", "made for this test")
            site.run("eval", "score.toml", "--golden", golden)
            with serving(site.serve(), tmp_path / "serve.log", env=site.env(), cwd=tmp_path) as site.url:
                rng = np.random.default_rng(5)
                # One row of each request is looked at, however many it has.
                for _ in range(100):
                    site.infer("score", held[rng.integers(0, len(held), 3)])
                report = site.watched(100, "score")
                assert (report["state"], report["findings"], report["n_dropped"]) == ("same", [], 0), report
                assert (report["baseline"]["kind"], report["baseline"]["n"]) == ("golden", len(held))
                expected = {f"input.features[{at}]" for at in range(4)} | {"input.features.missing", "output.score", "output.score.missing", "output.edition"}
                assert set(site.signals("score")) == expected
                time.sleep(1.1)
                # In another unit from now on.
                for _ in range(100):
                    rows = held[rng.integers(0, len(held), 1)].copy()
                    rows[:, 3] /= 100
                    site.infer("score", rows)
                found = {finding["signal"] for finding in site.watched(200, "score")["findings"]}
                assert {"input.features[3]", "output.score"} <= found and not found & {f"input.features[{at}]" for at in range(3)}, found
        finally:
            mlserver.terminate()
            mlserver.wait(timeout=30)


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def is_ready(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(url, timeout=5).ok
    return False
