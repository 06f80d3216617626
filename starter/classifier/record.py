"""What outlives the process: the checkpoint a run resumes from, and the metrics it reports."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import mlflow
import torch

import data

# `highroad train` says where runs are tracked; a bare `python train.py` only prints.
TRACKED = "MLFLOW_TRACKING_URI" in os.environ


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write the checkpoint whole or not at all."""
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    parts["random"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(parts | {"state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def restore(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights, optimizer and random numbers where the checkpoint left them, and return its state."""
    parts = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(parts["model"])
    optimizer.load_state_dict(parts["optimizer"])
    torch.set_rng_state(parts["random"]["cpu"])
    torch.cuda.set_rng_state_all(parts["random"]["cuda"])
    return parts["state"]


def track(parameters: dict[str, Any], state: dict[str, Any]) -> AbstractContextManager:
    """The MLflow run that metrics go to: the one `highroad train` opened, the resumed one, or a new one."""
    if not TRACKED:
        return nullcontext()
    run = mlflow.start_run(run_id=os.environ.get("MLFLOW_RUN_ID") or state["run_id"])
    state["run_id"] = run.info.run_id
    if state["step"] == 0:
        mlflow.log_params(parameters)
    mlflow.set_tags({f"highroad.data.{name}": digest for name, digest in data.fingerprints().items()})
    return run


def log(metrics: dict[str, float], state: dict[str, Any], last_step: int) -> None:
    shown = " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    print(f"step {state['step']}/{last_step} {shown}", flush=True)
    if TRACKED:
        mlflow.log_metrics(metrics, step=state["step"])
