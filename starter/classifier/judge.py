"""The validation split: how good the model is, which weights are kept, and where the model says yes.

Training weighs both mistakes alike. Which of them costs more is a decision about the product, taken on the validation split,
which trained nothing. The head's bias moves; the ranking, and with it AUROC, stays.
"""

import math
from pathlib import Path

import torch
from highroad import training
from torch.nn.functional import cross_entropy

import data
import model as models


def judge(model: torch.nn.Module, validation: list[data.Encoded], job: training.Job) -> dict[str, float]:
    """``loss``, whose lowest decides which weights are kept, and what else is worth logging."""
    logits, labels = answers(model, validation, job.to_device)
    return {"loss": cross_entropy(logits, labels).item(), "accuracy": (logits.argmax(1) == labels).float().mean().item()}


def finish(weights: Path, validation: list[data.Encoded], options) -> dict[str, float]:
    """Moves the decision of the kept weights so that ``min_recall`` of what must be flagged is flagged; by how much."""
    if data.FLAGGED is None:
        return {}
    model = training.load_weights(models.fresh(), weights)
    flagged = data.LABELS.index(data.FLAGGED)
    with torch.no_grad():
        gain = shift(*answers(model, validation), flagged, options.min_recall)
        model.head.bias[flagged] += gain
    training.save_weights(model.state_dict(), weights)
    return {"validation/shift": gain}


def answers(model, validation, to_device=lambda tensors: tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[N, labels]`` and right labels ``[N]``, in an order of the batches' own."""
    batches = [to_device(data.collate(batch)) for batch in data.batches(validation, 128, torch.Generator().manual_seed(0))]
    logits = [model(input_ids, attention_mask).float() for input_ids, attention_mask, _ in batches]
    return torch.cat(logits), torch.cat([labels for _, _, labels in batches])


def shift(logits: torch.Tensor, labels: torch.Tensor, flagged: int, min_recall: float) -> float:
    """What the flagged label's logit must gain so that argmax finds ``min_recall`` of its examples; 0 if it does already.

    ``logits`` are ``[N, labels]``, ``labels`` ``[N]``.
    """
    others = logits.clone()
    others[:, flagged] = -torch.inf
    margins = (logits[:, flagged] - others.amax(1))[labels == flagged].sort().values
    n_lost = math.floor((1 - min_recall) * len(margins) + 1e-9)
    if n_lost >= len(margins):
        return 0.0
    if n_lost == 0:
        return max(0.0, 1e-3 - margins[0].item())
    # Halfway to the next one that may be lost, so that no example sits on the border.
    return max(0.0, -margins[n_lost - 1 : n_lost + 1].mean().item())
