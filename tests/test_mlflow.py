"""The real MLflow client, unmodified, against `highroad track`."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import mlflow
import pytest
from cli import call, highroad_bin  # noqa: F401
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def client(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    # A client that meets an error must say so now, not after minutes of retries.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    mlflow.set_tracking_uri(tracking_uri)
    # Without the registry's address the client would take one that a former test of this process left.
    return MlflowClient(tracking_uri, registry_uri=tracking_uri)


@pytest.fixture
def experiment(client: MlflowClient) -> str:
    return client.create_experiment(f"experiment-{uuid.uuid4().hex[:8]}")


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def test_a_run_keeps_what_it_logs(client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment, run_name="first", tags={"team": "a"}).info.run_id
    client.log_param(run_id, "lr", 0.1)
    for step, loss in enumerate([0.9, 0.5, 0.4]):
        client.log_metric(run_id, "loss", loss, timestamp=1000 + step, step=step)
    client.set_tag(run_id, "note", "größer")
    client.set_terminated(run_id, "FINISHED")

    run = client.get_run(run_id)
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics == {"loss": 0.4}
    assert run.data.tags["team"] == "a" and run.data.tags["note"] == "größer"
    assert run.data.tags["mlflow.runName"] == "first"
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.info.end_time >= run.info.start_time
    history = client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(0, 0.9, 1000), (1, 0.5, 1001), (2, 0.4, 1002)]


def test_odd_numbers_survive(client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment).info.run_id
    for step, value in enumerate([math.nan, math.inf, -math.inf]):
        client.log_metric(run_id, "odd", value, step=step)
    values = [m.value for m in client.get_metric_history(run_id, "odd")]
    assert math.isnan(values[0])
    assert values[1:] == [sys.float_info.max, -sys.float_info.max]
    client.log_metric(run_id, "nan", math.nan)
    assert math.isnan(client.get_run(run_id).data.metrics["nan"])


def test_the_fluent_interface_with_nested_runs(client: MlflowClient, experiment: str) -> None:
    mlflow.set_experiment(experiment_id=experiment)
    with mlflow.start_run() as parent:
        mlflow.log_params({"a": 1, "b": 2})
        with mlflow.start_run(nested=True) as child:
            mlflow.log_metrics({"m": 1.5, "n": 2.5}, step=3)
    assert client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id
    found = mlflow.search_runs([experiment], filter_string=f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert list(found.run_id) == [child.info.run_id]
    assert found.loc[0, "metrics.m"] == 1.5


def test_a_batch_is_whole_or_nothing(client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment).info.run_id
    client.log_batch(
        run_id,
        metrics=[Metric(f"m{i % 10}", i, i, i) for i in range(900)],
        params=[Param("p", "x")],
        tags=[RunTag("t", "y")],
    )
    assert client.get_run(run_id).data.metrics == {f"m{i}": 890.0 + i for i in range(10)}
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        client.log_batch(run_id, metrics=[Metric("new", 1, 1, 1)], params=[Param("p", "other")])
    assert "new" not in client.get_run(run_id).data.metrics
    client.log_batch(run_id, params=[Param("p", "x")])


def test_limits_are_mlflows(tracking_uri: str, client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment).info.run_id
    metric = {"key": "m", "value": 1, "timestamp": 1, "step": 0}
    refused = [
        {"metrics": [metric] * 1001},
        {"params": [{"key": f"p{i}", "value": "v"} for i in range(101)]},
        {"tags": [{"key": f"t{i}", "value": "v"} for i in range(101)]},
        {"metrics": [{**metric, "key": "k" * 251}]},
        {"metrics": [{**metric, "value": "much"}]},
        {"params": [{"key": "../up", "value": "v"}]},
    ]
    for body in refused:
        status, reply = post(tracking_uri, "/api/2.0/mlflow/runs/log-batch", {"run_id": run_id, **body})
        assert (status, reply["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), body
    assert client.get_run(run_id).data.params == {}
    long = {"params": [{"key": "p", "value": "ü" * 6001}], "tags": [{"key": "t", "value": "x" * 8001}]}
    assert post(tracking_uri, "/api/2.0/mlflow/runs/log-batch", {"run_id": run_id, **long}) == (200, {})
    kept = client.get_run(run_id).data
    assert (kept.params["p"], kept.tags["t"]) == ("ü" * 6000, "x" * 8000), "cut, as MLflow does"
    status, reply = post(tracking_uri, "/api/2.0/mlflow/runs/create", {"experiment_id": []})
    assert status == 400 and "'experiment_id'" in reply["message"]


def test_runs_are_found_and_ordered(client: MlflowClient, experiment: str) -> None:
    ids = []
    for i in range(5):
        run = client.create_run(experiment, start_time=i + 1, run_name=f"run-{i}", tags={"my key": "even" if i % 2 == 0 else "odd"})
        client.log_metric(run.info.run_id, "val loss", i / 10)
        client.log_param(run.info.run_id, "kind", "Wide" if i > 2 else "narrow")
        ids.append(run.info.run_id)
    only = client.create_run(experiment, start_time=99, run_name="no-metric").info.run_id

    def search(text: str, **more: object) -> list[str]:
        return [run.info.run_id for run in client.search_runs([experiment], text, **more)]

    assert search("metrics.`val loss` < 0.25", order_by=["metrics.`val loss` ASC"]) == ids[:3]
    assert search('tags."my key" = \'odd\'') == [ids[3], ids[1]]
    assert search("params.kind ILIKE 'wide' AND attributes.status = 'RUNNING'") == [ids[4], ids[3]]
    assert search("params.kind LIKE 'w%'") == []
    assert search(f"attributes.run_id IN ('{ids[0]}', '{ids[4]}')") == [ids[4], ids[0]]
    assert search("run_name = 'run-1'") == [ids[1]]
    assert search("start_time >= 4 AND start_time < 50") == [ids[4], ids[3]]
    assert search("", order_by=["metrics.`val loss` DESC"]) == [*reversed(ids), only]
    assert search("", order_by=["start_time ASC"]) == [*ids, only]
    assert search("params.kind IS NULL") == [only]
    page = client.search_runs([experiment], order_by=["start_time ASC"], max_results=4)
    rest = client.search_runs([experiment], order_by=["start_time ASC"], max_results=4, page_token=page.token)
    assert [r.info.run_id for r in page] + [r.info.run_id for r in rest] == [*ids, only]
    assert not rest.token
    for bad in ["metrics.x >", "params.a > 3", "attributes.nope = 'x'", "a = 'x' OR b = 'y'"]:
        with pytest.raises(MlflowException):
            search(bad)


def test_deleted_runs_and_experiments_come_back(client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment).info.run_id
    client.delete_run(run_id)
    assert client.search_runs([experiment]) == []
    assert [r.info.run_id for r in client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)] == [run_id]
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        client.log_metric(run_id, "m", 1)
    client.restore_run(run_id)
    client.log_metric(run_id, "m", 1)
    client.delete_experiment(experiment)
    assert client.get_experiment(experiment).lifecycle_stage == "deleted"
    client.restore_experiment(experiment)
    client.rename_experiment(experiment, name := unique("renamed"))
    client.set_experiment_tag(experiment, "owner", "me")
    found = client.get_experiment_by_name(name)
    assert (found.experiment_id, found.tags) == (experiment, {"owner": "me"})
    assert [e.name for e in client.search_experiments(filter_string=f"name = '{name}'")] == [name]
    with pytest.raises(MlflowException, match="already exists"):
        client.create_experiment(name)
    assert client.get_experiment_by_name(unique("nobody")) is None


def test_artifacts_go_up_and_come_down(client: MlflowClient, experiment: str, tmp_path: Path) -> None:
    run_id = client.create_run(experiment).info.run_id
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(20_000_000))
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "a b ü.txt").write_text("hello")
    client.log_artifact(run_id, str(big))
    client.log_artifacts(run_id, str(tmp_path / "folder"), "sub")
    client.log_dict(run_id, {"a": 1}, "config/c.json")

    listed = {f.path: (f.is_dir, f.file_size) for f in client.list_artifacts(run_id)}
    assert listed == {"big.bin": (False, 20_000_000), "sub": (True, None), "config": (True, None)}
    assert [f.path for f in client.list_artifacts(run_id, "sub/inner")] == ["sub/inner/a b ü.txt"]
    down = Path(client.download_artifacts(run_id, "big.bin", str(tmp_path)))
    assert down.read_bytes() == big.read_bytes()
    folder = Path(client.download_artifacts(run_id, "sub", str(tmp_path)))
    assert (folder / "inner" / "a b ü.txt").read_text() == "hello"
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/config/c.json") == {"a": 1}


def test_a_client_that_wants_parts_sends_a_file_to_the_disk_in_one(
    client: MlflowClient, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "10")
    (tmp_path / "big.bin").write_bytes(b"x" * 100)
    run_id = client.create_run(experiment).info.run_id
    client.log_artifact(run_id, str(tmp_path / "big.bin"))
    (tmp_path / "down").mkdir()
    assert Path(client.download_artifacts(run_id, "big.bin", str(tmp_path / "down"))).read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    "path",
    ["../track.db", "a/../../track.db", "%2e%2e/track.db", "%2e%2e%2ftrack.db", "/etc/passwd", "%2fetc%2fpasswd",
     "a%00b", "..%5ctrack.db", "%252e%252e/track.db", "a//b", ".highroad-partial/x"],
)
def test_no_path_leads_out_of_the_artifacts(tracking_uri: str, path: str) -> None:
    url = f"{tracking_uri}/api/2.0/mlflow-artifacts/artifacts/{path}"
    for method in ["GET", "PUT", "DELETE"]:
        body = b"x" if method == "PUT" else None
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(url, data=body, method=method))
        assert error.value.code in (400, 404), (method, path)
        assert "error_code" in json.loads(error.value.read())


def test_a_stored_page_does_not_run_in_a_browser(tracking_uri: str, client: MlflowClient, experiment: str) -> None:
    run = client.create_run(experiment)
    client.log_text(run.info.run_id, "<script>alert(1)</script>", "x.html")
    path = f"{experiment}/{run.info.run_id}/artifacts/x.html"
    with urllib.request.urlopen(f"{tracking_uri}/api/2.0/mlflow-artifacts/artifacts/{path}") as reply:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-disposition"] == "attachment"


def test_datasets_are_inputs(client: MlflowClient, experiment: str) -> None:
    import pandas as pd

    mlflow.set_experiment(experiment_id=experiment)
    dataset = mlflow.data.from_pandas(pd.DataFrame({"a": [1, 2]}), name="two")
    with mlflow.start_run() as run:
        mlflow.log_input(dataset, context="training", tags={"split": "train"})
    [read] = client.get_run(run.info.run_id).inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("two", dataset.digest)
    assert {tag.key: tag.value for tag in read.tags} == {"mlflow.data.context": "training", "split": "train"}
    assert len(client.search_runs([experiment], "dataset.name = 'two'")) == 1


def test_no_spelling_of_a_source_gets_a_package_past_the_gate(
    tracking_uri: str, client: MlflowClient, tmp_path: Path, call  # noqa: F811
) -> None:
    name = unique("package")
    call("pack", REPO / "conformance/packages/classify-a", "-o", "package", cwd=tmp_path)
    pushed = call("push", "package", name, cwd=tmp_path, HIGHROAD_TRACKING_URI=tracking_uri).stdout.strip()
    digits = client.get_model_version(name, pushed.split(":")[1]).tags["highroad.package"].removeprefix("sha256:")
    host, run_id = tracking_uri.removeprefix("http://"), client.create_run("0").info.run_id
    spelt = [
        f"mlflow-artifacts:/highroad/packages/{digits}",
        f"mlflow-artifacts:/highroad//packages/{digits}",
        f"mlflow-artifacts://{host}/highroad/packages/{digits}",
        f"mlflow-artifacts:/./highroad/packages/{digits}",
        f"mlflow-artifacts:/highroad/%70ackages/{digits}",
        f"MLFLOW-ARTIFACTS:/highroad/packages/{digits}",
        f"{tracking_uri}/api/2.0/mlflow-artifacts/artifacts/highroad/packages/{digits}",
        "mlflow-artifacts:/highroad/packages",
        f"runs:/{run_id}/../../../highroad/packages/{digits}",
        f"models:/{name}/1",
    ]
    delivered = 0
    for source in spelt:
        try:
            version = client.create_model_version(name, source).version
        except MlflowException:
            continue
        with pytest.raises(MlflowException, match="may not go to production"):
            client.set_registered_model_alias(name, "champion", version)
        try:
            delivered += (Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}")) / "manifest.json").is_file()
        except (MlflowException, OSError):
            pass
    assert delivered >= 3, "several spellings lead to the package, which is why none of them gets an alias"
    assert not client.get_registered_model(name).aliases
    free = client.create_model_version(name, f"runs:/{run_id}/model").version
    client.set_registered_model_alias(name, "champion", free)


def test_models_versions_and_aliases(client: MlflowClient, experiment: str) -> None:
    name = unique("model")
    client.create_registered_model(name, tags={"team": "x"}, description="d")
    with pytest.raises(MlflowException, match="already exists"):
        client.create_registered_model(name)
    run_id = client.create_run(experiment).info.run_id
    first = client.create_model_version(name, f"mlflow-artifacts:/{experiment}/{run_id}/artifacts/m", run_id, {"k": "v"})
    second = client.create_model_version(name, "s3://elsewhere/model", description="second")
    assert (first.version, second.version, first.status) == ("1", "2", "READY") or (first.version, second.version) == (1, 2)

    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "champion", "2")
    client.set_registered_model_alias(name, "old", "1")
    assert str(client.get_model_version_by_alias(name, "champion").version) == "2"
    model = client.get_registered_model(name)
    assert {k: str(v) for k, v in model.aliases.items()} == {"champion": "2", "old": "1"}
    assert (model.tags, model.description) == ({"team": "x"}, "d")
    assert client.get_model_version(name, "1").tags == {"k": "v"}
    assert client.get_model_version_download_uri(name, "2") == "s3://elsewhere/model"
    client.delete_registered_model_alias(name, "champion")
    with pytest.raises(MlflowException):
        client.get_model_version_by_alias(name, "champion")

    client.set_model_version_tag(name, "2", "q", "1")
    client.update_model_version(name, "2", "changed")
    client.delete_model_version_tag(name, "2", "q")
    client.set_registered_model_tag(name, "extra", "1")
    client.delete_registered_model_tag(name, "extra")
    assert [str(v.version) for v in client.search_model_versions(f"name='{name}'")] == ["2", "1"]
    assert [str(v.version) for v in client.search_model_versions(f"run_id='{run_id}'")] == ["1"]
    assert [m.name for m in client.search_registered_models(f"name = '{name}'")] == [name]
    assert [m.name for m in client.search_registered_models("tags.team = 'x' AND name LIKE 'model-%'", max_results=1000) if m.name == name]
    client.transition_model_version_stage(name, "2", "Staging")
    assert [str(v.version) for v in client.get_latest_versions(name, ["Staging"])] == ["2"]

    renamed = unique("renamed")
    client.rename_registered_model(name, renamed)
    assert {k: str(v) for k, v in client.get_registered_model(renamed).aliases.items()} == {"old": "1"}
    client.delete_model_version(renamed, "2")
    third = client.create_model_version(renamed, "s3://elsewhere/model")
    assert str(third.version) == "3", "a deleted version's number is not given again"
    client.delete_registered_model(renamed)
    with pytest.raises(RestException) as error:
        client.get_registered_model(renamed)
    assert error.value.error_code == "RESOURCE_DOES_NOT_EXIST"


class Shout(mlflow.pyfunc.PythonModel):
    def predict(self, context: object, model_input: list[str], params: dict | None = None) -> list[str]:
        return [text.upper() for text in model_input]


def test_a_pyfunc_model_is_logged_registered_and_loaded(client: MlflowClient, experiment: str) -> None:
    mlflow.set_experiment(experiment_id=experiment)
    name = unique("shout")
    with mlflow.start_run() as run:
        mlflow.log_metric("quality", 0.75)
        info = mlflow.pyfunc.log_model(name="model", python_model=Shout(), registered_model_name=name, pip_requirements=[])
    logged = mlflow.get_logged_model(info.model_id)
    assert logged.status.name == "READY" and logged.source_run_id == run.info.run_id
    assert client.get_run(run.info.run_id).outputs.model_outputs[0].model_id == info.model_id
    assert [m.model_id for m in mlflow.search_logged_models([experiment], output_format="list")] == [info.model_id]
    version = client.get_model_version(name, "1")
    assert version.source == f"models:/{info.model_id}"
    assert mlflow.pyfunc.load_model(f"models:/{name}/1").predict(["a"]) == ["A"]
    client.set_registered_model_alias(name, "champion", "1")
    assert mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(["b"]) == ["B"]


def test_a_pytorch_model_is_logged_and_loaded(client: MlflowClient, experiment: str) -> None:
    import torch

    mlflow.set_experiment(experiment_id=experiment)
    model = torch.nn.Linear(2, 1)
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(model, name="linear", pip_requirements=[], serialization_format="pickle") if (
            "serialization_format" in mlflow.pytorch.log_model.__code__.co_varnames
        ) else mlflow.pytorch.log_model(model, name="linear", pip_requirements=[])
    loaded = mlflow.pytorch.load_model(info.model_uri)
    assert torch.equal(loaded.weight, model.weight)


def test_the_mlflow_command_lists_runs(tracking_uri: str, client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment, run_name="by-command").info.run_id
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
    command = [sys.executable, "-m", "mlflow", "runs", "list", "--experiment-id", experiment]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert run_id in output and "by-command" in output


def post(uri: str, path: str, body: object, method: str = "POST") -> tuple[int, dict]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(uri + path, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.loads(reply.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_every_listed_route_answers(tracking_uri: str) -> None:
    routes = json.loads((REPO / "conformance" / "mlflow_routes.json").read_text())["routes"]
    assert len(routes) >= 60
    for route in routes:
        path = re.sub(r"\{\w+\}", "x", route["path"].replace("{path}", "no/such"))
        body = b"{}" if route["method"] != "GET" else None
        request = urllib.request.Request(tracking_uri + path, body, {"content-type": "application/json"}, method=route["method"])
        try:
            with urllib.request.urlopen(request) as reply:
                assert reply.status == 200, route
        except urllib.error.HTTPError as error:
            reply = json.loads(error.read())
            assert reply["error_code"] != "ENDPOINT_NOT_FOUND" and error.code in (400, 404, 501, 503), (route, reply)


def test_an_unknown_route_is_mlflows_404(tracking_uri: str) -> None:
    for method, path in [("POST", "/api/2.0/mlflow/nope"), ("POST", "/api/2.0/mlflow/runs/get"), ("POST", "/api/3.0/mlflow/nope")]:
        status, reply = post(tracking_uri, path, {}, method)
        assert (status, reply["error_code"]) == (404, "ENDPOINT_NOT_FOUND"), path


def test_promtool_accepts_the_metrics(tracking_uri: str) -> None:
    import shutil

    with urllib.request.urlopen(tracking_uri + "/metrics") as reply:
        page = reply.read()
    assert b"highroad_http_requests_total" in page
    promtool = shutil.which("promtool")
    assert promtool, "promtool is not installed: `apt-get install prometheus`"
    result = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, b"")
