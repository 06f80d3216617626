"""Validation of a model that picks one label: loss and accuracy."""

from pathlib import Path

import torch
from highroad import training
from torch.nn.functional import cross_entropy

import data


def answers(model: torch.nn.Module, examples: list, job: training.Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[N, labels]`` and right labels ``[N]``, in the order of ``examples``."""
    logits, labels = [], []
    for start in range(0, len(examples), 256):
        *inputs, right = job.to_device(data.collate(examples[start : start + 256]))
        logits.append(model(*inputs).float())
        labels.append(right)
    return torch.cat(logits), torch.cat(labels)


def judge(model: torch.nn.Module, validation: list, job: training.Job) -> dict[str, float]:
    """``loss``, whose lowest decides which weights are kept, and what else is worth logging."""
    logits, labels = answers(model, validation, job)
    return {"loss": cross_entropy(logits, labels).item(), "accuracy": (logits.argmax(1) == labels).float().mean().item()}


def finish(weights: Path, validation: list, options) -> dict[str, float]:
    return {}
