"""The bootstrap behind a gate beside SciPy's: a mean of paired differences of 10,000 cases, 10,000 resamples, BCa.

Both get the same differences and take turns; SciPy draws in batches, as all resamples at once would take 1.6 GB. The intervals
must agree as far as two sets of 10,000 resamples can. `make bench` runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import report
import scipy

ROOT = Path(__file__).resolve().parent.parent
BOOTSTRAP = ROOT / "target" / "release" / "examples" / "bootstrap"
N_CASES, N_RESAMPLES, BATCH = 10_000, 10_000, 100
THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    # nDCG of two models that differ on a third of the queries.
    differences = np.where(rng.random(N_CASES) < 1 / 3, rng.normal(0.005, 0.3, N_CASES), 0.0).clip(-1, 1)
    sides = {f"scipy.stats.bootstrap {scipy.__version__}": with_scipy, f"highroad, {THREADS} threads": with_highroad}
    seconds = {name: [] for name in sides}
    for n in range(options.rounds):
        found = []
        for name in sides if n % 2 == 0 else reversed(sides):
            taken, interval = sides[name](differences)
            seconds[name].append(taken)
            found.append(interval)
        compare(found, differences)
        print(f"round {n + 1} of {options.rounds}", file=sys.stderr)
    base = next(iter(seconds.values()))
    rows = []
    for name, rounds in seconds.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(base, rounds, strict=True))
        rows.append([name, f"{statistics.median(rounds):.2f}", f"{min(rounds):.2f} to {max(rounds):.2f}", f"{ratio:.0f}"])
    text = report.markdown(["bootstrap", "s", "range", "x"], rows)
    print(text)
    report.write("gate.py", text)


def with_scipy(differences: np.ndarray) -> tuple[float, list[float]]:
    begun = time.perf_counter()
    found = scipy.stats.bootstrap(
        (differences,), np.mean, n_resamples=N_RESAMPLES, batch=BATCH, confidence_level=0.9, method="BCa", rng=2
    )
    return time.perf_counter() - begun, list(found.confidence_interval)


def with_highroad(differences: np.ndarray) -> tuple[float, list[float]]:
    environment = os.environ | {"RAYON_NUM_THREADS": str(THREADS)}
    given = json.dumps(differences.tolist())
    found = json.loads(subprocess.run([BOOTSTRAP], input=given, env=environment, check=True, capture_output=True, text=True).stdout)
    return found["seconds"], found["interval"]


def compare(intervals: list[list[float]], differences: np.ndarray) -> None:
    """Two quantiles of 10,000 resamples differ by about 0.03 standard errors."""
    error = differences.std() / N_CASES**0.5
    gaps = np.abs(np.subtract(*intervals)) / error
    if gaps.max() > 0.15:
        raise SystemExit(f"error: the intervals {intervals} differ by {gaps.max():.2f} standard errors")


if __name__ == "__main__":
    main()
