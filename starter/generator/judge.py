"""Validation: how surprised the model is by the next character of texts it has not seen."""

import math
from pathlib import Path

import torch
from highroad import training
from torch.nn.functional import cross_entropy

import data


def judge(model: torch.nn.Module, validation: list[data.Example], job: training.Job) -> dict[str, float]:
    """``loss``, whose lowest decides which weights are kept, and what else is worth logging."""
    windows = [window for window in validation if window[-1] < len(data.LABELS)]
    losses = []
    for start in range(0, len(windows), 128):
        batch = job.to_device(data.collate(windows[start : start + 128]))
        logits = model(batch[:, :-1], torch.ones_like(batch[:, :-1])).float()
        losses.append(cross_entropy(logits, batch[:, -1], reduction="sum").item())
    loss = sum(losses) / len(windows)
    return {"loss": loss, "bits_per_character": loss / math.log(2)}


def finish(weights: Path, validation: list[data.Example], options) -> dict[str, float]:
    return {}
