"""Validation: where the film that was seen next stands in the model's order, beside the order of popularity."""

import math
from pathlib import Path

import torch
from highroad import training
from torch.nn.functional import cross_entropy

import data


def judge(model: torch.nn.Module, validation: list[data.Example], job: training.Job) -> dict[str, float]:
    """``loss``, whose lowest decides which weights are kept, and what else is worth logging."""
    input_ids, attention_mask, films = job.to_device(data.collate(validation))
    logits = model(input_ids, attention_mask).float()
    ranks = (logits > logits.gather(1, films.unsqueeze(1))).sum(1)
    seen = torch.bincount(films.new_tensor([film for _, film in data.split("train")]), minlength=logits.shape[1])
    popular = (seen > seen[films].unsqueeze(1)).sum(1)
    of_popularity = {f"{name}_popularity": value for name, value in top10(popular).items()}
    return {"loss": cross_entropy(logits, films).item(), **top10(ranks), **of_popularity}


def top10(ranks: torch.Tensor) -> dict[str, float]:
    """Share of right films among the first ten, and nDCG@10, of 0-based ranks."""
    gains = [1 / math.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks.tolist()]
    return {"hit_at_10": (ranks < 10).float().mean().item(), "ndcg_at_10": sum(gains) / len(gains)}


def finish(weights: Path, validation: list[data.Example], options) -> dict[str, float]:
    return {}
