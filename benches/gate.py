"""The bootstrap behind a gate beside SciPy's: a mean of paired differences of 10,000 cases, 10,000 resamples, BCa.

Both get the same differences and take turns; SciPy draws in batches, as all resamples at once would take 1.6 GB. The intervals
must agree as far as two sets of 10,000 resamples can. `make bench` runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
    measured = {name: [] for name in sides}
    for n in range(options.rounds):
        found = []
        for name in sides if n % 2 == 0 else reversed(sides):
            *seconds, interval = sides[name](differences)
            measured[name].append(seconds)
            found.append(interval)
        compare(found, differences)
        print(f"round {n + 1} of {options.rounds}", file=sys.stderr)
    base = next(iter(measured.values()))
    rows = []
    for name, rounds in measured.items():
        wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratios = [statistics.median(theirs[i] / mine[i] for theirs, mine in zip(base, rounds, strict=True)) for i in (0, 1)]
        rows.append([name, f"{wall:.2f}", f"{ratios[0]:.0f}", f"{cpu:.2f}", f"{ratios[1]:.0f}"])
    text = report.markdown(["bootstrap", "s", "x", "CPU s", "x"], rows)
    print(text)
    report.write("gate.py", text)


def with_scipy(differences: np.ndarray) -> tuple[float, float, list[float]]:
    begun, used = time.perf_counter(), time.process_time()
    found = scipy.stats.bootstrap(
        (differences,), np.mean, n_resamples=N_RESAMPLES, batch=BATCH, confidence_level=0.9, method="BCa", rng=2
    )
    return time.perf_counter() - begun, time.process_time() - used, list(found.confidence_interval)


def with_highroad(differences: np.ndarray) -> tuple[float, float, list[float]]:
    """The wall time is that of the bootstrap, the CPU time that of the whole process."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(THREADS)}
    given = json.dumps(differences.tolist())
    used = cpu_of_children()
    run = subprocess.run([BOOTSTRAP], input=given, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    return found["seconds"], cpu_of_children() - used, found["interval"]


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(intervals: list[list[float]], differences: np.ndarray) -> None:
    """Two quantiles of 10,000 resamples differ by about 0.03 standard errors."""
    error = differences.std() / N_CASES**0.5
    gaps = np.abs(np.subtract(*intervals)) / error
    if gaps.max() > 0.15:
        raise SystemExit(f"error: the intervals {intervals} differ by {gaps.max():.2f} standard errors")


if __name__ == "__main__":
    main()
