"""Where the model says yes: the decision that training does not take.

Training weighs both mistakes alike. Which of them costs more is a decision about the product, taken on the validation split,
which trained nothing. The head's bias moves; the ranking, and with it AUROC, stays.
"""

import math
from pathlib import Path

import torch

import data
import model as models


@torch.no_grad()
def choose(path: Path, validation: list[data.Encoded], min_recall: float) -> float:
    """Move the decision of the saved weights so that ``min_recall`` of what must be flagged is flagged; by how much."""
    model = models.load(path, len(data.LABELS))
    batches = [data.collate(batch) for batch in data.batches(validation, 128, torch.Generator().manual_seed(0))]
    logits = torch.cat([model(input_ids, attention_mask) for input_ids, attention_mask, _ in batches])
    labels = torch.cat([labels for _, _, labels in batches])
    flagged = data.LABELS.index(data.FLAGGED)
    gain = shift(logits, labels, flagged, min_recall)
    model.head.bias[flagged] += gain
    models.save(model, path)
    return gain


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
