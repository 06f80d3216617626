"""Validation and comparison: does the reranker put the right document higher than the embedder it started from?

`python judge.py` says it for the held-out titles of the test split.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from highroad import training

import data
import model as models


def judge(model: torch.nn.Module, validation: list[data.Group], job: training.Job) -> dict[str, float]:
    """``loss`` is what nDCG@10 lacks to 1: its lowest decides which weights are kept."""
    before, after = ndcg(model, validation, job.to_device)
    return {"loss": 1 - after, "ndcg@10": after, "ndcg@10_embedder": before}


def finish(weights: Path, validation: list[data.Group], options) -> dict[str, float]:
    return {}


def ndcg(model, groups: list[data.Group], to_device=lambda tensors: tensors) -> tuple[float, float]:
    """nDCG@10 over queries with one right document: as the embedder ranked the candidates, and as the model does."""
    before, after = [], []
    for group in groups:
        before.append(gain(group.right))
        # Where the embedder did not find the right document, no order of its candidates helps.
        after.append(0.0 if group.right is None else gain(rank(model, group, to_device)))
    return sum(before) / len(groups), sum(after) / len(groups)


def rank(model, group: data.Group, to_device) -> int:
    """How many documents of the group the model puts before the right one."""
    input_ids, attention_mask, _ = to_device(data.collate([group]))
    scores = model(input_ids, attention_mask)[:, 1].float()
    return int((scores > scores[group.right]).sum())


def gain(rank: int | None) -> float:
    return 0.0 if rank is None or rank >= 10 else 1 / math.log2(rank + 2)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("runs/latest"))
    options = parser.parse_args()
    model = training.load_weights(models.fresh(), options.weights / "model.safetensors")
    groups = data.examples("test", options)
    before, after = ndcg(model, groups)
    print(json.dumps({"queries": len(groups), "ndcg@10_embedder": round(before, 4), "ndcg@10_reranker": round(after, 4)}))


if __name__ == "__main__":
    main()
