"""Validation and comparison: does the reranker put the right document higher than the embedder it started from?

`python judge.py` says it for the held-out titles of the test split.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
from highroad import training
from scipy.stats import permutation_test

import data
import model as models


def judge(model: torch.nn.Module, validation: list[data.Group], job: training.Job) -> dict[str, float]:
    """``loss`` decides which weights are kept: cross-entropy of the right document, which hangs less on chance than its rank."""
    rankings = ranked(model, validation, job.to_device)
    losses = [-float(scores.log_softmax(0)[right]) for scores, right in filter(None, rankings)]
    before, after = gains(rankings).mean(0).tolist()
    return {"loss": statistics.fmean(losses), "ndcg_at_10": after, "ndcg_at_10_embedder": before}


def finish(weights: Path, validation: list[data.Group], options) -> dict[str, float]:
    return {}


def ranked(model, groups: list[data.Group], to_device=lambda tensors: tensors) -> list[tuple[torch.Tensor, int] | None]:
    """Scores of each query's documents, in the embedder's order, and which is right; ``None`` if it is not among them."""

    def scores(group: data.Group) -> torch.Tensor:
        input_ids, attention_mask, _ = to_device(data.collate([group]))
        return model(input_ids, attention_mask)[:, 0].float().cpu()

    return [None if group.right is None else (scores(group), group.right) for group in groups]


def gains(rankings: list[tuple[torch.Tensor, int] | None]) -> torch.Tensor:
    """nDCG@10 of each query ``[N, 2]``, one document being right: as the embedder ranked the candidates, as the model does."""
    # Where the embedder did not find the right document, no order of its candidates helps.
    ranks = [(None, None) if found is None else (found[1], rank(*found)) for found in rankings]
    return torch.tensor([(gain(before), gain(after)) for before, after in ranks], dtype=torch.float64)


def rank(scores: torch.Tensor, right: int) -> int:
    """How many documents are put before the right one."""
    return int((scores > scores[right]).sum())


def gain(rank: int | None) -> float:
    return 0.0 if rank is None or rank >= 10 else 1 / math.log2(rank + 2)


def chance(differences: torch.Tensor) -> float:
    """Two-sided p value of a paired permutation test: each difference could as well have the other sign."""
    return permutation_test((differences.numpy(),), np.mean, permutation_type="samples", vectorized=True, rng=0).pvalue


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("runs/latest"))
    options = parser.parse_args()
    model = training.load_weights(models.fresh(), options.weights / "model.safetensors")
    groups = data.examples("test", options)
    found = gains(ranked(model, groups))
    before, after = found.mean(0).tolist()
    report = {
        "queries": len(groups),
        "ndcg_at_10_embedder": before,
        "ndcg_at_10_reranker": after,
        # What an order without a mistake would reach: the right document is not always among the candidates.
        "ndcg_at_10_at_most": sum(group.right is not None for group in groups) / len(groups),
        "p": float(chance(found[:, 1] - found[:, 0])),
    }
    print(json.dumps({name: round(value, 4) for name, value in report.items()}))


if __name__ == "__main__":
    main()
