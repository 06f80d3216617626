"""Writes conformance/agreement.json: what scikit-learn and `krippendorff` say about agreement, for crates/eval.

    uv pip install --no-deps --target DIR krippendorff==0.9.0
    PYTHONPATH=DIR .venv/bin/python conformance/make_agreement.py

The first alphas are of the four observers in Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C.
"""

import importlib.metadata
import json
from pathlib import Path

import krippendorff
import numpy as np
from sklearn.metrics import cohen_kappa_score

NAN = float("nan")
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def alphas(observers: np.ndarray) -> dict:
    ratings = [[score for score in unit if not np.isnan(score)] for unit in observers.T]
    levels = ("nominal", "ordinal", "interval")
    values = {f"alpha_{level}": krippendorff.alpha(observers, level_of_measurement=level) for level in levels}
    return {"ratings": ratings, "values": values}


def kappas(first: np.ndarray, second: np.ndarray) -> dict:
    weights = {"kappa": None, "linear_kappa": "linear", "quadratic_kappa": "quadratic"}
    values = {name: cohen_kappa_score(first, second, weights=weight) for name, weight in weights.items()}
    return {"ratings": np.stack([first, second], axis=1).tolist(), "values": values}


def main():
    rng = np.random.default_rng(20_260_101)
    goldens = [alphas(np.array(OBSERVERS))]
    for n, noise in [(12, 0.2), (60, 0.4), (300, 0.8)]:
        truth = rng.integers(1, 6, n)
        rated = [np.where(rng.random(n) < noise, rng.integers(1, 6, n), truth).astype(float) for _ in range(3)]
        goldens.append(kappas(rated[0], rated[1]))
        observers = np.array(rated)
        observers[2, rng.random(n) < 0.3] = NAN
        goldens.append(alphas(observers))
    versions = {name: importlib.metadata.version(name) for name in ("scikit-learn", "krippendorff")}
    path = Path(__file__).with_name("agreement.json")
    path.write_text(json.dumps({"versions": versions, "goldens": goldens}, indent=1) + "\n")


main()
