"""Writes conformance/statistics.json: what SciPy, statsmodels, scikit-learn, trec_eval, sacrebleu, rouge-score and torchmetrics
(SQuAD's F1) say, for the tests of crates/eval.

    .venv/bin/python conformance/make_statistics.py

Tango's score bounds, the exact unconditional bounds and the power of McNemar's test are in none of them; their
references here follow the definitions by brute force and share no formula with the Rust code. So do the calibration error
(checked here against torchmetrics, whose bins close below and not above), costs, perplexity, the estimate of pass@k and the evidence of drift.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytrec_eval
import sacrebleu
import scipy
import sklearn
import statsmodels
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy import optimize, spatial, special, stats
from sklearn import metrics
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.text.squad import _compute_f1_score as squad_f1

ALPHA = 0.05


def proportions():
    for k, n, level in [(0, 1, 0.95), (0, 50, 0.95), (3, 10, 0.9), (45, 50, 0.95), (50, 50, 0.95), (187, 200, 0.9),
                        (999, 1000, 0.99), (4321, 9876, 0.95)]:
        yield {"k": k, "n": n, "level": level,
               "wilson": proportion_confint(k, n, 1 - level, "wilson"),
               "clopper_pearson": proportion_confint(k, n, 1 - level, "beta")}


def mcnemars():
    for b, c in [(0, 0), (1, 0), (0, 5), (5, 0), (6, 0), (3, 9), (12, 4), (25, 25), (130, 97), (700, 650)]:
        flips = b + c
        one = (lambda side: stats.binomtest(c, flips, alternative=side).pvalue if flips else 1.0)
        yield {"n": 2 * flips + 10, "regressions": b, "improvements": c,
               "two_sided": mcnemar([[0, b], [c, 0]], exact=True).pvalue if flips else 1.0,
               "worse": one("less"), "better": one("greater")}


def tango_score(n, b, c, delta):
    """Score statistic with the smaller flip probability found as the root of the log-likelihood's derivative."""
    more_b, more_c = max(0.0, -delta), max(0.0, delta)
    span = (1 - abs(delta)) / 2
    same = n - b - c
    slope = lambda s: b / (s + more_b) + c / (s + more_c) - same / (span - s)
    low, high = 1e-15 * span, (1 - 1e-12) * span
    if slope(low) < 0:
        s = 0.0
    elif same == 0:
        s = span
    else:
        s = optimize.brentq(slope, low, high, xtol=1e-18, rtol=1e-15, maxiter=500)
    variance = n * (2 * s + abs(delta) - delta**2)
    excess = c - b - n * delta
    if variance <= 0:
        return np.sign(excess) * np.inf if excess else 0.0
    return excess / np.sqrt(variance)


def tango_lower(n, b, c, alpha=ALPHA):
    if b == n:
        return -1.0
    z = stats.norm.ppf(1 - alpha)
    return optimize.brentq(lambda d: min(tango_score(n, b, c, d), 1e6) - z, -1 + 1e-12, (c - b) / n, xtol=1e-15)


def worst_probability(as_good, n):
    """Of these outcomes, under the least favourable share of flips; a function of the true difference."""
    full = np.column_stack([as_good, n - as_good.sum(1)])

    def worst(delta):
        low, high = max(0.0, -delta), (1 - delta) / 2  # P(regression)
        at = lambda q: stats.multinomial.pmf(full, n, [q, q + delta, max(0.0, 1 - 2 * q - delta)]).sum()
        grid = low + (high - low) * np.linspace(0, 1, 401) ** 2
        values = [at(q) for q in grid]
        best = int(np.argmax(values))
        around = (grid[max(best - 1, 0)], grid[min(best + 1, 400)])
        refined = optimize.minimize_scalar(lambda q: -at(q), bounds=around, method="bounded", options={"xatol": 1e-9})
        return max(max(values), -refined.fun)

    return worst


def outcomes_of(n):
    return np.array([(i, j) for i in range(n + 1) for j in range(n + 1 - i)])


def probability_as_good(n, b, c, alpha=ALPHA):
    """Of an outcome at least as good as this one, each of all ordered by its own Tango bound."""
    outcomes = outcomes_of(n)
    bound = np.array([tango_lower(n, i, j, alpha) for i, j in outcomes])
    return worst_probability(outcomes[bound >= tango_lower(n, b, c, alpha) - 1e-9], n)


def p_better_by(n, b, c, gain):
    """Of an outcome with at least this one's Tango score for the gain, where that is the true difference."""
    outcomes = outcomes_of(n)
    scores = np.array([tango_score(n, i, j, gain) for i, j in outcomes])
    return worst_probability(outcomes[scores >= tango_score(n, b, c, gain) - 1e-9], n)(gain)


def exact_lower(n, b, c, alpha=ALPHA):
    """Buehler's bound: the difference at which that probability is alpha."""
    if b == n:
        return -1.0
    worst = probability_as_good(n, b, c, alpha)
    return optimize.brentq(lambda d: worst(d) - alpha, -1 + 1e-9, min((c - b) / n + 0.3, 1 - 1e-9), xtol=1e-8)


def paired():
    for n, b, c in [(20, 0, 0), (20, 3, 1), (50, 5, 2), (200, 8, 12), (200, 0, 0), (200, 4, 0), (1000, 31, 22), (44, 0, 1)]:
        yield {"n": n, "regressions": b, "improvements": c,
               "score_bounds": [tango_lower(n, b, c), -tango_lower(n, c, b)]}


def exact_paired():
    for n, b, c in [(8, 0, 0), (8, 2, 1), (20, 0, 0), (20, 1, 0), (20, 3, 6)]:
        yield {"n": n, "regressions": b, "improvements": c,
               "exact_bounds": [exact_lower(n, b, c), -exact_lower(n, c, b)]}


def better_by():
    for n, b, c, gain in [(20, 0, 5, 0.05), (20, 1, 9, 0.2), (24, 1, 7, 0.1), (30, 0, 4, 0.02), (16, 1, 9, 0.15)]:
        yield {"n": n, "regressions": b, "improvements": c, "gain": gain, "p": p_better_by(n, b, c, gain)}


def power_of_gain(n, needed, regression, improvement):
    """The probability of every outcome whose exact bound lies above the needed gain."""
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = stats.multinomial.pmf([b, c, n - b - c], n, [regression, improvement, 1 - regression - improvement])
            if chance > 1e-9 and b < n and probability_as_good(n, b, c)(needed) < ALPHA:
                total += chance
    return total


def powers_of_gains():
    for n, needed, discordant, gain in [(14, 0.1, 0.2, 0.6), (18, 0.05, 0.3, 0.3)]:
        flips = max(discordant, gain)
        yield {"n": n, "needed": needed, "discordant": discordant, "gain": gain,
               "power": power_of_gain(n, needed, (flips - gain) / 2, (flips + gain) / 2)}


def mcnemar_power(n, discordant, drop, sides):
    """Sums the trinomial probability of every rejected outcome."""
    regression, improvement = (discordant + drop) / 2, (discordant - drop) / 2
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if sides == 1:
                rejected = b + c > 0 and stats.binom.cdf(c, b + c, 0.5) <= ALPHA
            else:
                rejected = b + c > 0 and 2 * stats.binom.cdf(min(b, c), b + c, 0.5) <= ALPHA
            if rejected:
                total += stats.multinomial.pmf([b, c, n - b - c], n, [regression, improvement, 1 - discordant])
    return total


def powers():
    for n, discordant, drop, sides in [(50, 0.2, 0.1, 1), (50, 0.2, 0.1, 2), (60, 0.3, 0.0, 2), (40, 0.1, 0.1, 1)]:
        yield {"n": n, "discordant": discordant, "drop": drop, "sides": sides,
               "power": mcnemar_power(n, discordant, drop, sides)}


def classifiers(rng):
    for labels, n, decimals in [(["benign", "injection"], 40, 1), (["a", "b", "c"], 60, 2), (["x", "y", "z"], 25, 6)]:
        expected = rng.integers(0, len(labels), n)
        logits = rng.normal(size=(n, len(labels))) + 1.2 * np.eye(len(labels))[expected]
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        scores = np.round(scores, decimals).astype(np.float32)  # few decimals make ties
        predicted = scores.argmax(1)
        per_label = metrics.precision_recall_fscore_support(expected, predicted, zero_division=0)
        macro = metrics.precision_recall_fscore_support(expected, predicted, average="macro", zero_division=0)
        wide = scores.astype(np.float64)
        costs = np.round(np.random.default_rng(n).gamma(2, size=(len(labels), len(labels))), 2)
        chosen = np.clip(scores.astype(np.float64)[np.arange(n), expected], np.finfo(np.float64).eps, None)
        yield {"labels": labels, "expected": expected.tolist(), "predicted": predicted.tolist(),
               "scores": scores.astype(np.float64).tolist(),
               "accuracy": metrics.accuracy_score(expected, predicted),
               "f1_micro": metrics.f1_score(expected, predicted, average="micro"),
               "precision": per_label[0], "recall": per_label[1], "f1": per_label[2],
               "precision_macro": macro[0], "recall_macro": macro[1], "f1_macro": macro[2],
               "balanced_accuracy": metrics.balanced_accuracy_score(expected, predicted),
               "mcc": metrics.matthews_corrcoef(expected, predicted),
               "auprc": [metrics.average_precision_score(expected == i, wide[:, i]) for i in range(len(labels))],
               "accuracy_at_2": np.mean([expected[i] in row for i, row in enumerate(first_labels(wide, 2))]),
               "brier": brier(expected, wide), "ece": calibration_error(expected, predicted, wide),
               "costs": costs, "cost": costs[expected, predicted].mean(),
               "auroc": [metrics.roc_auc_score(expected == i, scores[:, i].astype(np.float64)) for i in range(len(labels))],
               # Two decimals do not sum to 1, which sklearn.metrics.log_loss would rescale; the definition does not.
               "log_loss": -np.log(chosen).mean()}
    labels = ["a", "b"]
    expected, scores = np.array([0, 1, 1, 0]), np.array([[0.75, 0.25], [0.5, 0.5], [0.125, 0.875], [1.0, 0.0]])
    assert np.isclose(metrics.log_loss(expected, scores), -np.log(scores[np.arange(4), expected]).mean(), rtol=1e-15)


def first_labels(scores, k):
    """The k labels of the highest scores; of equal ones the first, while scikit-learn's `top_k_accuracy_score` takes the last."""
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = np.arange(len(scores)) % scores.shape[1]
    if all(len(set(row)) == len(row) for row in scores) and scores.shape[1] > 2:
        ours = np.mean([expected[i] in row for i, row in enumerate(first)])
        assert ours == metrics.top_k_accuracy_score(expected, scores, k=k)
    return first


def brier(expected, scores):
    one_hot = np.eye(scores.shape[1])[expected]
    ours = ((scores - one_hot) ** 2).sum(1).mean() / 2
    if np.allclose(scores.sum(1), 1, rtol=0, atol=1e-12):
        theirs = metrics.brier_score_loss(expected, scores, scale_by_half=True, labels=range(scores.shape[1]))
        assert np.isclose(ours, theirs, rtol=1e-12), (ours, theirs)
    return ours


def calibration_error(expected, predicted, scores, n_bins=15):
    """Guo et al. (2017): the confidence is that of the answered label, bin m holds ((m - 1) / M, m / M]."""
    confidence, right = scores[np.arange(len(scores)), predicted], expected == predicted
    edges, total = np.linspace(0, 1, n_bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    if np.abs(confidence[:, None] - edges).min() > 1e-9:
        theirs = multiclass_calibration_error(torch.tensor(scores), torch.tensor(expected), scores.shape[1], n_bins)
        assert np.isclose(total, theirs.item(), atol=1e-6), (total, theirs)
    return total


def regressions(rng):
    for n, scale, decimals in [(2, 1, 3), (30, 1, 1), (200, 1e4, 2)]:
        expected = np.round(scale * rng.normal(3, 1, size=n), decimals)
        predicted = np.round(expected + scale * rng.normal(0.1, 0.7, size=n), decimals)
        yield {"expected": expected, "predicted": predicted, "mae": metrics.mean_absolute_error(expected, predicted),
               "rmse": metrics.root_mean_squared_error(expected, predicted), "r2": metrics.r2_score(expected, predicted)}
    constant = np.full(5, 0.1)
    yield {"expected": constant, "predicted": constant, "mae": 0.0, "rmse": 0.0, "r2": metrics.r2_score(constant, constant)}
    off = constant + [0, 0.5, 0, 0, 0]
    yield {"expected": constant, "predicted": off, "mae": metrics.mean_absolute_error(constant, off),
           "rmse": metrics.root_mean_squared_error(constant, off), "r2": metrics.r2_score(constant, off)}



def tensors(rng):
    """Two outputs of their own shapes and scales, of each and of both side by side; the L2 error by its definition."""
    for n, weighted in [(3, False), (40, False), (40, True)]:
        expected = {"flow": np.round(rng.normal(3, 1, (n, 1, 2, 2)), 2) + [[[0, 50], [0, 0]]], "price": np.round(rng.gamma(2, 100, (n, 1)), 1) + 1}
        predicted = {name: np.round(right + 0.2 * right.std() * rng.normal(size=right.shape), 2) for name, right in expected.items()}
        weights = np.round(rng.gamma(1.5, size=n) + 0.01, 3) if weighted else np.ones(n)
        both = [np.concatenate([side[name].reshape(n, -1) for name in sorted(side)], axis=1) for side in (expected, predicted)]
        sides = {name: (expected[name].reshape(n, -1), predicted[name].reshape(n, -1)) for name in expected} | {"": tuple(both)}
        yield {"expected": expected, "predicted": predicted, "weights": weights,
               "metrics": {name: of_tensors(*side, weights) for name, side in sides.items()},
               "within": [within(expected, predicted, tolerances) for tolerances in TOLERANCES]}


# Of each output; an output without one is not judged.
TOLERANCES = [{"flow": {"atol": 4, "rtol": 0.25}}, {"flow": {"atol": 0, "rtol": 3}, "price": {"rtol": 0.15}}, {"price": {"atol": 20}}]


def within(expected, predicted, tolerances):
    def close(case, name, atol=0, rtol=0):
        return np.allclose(predicted[name][case], expected[name][case], rtol=rtol, atol=atol)

    cases = range(len(expected["flow"]))
    return {"tolerances": tolerances, "right": [all(close(case, name, **tolerances[name]) for name in tolerances) for case in cases]}


def of_tensors(right, given, weights):
    error, known = given - right, {"sample_weight": weights}
    found = {"mae": metrics.mean_absolute_error(right, given, **known), "rmse": np.sqrt(metrics.mean_squared_error(right, given, **known)),
             "r2": metrics.r2_score(right, given, multioutput="variance_weighted", **known),
             "mape": metrics.mean_absolute_percentage_error(right, given, **known),
             "max_error": np.average(np.abs(error).max(axis=1), weights=weights),
             "relative_l2": np.average(np.linalg.norm(error, axis=1) / np.linalg.norm(right, axis=1), weights=weights)}
    if right.shape[1] == 1 and (weights == 1).all():
        found |= {"pearson": stats.pearsonr(right[:, 0], given[:, 0])[0], "spearman": stats.spearmanr(right[:, 0], given[:, 0])[0]}
    return found


WORDS = """the a an The cat sat on mat, mat. "quoted" 3.14 1,000 3-4 well-known U.S.A. isn't &amp; &quot;so&quot; <skipped> naïve
café Zürich ÆON ß straße 日本語 東京, 。 привет мир! ??? ... e\u0301 a\u0301 under_score C++ x=y+z; {key: [1, 2]} #tag @user 50% $5 / \\ ~
\u00a0nbsp tab\there line\nbreak hyphen-\nated \x1csep \u200bzero 😀 👩‍👩‍👧 İstanbul ΣΊΣΥΦΟΣ an.other (paren) the_end""".split(" ")


def generated_texts(rng):
    """Cases of a text and its references: unrelated, partly equal, equal, empty, and of punctuation only."""
    draw = lambda most: [WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(0, most + 1))]

    def noisy(words):
        kept = [word for word in words if rng.random() > 0.2]
        return kept[: len(kept) // 2] + draw(2) + kept[len(kept) // 2:]

    for n_cases, n_references, most in [(1, 1, 6), (12, 1, 12), (40, 3, 25), (15, 2, 3), (6, 1, 2)]:
        cases = []
        for _ in range(n_cases):
            text = draw(most)
            references = [" ".join(noisy(text) if rng.random() < 0.8 else draw(most)) for _ in range(n_references)]
            cases.append((" ".join(text), references))
        yield cases
    yield [("", [""]), ("", ["the cat"]), ("the cat", [""]), ("a", ["the"]), (". , !", ["."]), ("  x  ", ["x"]),
           ("the cat sat on the mat", ["the cat sat on the mat"])]
    yield [("", ["the cat sat"])]
    yield [("one two three", ["one two three"])]
    yield [("the cat sat on the mat today", ["the cat sat there", "on the mat it sat", ""])]


def texts(rng):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for cases in generated_texts(rng):
        answers = [text for text, _ in cases]
        # sacrebleu takes the n-th reference of every case together.
        columns = list(zip(*(references for _, references in cases)))
        yield {"answers": answers, "references": [references for _, references in cases],
               "exact_match": np.mean([text.strip() in [r.strip() for r in references] for text, references in cases]),
               "token_f1": np.mean([max(squad_f1(text, r).item() for r in references) for text, references in cases]),
               "rouge_l": np.mean([scorer.score_multi(references, text)["rougeL"].fmeasure for text, references in cases]),
               "chrf": sacrebleu.corpus_chrf(answers, columns).score / 100,
               "bleu": sacrebleu.corpus_bleu(answers, columns).score / 100}


def samples(rng):
    """Perplexity of log-probabilities, and pass@k by counting every way to draw k of the samples."""
    for n_cases, n_samples, k in [(5, 1, 1), (8, 6, 3), (4, 7, 7)]:
        passed = rng.integers(0, n_samples + 1, n_cases)
        log_probabilities = [(-rng.gamma(1.5, size=rng.integers(1, 9))).tolist() for _ in range(n_cases)]
        drawn = lambda c: [any(i < c for i in ways) for ways in itertools.combinations(range(n_samples), k)]
        yield {"n_samples": n_samples, "n_passed": passed, "k": k, "log_probabilities": log_probabilities,
               "pass_at_k": np.mean([np.mean(drawn(c)) for c in passed]),
               "perplexity": np.exp(-np.mean(list(itertools.chain(*log_probabilities))))}


def correlations(rng):
    for n, decimals in [(12, 8), (50, 1), (200, 2)]:
        x = np.round(rng.normal(size=n), decimals)
        y = np.round(0.6 * x + 0.8 * rng.normal(size=n), decimals)
        pearson = stats.pearsonr(x, y)
        yield {"x": x, "y": y, "pearson": pearson.statistic, "spearman": stats.spearmanr(x, y).statistic,
               "fisher_z": list(pearson.confidence_interval(0.95))}


def rankings(rng):
    """Graded relevance of the documents of queries, some without a relevant one, and trec_eval's means over the queries."""
    for n_queries, most, highest in [(1, 3, 1), (12, 20, 1), (40, 30, 3)]:
        sizes = rng.integers(1, most + 1, n_queries)
        expected = [rng.choice(highest + 1, size, p=[0.7, *[0.3 / highest] * highest]).tolist() for size in sizes]
        # No ties: trec_eval breaks them by the documents' names.
        scores = [(rng.permutation(size) / 7 - 1).tolist() for size in sizes]
        names = lambda values: {f"q{q}": {f"d{d}": value for d, value in enumerate(row)} for q, row in enumerate(values)}
        measures = {"ndcg_cut.3,10", "recip_rank", "recall.1,3,10", "map"}
        of_queries = pytrec_eval.RelevanceEvaluator(names(expected), measures).evaluate(names(scores)).values()
        mean = lambda measure: sum(values[measure] for values in of_queries) / n_queries
        first = {measure: mean(measure) for measure in sorted(next(iter(of_queries)))}
        yield {"expected": expected, "scores": scores, "measures": first}


def bootstraps(rng):
    for seed, n, level in [(1, 18, 0.9), (2, 25, 0.95)]:
        x = np.round(rng.gamma(2, size=n), 3)
        y = np.round(x + rng.normal(size=n), 3)
        for name, data, paired, of in [("mean", (x,), False, np.mean),
                                       ("pearson", (x, y), True, lambda a, b: stats.pearsonr(a, b).statistic)]:
            n_resamples = 120
            draw = lambda: np.random.default_rng(seed)
            result = {method: stats.bootstrap(data, of, paired=paired, vectorized=False, n_resamples=n_resamples,
                                              confidence_level=level, method=method, rng=draw()) for method in
                      ("BCa", "percentile")}
            indices = draw().integers(0, n, (n_resamples, n))
            ours = [of(*(d[i] for d in data)) for i in indices]
            assert np.allclose(sorted(ours), sorted(result["BCa"].bootstrap_distribution)), "other resamples than SciPy"
            yield {"statistic": name, "x": x, "y": y, "level": level,
                   "counts": [np.bincount(i, minlength=n).tolist() for i in indices],
                   "bca": list(result["BCa"].confidence_interval),
                   "percentile": list(result["percentile"].confidence_interval),
                   "standard_error": result["BCa"].standard_error}


def quantiles(rng):
    for n, q, level in [(20, 0.5, 0.9), (200, 0.9, 0.9), (1000, 0.99, 0.95)]:
        x = np.round(rng.gamma(3, size=n), 3)
        interval = stats.quantile_test(x, p=q).confidence_interval(level)
        yield {"x": x, "q": q, "level": level, "quantile": np.quantile(x, q), "interval": list(interval)}


def weighted(rng):
    """Metrics of cases that count differently, by scikit-learn's `sample_weight`; means are NumPy's weighted averages."""
    for labels, n, decimals in [(["benign", "injection"], 40, 1), (["a", "b", "c"], 80, 2)]:
        expected, weights = rng.integers(0, len(labels), n), np.round(rng.gamma(1.5, size=n) + 0.01, 3)
        scores = np.round(rng.dirichlet(np.ones(len(labels)), n) + 0.5 * np.eye(len(labels))[expected], decimals).astype(np.float32)
        predicted, wide = scores.argmax(1), scores.astype(np.float64)
        known = {"sample_weight": weights}
        per_label = metrics.precision_recall_fscore_support(expected, predicted, zero_division=0, **known)
        macro = metrics.precision_recall_fscore_support(expected, predicted, average="macro", zero_division=0, **known)
        chosen, one_hot = wide[np.arange(n), expected], np.eye(len(labels))[expected]
        yield {"kind": "classes", "labels": labels, "expected": expected, "predicted": predicted, "scores": wide, "weights": weights,
               "metrics": {
                   "accuracy": metrics.accuracy_score(expected, predicted, **known),
                   "balanced_accuracy": metrics.balanced_accuracy_score(expected, predicted, **known),
                   "precision_macro": macro[0], "recall_macro": macro[1], "f1_macro": macro[2],
                   "mcc": metrics.matthews_corrcoef(expected, predicted, **known),
                   "log_loss": np.average(-np.log(np.clip(chosen, np.finfo(np.float64).eps, None)), weights=weights),
                   "brier": np.average(((wide - one_hot) ** 2).sum(1) / 2, weights=weights),
                   "ece": weighted_calibration_error(expected, predicted, wide, weights)},
               "of_labels": {
                   "precision": per_label[0], "recall": per_label[1], "f1": per_label[2],
                   "auroc": [metrics.roc_auc_score(expected == i, wide[:, i], **known) for i in range(len(labels))],
                   "auprc": [metrics.average_precision_score(expected == i, wide[:, i], **known) for i in range(len(labels))]}}
    for n in [30, 200]:
        expected = np.round(rng.normal(3, 1, n), 2)
        predicted, weights = np.round(expected + rng.normal(0.1, 0.7, n), 2), np.round(rng.gamma(1.5, size=n) + 0.01, 3)
        covariance = np.cov(expected, predicted, aweights=weights)
        yield {"kind": "numbers", "expected_numbers": expected, "predicted_numbers": predicted, "weights": weights, "metrics": {
            "mae": metrics.mean_absolute_error(expected, predicted, sample_weight=weights),
            "rmse": metrics.root_mean_squared_error(expected, predicted, sample_weight=weights),
            "r2": metrics.r2_score(expected, predicted, sample_weight=weights),
            "pearson": covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])}}


def weighted_calibration_error(expected, predicted, scores, weights, n_bins=15):
    confidence, right = scores[np.arange(len(scores)), predicted], expected == predicted
    edges, total = np.linspace(0, 1, n_bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & ((confidence <= high) | (high == 1))  # these scores may exceed 1
        if inside.any():
            gap = np.average(right[inside], weights=weights[inside]) - np.average(confidence[inside], weights=weights[inside])
            total += weights[inside].sum() / weights.sum() * abs(gap)
    return total


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def samples_of(rng, n, m, n_bins, shift):
    shares = rng.dirichlet(np.full(n_bins, 2.0))
    moved = shares * np.exp(shift * rng.normal(size=n_bins))
    return rng.multinomial(n, shares), rng.multinomial(m, moved / moved.sum())


def counts(rng):
    """Two lists of counts over the same bins, in whose order they are values."""
    for n, m, n_bins, shift in [(40, 30, 4, 0.0), (120, 250, 8, 0.4), (5000, 800, 6, 0.2), (60, 4000, 12, 1.0), (25, 25, 25, 0.5)]:
        left, right = samples_of(rng, n, m, n_bins, shift)
        values = [np.repeat(np.arange(n_bins), side) for side in (left, right)]
        both = np.array([left, right])
        table = both[:, both.sum(0) > 0]
        chi = stats.chi2_contingency(table, correction=False)
        g = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        distance = stats.ks_2samp(*values, method="asymp").statistic
        # Without ties the exact method is exact; with them it is cautious, which the limit is beyond 250,000 pairs.
        p = stats.ks_2samp(*values, method="exact").pvalue if n * m <= 250_000 else stats.kstwobign.sf(np.sqrt(n * m / (n + m)) * distance)
        smooth = [(side + 0.5) / (side + 0.5).sum() for side in (left, right)]
        yield {"left": left, "right": right, "ks": distance, "ks_p": p,
               "chi2": chi.statistic, "chi2_p": chi.pvalue, "g": g.statistic, "g_p": g.pvalue, "freedom": chi.dof,
               "js": spatial.distance.jensenshannon(left, right, base=2),
               "psi": stats.entropy(smooth[1], smooth[0]) + stats.entropy(smooth[0], smooth[1]),
               "psi_95": stats.chi2.ppf(0.95, n_bins - 1) * (1 / n + 1 / m),
               "evidence": evidence(left, right)}


def evidence(baseline, live):
    """Alternatives against the predictive of the baseline, one observation after the other."""
    prior = baseline + 0.5
    sequence = np.repeat(np.arange(len(live)), live)
    def log_probability(weights):
        weights = np.array(weights, float)
        total = 0.0
        for at in sequence:
            total += np.log(weights[at] / weights.sum())
            weights[at] += 1
        return total
    alternatives = [log_probability(prior * strength * len(live) / prior.sum()) for strength in (1, 4, 16, 64)]
    return special.logsumexp(alternatives) - np.log(4) - log_probability(prior)


def kernels(rng):
    for n, m, width, shift in [(12, 9, 3, 0.0), (20, 25, 5, 1.0)]:
        left, right = rng.normal(size=(n, width)).astype(np.float32), (rng.normal(size=(m, width)) + shift).astype(np.float32)
        both = np.concatenate([left, right]).astype(np.float64)
        distances = spatial.distance.squareform(spatial.distance.pdist(both))
        bandwidth = np.median(spatial.distance.pdist(both))
        kernel = metrics.pairwise.rbf_kernel(both, gamma=1 / (2 * bandwidth**2))
        within = lambda side: (side.sum() - np.trace(side)) / (len(side) * (len(side) - 1))
        assert np.allclose(np.diag(distances), 0)
        yield {"left": left, "right": right, "bandwidth": bandwidth,
               "squared": within(kernel[:n, :n]) + within(kernel[n:, n:]) - 2 * kernel[:n, n:].mean()}


def main():
    rng = np.random.default_rng(20260101)
    torch.set_default_dtype(torch.float64)  # in which torchmetrics then divides
    versions = {"scipy": scipy, "statsmodels": statsmodels, "scikit-learn": sklearn, "sacrebleu": sacrebleu}
    content = {
        "made_by": ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
        "proportions": list(proportions()), "mcnemar": list(mcnemars()), "paired": list(paired()),
        "exact_paired": list(exact_paired()), "better_by": list(better_by()), "power_of_gain": list(powers_of_gains()),
        "power": list(powers()), "classifiers": list(classifiers(rng)),
        "correlations": list(correlations(rng)), "bootstraps": list(bootstraps(rng)), "quantiles": list(quantiles(rng)),
        "rankings": list(rankings(np.random.default_rng(20260102))),
        "regressions": list(regressions(np.random.default_rng(20260103))),
        "texts": list(texts(np.random.default_rng(20260104))), "samples": list(samples(np.random.default_rng(20260105))),
        "weighted": list(weighted(np.random.default_rng(20260106))),
        "counts": list(counts(np.random.default_rng(20260107))), "kernels": list(kernels(np.random.default_rng(20260108))),
        "tensors": list(tensors(np.random.default_rng(20260109))),
    }
    path = Path(__file__).with_name("statistics.json")
    lines = [f'"{key}": {json.dumps(plain(value), separators=(",", ":"))}' for key, value in content.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
