"""Writes conformance/inference.json: what SciPy and statsmodels say, for the inference tests of crates/eval.

    .venv/bin/python conformance/make_inference.py

Confidence sequences are in neither; their reference follows Waudby-Smith and Ramdas (2024) on [0, 1], bet by bet and step by
step, and shares no formula with the Rust code. Its capital is that of `confseq.betting.diversified_betting_mart` 0.0.11.
"""

import json
from pathlib import Path

import numpy as np
import scipy
import statsmodels
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

ALPHA = 0.05
BETS = 0.95 / 1.6 ** np.arange(12)


def permutations(rng):
    """Two sides of the same cases; SciPy swaps every pair of values in every combination."""
    mean_difference = lambda x, y, axis: np.mean(x - y, axis=axis)
    graded = lambda n: np.round(rng.random(n), 2)
    for baseline, candidate in [
        (graded(5), graded(5)),
        (graded(10), np.clip(graded(10) - 0.2, 0, 1)),
        (np.array([1, 0.5, 1 / 3, 1, 0, 0.25, 1, 0.2]), np.array([1, 1 / 3, 0.5, 1, 0.1, 0.2, 0.5, 0.2])),  # ties and zeros
        (rng.normal(size=13), rng.normal(0.5, size=13)),
    ]:
        p = {side: stats.permutation_test((candidate, baseline), mean_difference, permutation_type="samples", vectorized=True,
                                          n_resamples=np.inf, alternative=side).pvalue
             for side in ("less", "greater", "two-sided")}
        yield {"differences": candidate - baseline, "below": p["less"], "above": p["greater"], "two_sided": p["two-sided"]}


def drawn_permutations(rng):
    """Too many pairs to count, so both sides draw: they agree as far as 20,000 draws can."""
    for n, shift in [(60, -0.05), (400, 0.0), (400, -0.03)]:
        differences = np.round(rng.normal(shift, 0.3, n) * (rng.random(n) < 0.5), 3)
        p = [stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=20_000,
                                    alternative=side, rng=1).pvalue for side in ("less", "greater")]
        yield {"differences": differences, "below": p[0], "above": p[1]}


def shifted(rng):
    """Is the mean difference above a needed gain? The same test of what is left when each case gives that up."""
    for n, gain in [(12, 0.05), (16, 0.1)]:
        differences = np.round(rng.normal(0.2, 0.3, n), 3)
        p = stats.permutation_test((differences - gain,), np.mean, permutation_type="samples", n_resamples=np.inf,
                                   alternative="greater").pvalue
        yield {"differences": differences, "gain": gain, "p": p}


def multiple(rng):
    for p in [[0.04], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.001, 1.0, 0.0], list(rng.random(40) ** 3)]:
        yield {"p": p, "holm": multipletests(p, method="holm")[1], "benjamini_hochberg": multipletests(p, method="fdr_bh")[1]}


def capital(x, mean):
    """Mean over the bets of the capital of a gambler on "the mean of x is above `mean`", x in [0, 1]."""
    return np.mean([np.prod(1 + bet / mean * (x - mean)) for bet in BETS])


def lower(x):
    excess = lambda mean: np.log(capital(x, mean)) + np.log(ALPHA)
    with np.errstate(over="ignore"):  # near 0 the capital is beyond any number
        return optimize.brentq(excess, 1e-6, 1 - 1e-6, xtol=1e-12)


def sequences(rng):
    for n, values, shares in [
        (200, [-1, 0, 1], [0.05, 0.9, 0.05]),
        (400, [-1, 0, 1], [0.2, 0.75, 0.05]),
        (300, [-1, -0.5, -0.25, 0, 0.25, 0.5, 1], [0.02, 0.1, 0.1, 0.56, 0.1, 0.1, 0.02]),
    ]:
        differences = rng.choice(values, n, p=shares)
        x = (differences + 1) / 2
        yield {"differences": differences, "bounds": [2 * lower(x) - 1, 1 - 2 * lower(1 - x)]}


def flips():
    for lost, won, share in [(3, 1, 0.5), (12, 4, 0.5), (30, 45, 0.4), (900, 1000, 0.5)]:
        n = lost + won
        evidence = lambda p: stats.betabinom.logpmf(lost, n, 1, 1) - stats.binom.logpmf(lost, n, p)
        bound = lambda end: optimize.brentq(lambda p: evidence(p) + np.log(ALPHA), end, lost / n, xtol=1e-12)
        yield {"regressions": lost, "improvements": won, "share": share, "log_evidence": evidence(share),
               "bounds": [bound(1e-9), bound(1 - 1e-9)]}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def main():
    rng = np.random.default_rng(20260103)
    content = {
        "made_by": f"scipy {scipy.__version__}, statsmodels {statsmodels.__version__}",
        "permutations": list(permutations(rng)), "shifted": list(shifted(np.random.default_rng(20260110))),
        "drawn_permutations": list(drawn_permutations(rng)),
        "multiple": list(multiple(rng)), "sequences": list(sequences(rng)), "flips": list(flips()),
    }
    lines = [f'"{key}": {json.dumps(plain(value), separators=(",", ":"))}' for key, value in content.items()]
    Path(__file__).with_name("inference.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
