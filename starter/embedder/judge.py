"""Validation: how often a half finds its other half among those of the held-out texts."""

from pathlib import Path

import torch
from highroad import training

import data
import model as models


def judge(model: torch.nn.Module, validation: list[data.Pair], job: training.Job) -> dict[str, float]:
    """``loss``, whose lowest decides which weights are kept, and what else is worth logging."""
    batch = job.to_device(data.collate(validation))
    first, second = model(*batch).float().chunk(2)
    found = (first @ second.T).argmax(1) == torch.arange(len(first), device=first.device)
    return {"loss": models.loss(model, batch).item(), "found": found.float().mean().item()}


def finish(weights: Path, validation: list[data.Pair], options) -> dict[str, float]:
    return {}
