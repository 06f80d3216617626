"""Writes conformance/traffic.json: what NumPy and SciPy say of latencies in blocks, for the tests of crates/eval.

    .venv/bin/python conformance/make_traffic.py

Latencies come from simulated queues; each resample repeats whole blocks, as `counts` says.
"""

import json
from pathlib import Path

import numpy as np
import scipy
from scipy import stats

ALPHA = 0.05
N_BLOCKS, N_RESAMPLES = 8, 150


def queue(rng, n, mean_ms):
    """Latencies of one server with exponential service times at a utilisation of 0.7, by Lindley's recursion."""
    gaps, services = rng.exponential(mean_ms / 0.7, n), rng.exponential(mean_ms, n)
    free_at, latencies = 0.0, []
    for at, service in zip(np.cumsum(gaps), services):
        free_at = max(free_at, at) + service
        latencies.append(round(float(free_at - at), 6))
    return latencies


def expanded_tail(n):
    """Hesterberg (2015), section 5.3: the normal tail beyond Student's t quantile, widened by sqrt(n / (n - 1))."""
    return float(stats.norm.cdf(stats.t.ppf(ALPHA, n - 1) * np.sqrt(n / (n - 1))))


def comparison(rng, q, sizes):
    sides = [[queue(rng, n, mean_ms) for n in sizes] for mean_ms in (11.0, 10.0)]
    counts = rng.multinomial(N_BLOCKS, [1 / N_BLOCKS] * N_BLOCKS, N_RESAMPLES)
    repeated = lambda side, row: np.concatenate([np.tile(block, k) for block, k in zip(side, row)])
    value = lambda row: [float(np.quantile(repeated(side, row), q)) for side in sides]
    values = [value(row) for row in counts]
    ratios = [a / b for a, b in values]
    level = 1 - 2 * expanded_tail(N_BLOCKS)
    # SciPy's own percentile interval of a distribution that is handed over.
    known = stats.bootstrap(([0.0, 1.0],), np.mean, n_resamples=2, method="percentile")
    known.bootstrap_distribution = np.array(ratios)
    found = stats.bootstrap(([0.0, 1.0],), np.mean, n_resamples=0, bootstrap_result=known, confidence_level=level, method="percentile")
    return {"q": q, "candidate": sides[0], "baseline": sides[1], "counts": counts.tolist(), "quantiles": values,
            "interval": list(found.confidence_interval)}


def main():
    rng = np.random.default_rng(20260101)
    shapes = [(0.5, [30] * N_BLOCKS), (0.95, [25, 40, 31, 28, 35, 22, 30, 33]), (0.99, [60] * N_BLOCKS), (0.05, [20] * N_BLOCKS)]
    found = {
        "made_with": {"numpy": np.__version__, "scipy": scipy.__version__},
        "tails": [{"n": n, "alpha": ALPHA, "tail": expanded_tail(n)} for n in (6, 10, 30, 200)],
        "comparisons": [comparison(rng, q, sizes) for q, sizes in shapes],
    }
    Path(__file__).with_name("traffic.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
