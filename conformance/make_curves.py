"""Writes conformance/curves.json: what scikit-learn's curves of classifiers are, for crates/eval/tests/curves.rs.

    .venv/bin/python conformance/make_curves.py
"""

import json
from pathlib import Path

import numpy as np
import sklearn
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve


def cases():
    random = np.random.default_rng(20260101)
    for n, digits, share in [(5, 1, 0.5), (40, 1, 0.3), (200, 2, 0.1), (300, 9, 0.6)]:
        is_label = random.random(n) < share
        is_label[:2] = [True, False]
        # Few digits: ties, and scores on the borders of bins.
        scores = np.clip(random.normal(0.35 + 0.3 * is_label, 0.25), 0, 1).round(digits)
        yield is_label, scores


def curves(is_label, scores, n_bins):
    right, confidence = calibration_curve(is_label, scores, n_bins=n_bins)
    false_positive_rate, true_positive_rate, _ = roc_curve(is_label, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(is_label, scores)
    return {"is_label": is_label.tolist(), "scores": scores.tolist(), "n_bins": n_bins,
            "reliability": np.transpose([confidence, right]).tolist(),
            "roc": np.transpose([false_positive_rate, true_positive_rate]).tolist(),
            "precision_recall": np.transpose([recall, precision])[::-1].tolist()}


if __name__ == "__main__":
    goldens = {"scikit-learn": sklearn.__version__,
               "curves": [curves(*case, n_bins) for case in cases() for n_bins in (5, 10)]}
    Path(__file__).with_name("curves.json").write_text(json.dumps(goldens) + "\n")
