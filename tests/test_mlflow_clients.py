"""What teams run beside the plain client, unmodified: an older client, the command line, autologging, evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from test_mlflow import client, experiment, unique

from conftest import REPO

__all__ = ["client", "experiment"]
MLFLOW_2 = REPO / ".venv" / "mlflow2"

OLD_CLIENT = """
import sys
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

assert mlflow.__version__.startswith("2.22."), mlflow.__version__
uri, name, folder = sys.argv[1:]
mlflow.set_tracking_uri(uri)
client = MlflowClient()
experiment = client.create_experiment(name, tags={"a": "b"})
mlflow.set_experiment(experiment_id=experiment)
with mlflow.start_run(run_name="old") as run:
    mlflow.log_params({"lr": 0.1, "layers": 2})
    mlflow.log_metrics({"loss": 0.5}, step=1)
    mlflow.log_metric("loss", 0.25, step=2)
    mlflow.set_tag("note", "größer")
    mlflow.log_dict({"x": 1}, "config/c.json")
    mlflow.log_text("hello", "t.txt")
    client.log_batch(run.info.run_id, [Metric("m", 1.0, 5, 0)], [Param("p", "1")], [RunTag("t", "1")])
run_id = run.info.run_id
kept = client.get_run(run_id)
assert (kept.data.params, kept.data.metrics) == ({"lr": "0.1", "layers": "2", "p": "1"}, {"loss": 0.25, "m": 1.0})
assert kept.info.status == "FINISHED" and kept.info.run_name == "old"
assert [m.value for m in client.get_metric_history(run_id, "loss")] == [0.5, 0.25]
[found] = client.search_runs([experiment], "metrics.loss < 0.3 and params.lr = '0.1'", order_by=["metrics.loss"])
assert found.info.run_id == run_id
assert sorted(f.path for f in client.list_artifacts(run_id)) == ["config", "t.txt"]
assert open(client.download_artifacts(run_id, "t.txt", folder)).read() == "hello"
client.create_registered_model(name, tags={"k": "v"})
version = client.create_model_version(name, f"{kept.info.artifact_uri}/model", run_id, tags={"q": "r"})
client.set_registered_model_alias(name, "champion", version.version)
assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
client.transition_model_version_stage(name, "1", "Staging")
assert [v.current_stage for v in client.get_latest_versions(name, ["Staging"])] == ["Staging"]
assert client.get_model_version_download_uri(name, "1").endswith("/model")
assert [m.name for m in client.search_registered_models(f"name = '{name}'")] == [name]
client.delete_registered_model(name)
client.delete_run(run_id)
client.restore_run(run_id)
print("done")
"""


def test_the_client_of_mlflow_2_22(tracking_uri: str, tmp_path: Path) -> None:
    assert (MLFLOW_2 / "mlflow").is_dir(), f"{MLFLOW_2} is missing: run `make env`"
    environment = {**os.environ, "PYTHONPATH": str(MLFLOW_2), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    command = [sys.executable, "-W", "ignore", "-c", OLD_CLIENT, tracking_uri, unique("old-client"), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stdout + done.stderr


@pytest.fixture
def cli(client: MlflowClient, tracking_uri: str, monkeypatch: pytest.MonkeyPatch):
    """The `mlflow` command, in this process: its start alone takes seconds."""
    from mlflow.cli import cli as command

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)

    def run(*args: str) -> str:
        result = CliRunner().invoke(command, list(args), catch_exceptions=False)
        assert result.exit_code == 0, f"mlflow {' '.join(args)}\n{result.output}"
        return result.output

    return run


def test_the_command_line(cli, client: MlflowClient, tmp_path: Path) -> None:
    name = unique("by-command")
    cli("experiments", "create", "-n", name)
    experiment_id = client.get_experiment_by_name(name).experiment_id
    assert name in cli("experiments", "search")
    run_id = client.create_run(experiment_id, run_name="seen").info.run_id
    assert run_id in cli("runs", "list", "--experiment-id", experiment_id)
    assert run_id in cli("experiments", "csv", "-x", experiment_id)
    assert json.loads(cli("runs", "describe", "--run-id", run_id))["info"]["run_id"] == run_id
    (tmp_path / "a.txt").write_text("from the command line")
    cli("artifacts", "log-artifact", "--local-file", str(tmp_path / "a.txt"), "--run-id", run_id, "--artifact-path", "in")
    assert "in/a.txt" in cli("artifacts", "list", "--run-id", run_id, "--artifact-path", "in")
    cli("artifacts", "download", "--run-id", run_id, "--artifact-path", "in/a.txt", "--dst-path", str(tmp_path / "down"))
    assert next((tmp_path / "down").rglob("a.txt")).read_text() == "from the command line"
    cli("runs", "delete", "--run-id", run_id)
    cli("runs", "restore", "--run-id", run_id)
    cli("experiments", "rename", "--experiment-id", experiment_id, "--new-name", name + "-2")
    cli("experiments", "delete", "--experiment-id", experiment_id)
    cli("experiments", "restore", "--experiment-id", experiment_id)
    assert client.get_experiment(experiment_id).name == name + "-2"


class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[float]) -> list[float]:
        return [2 * value for value in model_input]


def test_the_command_line_runs_a_registered_model(cli, experiment: str, tmp_path: Path) -> None:
    mlflow.set_experiment(experiment_id=experiment)
    name = unique("doubler")
    with mlflow.start_run():
        mlflow.pyfunc.log_model(name="m", python_model=Doubler(), registered_model_name=name, pip_requirements=[])
    (tmp_path / "in.json").write_text(json.dumps({"inputs": [1.0, 2.5]}))
    out = tmp_path / "out.json"
    cli("models", "predict", "-m", f"models:/{name}/1", "-i", str(tmp_path / "in.json"), "-o", str(out), "--env-manager", "local")
    assert json.loads(out.read_text())["predictions"] == [2.0, 5.0]


def test_lightning_logs_by_itself(client: MlflowClient, experiment: str, tmp_path: Path) -> None:
    import lightning
    import torch

    class Regression(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x):
            return self.layer(x)

        def training_step(self, batch, _):
            loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
            self.log("train_loss", loss, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    torch.manual_seed(1)
    x = torch.randn(32, 4)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    mlflow.set_experiment(experiment_id=experiment)
    mlflow.pytorch.autolog()
    try:
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                                    enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)
        with mlflow.start_run() as run:
            trainer.fit(Regression(), data)
    finally:
        mlflow.pytorch.autolog(disable=True)
    kept = client.get_run(run.info.run_id)
    assert kept.data.params["optimizer_name"] == "Adam" and kept.data.params["lr"] == "0.05"
    losses = [m.value for m in client.get_metric_history(run.info.run_id, "train_loss_epoch")]
    assert len(losses) == 2 and losses[1] < losses[0]
    [model] = client.search_logged_models([experiment])
    assert model.status == "READY" and model.source_run_id == run.info.run_id
    loaded = mlflow.pytorch.load_model(f"models:/{model.model_id}")
    assert loaded(x).shape == (32, 1)


def test_the_trainer_logs_by_itself(client: MlflowClient, experiment: str, tmp_path: Path, monkeypatch) -> None:
    import torch
    import transformers

    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16, max_position_embeddings=16)
    rows = [{"input_ids": torch.tensor([n % 50, 2, 3, 4]), "labels": torch.tensor(n % 2)} for n in range(16)]
    name = client.get_experiment(experiment).name
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri())
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=["mlflow"], max_steps=4, per_device_train_batch_size=4, logging_steps=1,
        save_strategy="no", use_cpu=True, run_name="the trainer", disable_tqdm=True,
    )
    trainer = transformers.Trainer(transformers.BertForSequenceClassification(config), arguments, train_dataset=rows)
    trainer.train()
    mlflow.end_run()
    [run] = client.search_runs([experiment])
    assert run.data.params["hidden_size"] == "16" and run.data.params["max_steps"] == "4"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
    assert run.data.metrics["train_loss"] > 0


def test_evaluation(client: MlflowClient, experiment: str) -> None:
    import pandas as pd

    mlflow.set_experiment(experiment_id=experiment)
    data = pd.DataFrame({"label": [0, 1, 1, 0, 1, 0], "prediction": [0, 1, 0, 0, 1, 1]})
    dataset = mlflow.data.from_pandas(data, name="judged", targets="label", predictions="prediction")
    with mlflow.start_run() as run:
        result = mlflow.models.evaluate(data=dataset, model_type="classifier", evaluator_config={"log_explainer": False})
    assert result.metrics["accuracy_score"] == pytest.approx(4 / 6)
    kept = client.get_run(run.info.run_id)
    assert kept.data.metrics["accuracy_score"] == pytest.approx(4 / 6)
    assert [i.dataset.name for i in kept.inputs.dataset_inputs] == ["judged"]
    assert any(f.path.endswith("confusion_matrix.png") for f in client.list_artifacts(run.info.run_id))
