"""Writes conformance/regression/golden.jsonl: a golden set of tensors, by which a regression of a real data set is gated.

    .venv/bin/python conformance/make_regression.py

The data are scikit-learn's copy of the diabetes study of Efron, Hastie, Johnstone and Tibshirani (2004): ten measurements of each of 442
patients, as they were taken, and how far the disease had come a year later. Every third patient is held out; tests train on the others.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes

GOLDEN = Path(__file__).with_name("regression") / "golden.jsonl"
# Years, as a clinician would ask.
OLD = 60


def patients() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measurements `[442, 10]`, progression `[442]`, and who is held out."""
    data = load_diabetes(scaled=False)
    return data.data, data.target, np.arange(len(data.target)) % 3 == 0


class Regression(torch.nn.Module):
    """`progression` `f32[batch, 1]` of measurements `f32[batch, 10]`, and whether it is `fast`: above the middle of the study."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.layers = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def forward(self, measurements: torch.Tensor) -> dict[str, torch.Tensor]:
        progression = 150 + 80 * self.layers((measurements - self.mean) / self.deviation)
        return {"progression": progression, "fast": progression > 140}


def trained(seed: int, n_patients: int | None = None) -> Regression:
    """A network that has seen the patients who are not held out, or the first of them alone."""
    measurements, progression, held_out = patients()
    known = torch.tensor(measurements[~held_out][:n_patients], dtype=torch.float32)
    right = torch.tensor(progression[~held_out][:n_patients], dtype=torch.float32).unsqueeze(1)
    torch.manual_seed(seed)
    model = Regression(known.mean(0), known.std(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1.0)
    for _ in range(150):
        loss = torch.nn.functional.mse_loss(model(known)["progression"] / 80, right / 80)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def main() -> None:
    measurements, progression, held_out = patients()
    lines = []
    for idx in np.flatnonzero(held_out):
        slices = ["old" if measurements[idx, 0] >= OLD else "younger"]
        case = {"id": f"patient-{idx:03}", "input": {"tensors": {"measurements": [measurements[idx].tolist()]}},
                "expected": {"tensors": {"progression": [[progression[idx]]]}}, "slices": slices}
        lines.append(json.dumps(case))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
