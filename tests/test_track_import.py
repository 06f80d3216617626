"""`highroad track import` from a real `mlflow server`, compared through the real client."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import mlflow
import pytest
from conftest import serving
from mlflow import MlflowClient
from mlflow.entities import Metric, ViewType

N_STEPS = 1500


def fill(client: MlflowClient, folder: Path) -> tuple[str, str]:
    """A run with something of everything, and a deleted one."""
    experiment = client.create_experiment("imported", tags={"team": "search"})
    run = client.create_run(experiment, run_name="first", tags={"kind": "real"})
    run_id = run.info.run_id
    client.log_param(run_id, "lr", "0.1")
    points = [Metric("loss", 1 / (1 + step), 1000 + step, step) for step in range(N_STEPS)]
    for at in range(0, N_STEPS, 1000):
        client.log_batch(run_id, metrics=points[at : at + 1000])
    client.log_metric(run_id, "odd", math.nan, timestamp=5, step=1)
    (folder / "notes ü.txt").write_text("kept")
    client.log_artifact(run_id, str(folder / "notes ü.txt"), "deep/er")
    client.set_terminated(run_id, "FINISHED", end_time=9_000)
    gone = client.create_run(experiment, run_name="gone").info.run_id
    client.set_terminated(gone, "FAILED", end_time=9_500)
    client.delete_run(gone)
    client.create_registered_model("classifier", tags={"owner": "a"}, description="what it is")
    for _ in range(3):
        client.create_model_version("classifier", f"{run.info.artifact_uri}/deep", run_id)
    client.delete_model_version("classifier", "2")
    client.set_registered_model_alias("classifier", "champion", "3")
    mlflow.genai.register_prompt("greeting", "Hello {{name}}", commit_message="first")
    mlflow.genai.register_prompt("greeting", "Good day, {{name}}")
    mlflow.genai.set_prompt_alias("greeting", "live", 2)
    mlflow.set_experiment(experiment_id=experiment)
    with mlflow.start_span("asked"):
        pass
    mlflow.flush_trace_async_logging()
    return run_id, gone


def bring(highroad: Path, source: str, home: Path) -> dict:
    command = [str(highroad), "track", "import", "--from", source, "--home", str(home), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def facts(client: MlflowClient, run_id: str) -> dict:
    run = client.get_run(run_id)
    history = {key: client.get_metric_history(run_id, key) for key in run.data.metrics}
    info = run.info
    return {
        "info": (info.run_name, info.user_id, info.status, info.start_time, info.end_time, info.lifecycle_stage),
        "params": run.data.params,
        "tags": run.data.tags,
        "points": {key: [(m.step, m.timestamp, str(m.value)) for m in metrics] for key, metrics in history.items()},
    }


def test_an_import_keeps_everything_and_can_be_repeated(
    highroad: Path, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    theirs = MlflowClient(mlflow_server, registry_uri=mlflow_server)
    mlflow.set_tracking_uri(mlflow_server)
    run_id, gone = fill(theirs, tmp_path)
    home = tmp_path / "home"
    taken = bring(highroad, mlflow_server, home)
    assert (taken["runs"], taken["points"], taken["artifacts"]) == (2, N_STEPS + 1, 1)
    assert (taken["registered_models"], taken["prompts"], taken["model_versions"], taken["aliases"]) == (1, 1, 4, 2)
    assert taken["not_taken"] == ["1 traces of experiment `imported`: this command takes none"]
    again = bring(highroad, mlflow_server, home)
    assert (again["runs_before"], again["runs"], again["points"], again["model_versions"]) == (2, 0, 0, 0)

    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(home)]
    with serving(command, tmp_path / "server.log") as uri:
        ours = MlflowClient(uri, registry_uri=uri)
        expected = facts(theirs, run_id)
        mlflow.set_tracking_uri(uri)
        assert facts(ours, run_id) == expected
        assert ours.get_run(gone).info.lifecycle_stage == "deleted"
        experiment = ours.get_experiment_by_name("imported")
        assert experiment.tags["team"] == "search"
        assert len(ours.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)) == 2
        path = ours.download_artifacts(run_id, "deep/er/notes ü.txt", str(tmp_path))
        assert Path(path).read_text() == "kept"
        versions = ours.search_model_versions("name='classifier'")
        assert sorted(version.version for version in versions) in (["1", "3"], [1, 3])
        assert str(ours.get_model_version_by_alias("classifier", "champion").version) == "3"
        assert str(ours.create_model_version("classifier", "s3://bucket/model", run_id).version) == "4"
        assert ours.get_prompt_version("greeting", "1").template == "Hello {{name}}"
        assert ours.get_prompt_version_by_alias("greeting", "live").format(name="Ann") == "Good day, Ann"
        assert [prompt.name for prompt in ours.search_prompts()] == ["greeting"]
        assert [model.name for model in ours.search_registered_models()] == ["classifier"]
    theirs.delete_registered_model("classifier")
