"""What HTTP costs: added latency at low load, and throughput beside the same predictor in process.

Both sides run in rounds that take turns, on the same package, texts and threads. The added latency of a request is what a
client on a kept-alive loopback connection waits, less the model's own time for it from the server's request log; so it holds
parsing, tokenising, queue, reply and the client's own part. In-process throughput is one call of the Python module with all
texts, HTTP throughput several connections with 32 texts a request; the clients share the machine's cores with the server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import report

REPO = Path(__file__).resolve().parent.parent
WORDS = "the road from research to production is one artifact one runtime and one verdict for every model".split()
ADDED_MS_LIMIT = 1.0
RATIO_LIMIT = 0.85


def main() -> int:
    options = arguments()
    binary = os.environ.get("HIGHROAD_BIN", str(REPO / "target" / "release" / "highroad"))
    with tempfile.TemporaryDirectory() as home:
        package = options.package or pack_embedder(binary)
        found = measure(binary, Path(home), Path(package).resolve(), options)
    if options.json:
        print(json.dumps(found))
    else:
        text = table(found)
        print(text)
        report.write("serve.py", text)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", help="an embedding package (default: MiniLM, packed under target/bench)")
    parser.add_argument("--words", type=int, default=24, help="words in a text")
    parser.add_argument("--threads", type=int, default=2, help="threads of one model run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side in each round")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def pack_embedder(binary: str) -> Path:
    folder = REPO / "target" / "bench" / "embedder"
    if not (folder / "package").exists():
        subprocess.run([sys.executable, REPO / "scripts" / "embedder.py", folder], check=True, stdout=subprocess.DEVNULL)
        command = [binary, "pack", folder / "source", "-o", folder / "package"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "package"


def measure(binary: str, home: Path, package: Path, options: argparse.Namespace) -> dict[str, object]:
    sys.path.insert(0, str(REPO / "python"))
    import highroad

    predictor = highroad.load(package, threads=options.threads)
    name = json.loads((package / "manifest.json").read_bytes())["name"]
    command = [binary, "serve", str(package), "--development", "--listen", "127.0.0.1:0", "--threads", str(options.threads)]
    environment = os.environ | {"HIGHROAD_HOME": str(home), "HIGHROAD_LOG": "warn"}
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = server.stdout.readline().strip()
        if not line:
            raise SystemExit(f"the server did not start:\n{(home / 'server.log').read_text()}")
        return rounds(line.removeprefix("http://"), home, name, predictor, options)
    finally:
        server.terminate()
        server.wait(timeout=30)


def rounds(address: str, home: Path, name: str, predictor: object, options: argparse.Namespace) -> dict[str, object]:
    waits: dict[str, float] = {}
    inside, outside = [], []
    for round_idx in range(options.rounds):
        waits |= low_load(address, name, options, round_idx)
        inside.append(in_process(predictor, options))
        outside.append(over_http(address, name, options))
        print(f"round {round_idx + 1}/{options.rounds}", file=sys.stderr)
    added = sorted(wait - model for wait, model in pairs(home, waits))
    return {
        "added_ms_p50": statistics.median(added),
        "added_ms_p90": added[int(0.9 * len(added))],
        "requests": len(added),
        "in_process_texts_per_s": statistics.median(inside),
        "http_texts_per_s": statistics.median(outside),
        "ratio": statistics.median(b / a for a, b in zip(inside, outside, strict=True)),
        "limits": {"added_ms_p50": ADDED_MS_LIMIT, "ratio": RATIO_LIMIT},
    }


def text(i: int, n_words: int) -> str:
    return " ".join(WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(n_words))


def low_load(address: str, name: str, options: argparse.Namespace, round_idx: int) -> dict[str, float]:
    """One request at a time; milliseconds that the client waited, by request id."""
    connection = http.client.HTTPConnection(address)
    waits = {}
    deadline = time.monotonic() + options.seconds
    i = 0
    while time.monotonic() < deadline:
        body = json.dumps({"model": name, "input": text(i, options.words), "encoding_format": "base64"})
        request_id = f"bench-{round_idx}-{i}"
        begun = time.perf_counter()
        connection.request("POST", "/v1/embeddings", body, {"x-request-id": request_id})
        response = connection.getresponse()
        content = response.read()
        waits[request_id] = (time.perf_counter() - begun) * 1e3
        if response.status != 200:
            raise SystemExit(f"{response.status}: {content!r}")
        i += 1
    connection.close()
    return waits


def pairs(home: Path, waits: dict[str, float]) -> list[tuple[float, float]]:
    """What the client waited and what the model took, of each request; the first requests of a round warm up."""
    time.sleep(0.5)
    model = {}
    for path in home.glob("requests/*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            model[record["request_id"]] = record["compute_ms"]
    warm = (request_id for request_id in waits if int(request_id.rsplit("-", 1)[1]) >= 10)
    return [(waits[request_id], model[request_id]) for request_id in warm if request_id in model]


def in_process(predictor: object, options: argparse.Namespace) -> float:
    texts = [text(i, options.words) for i in range(32 * options.connections)]
    begun, n_texts = time.perf_counter(), 0
    while time.perf_counter() - begun < options.seconds:
        predictor(texts)
        n_texts += len(texts)
    return n_texts / (time.perf_counter() - begun)


def over_http(address: str, name: str, options: argparse.Namespace) -> float:
    texts = [text(i, options.words) for i in range(32)]
    body = json.dumps({"model": name, "input": texts, "encoding_format": "base64"})
    counts = [0] * options.connections
    begun = time.perf_counter()

    def ask(idx: int) -> None:
        connection = http.client.HTTPConnection(address)
        while time.perf_counter() - begun < options.seconds:
            connection.request("POST", "/v1/embeddings", body)
            response = connection.getresponse()
            response.read()
            counts[idx] += len(texts) if response.status == 200 else 0
        connection.close()

    threads = [threading.Thread(target=ask, args=(idx,)) for idx in range(options.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def table(found: dict[str, object]) -> str:
    said = lambda holds: "holds" if holds else "MISSED"  # noqa: E731
    added, ratio = found["added_ms_p50"], found["ratio"]
    rates = f"{found['http_texts_per_s']:.0f} / {found['in_process_texts_per_s']:.0f} texts/s = {ratio:.2f}"
    rows = [
        [
            "latency that HTTP adds at low load, p50 (p90)",
            f"{added:.2f} ({found['added_ms_p90']:.2f}) ms",
            f"{ADDED_MS_LIMIT} ms",
            said(added <= ADDED_MS_LIMIT),
        ],
        ["HTTP throughput over in-process throughput", rates, str(RATIO_LIMIT), said(ratio >= RATIO_LIMIT)],
    ]
    return report.markdown(["what", "measured", "limit", ""], rows)


if __name__ == "__main__":
    raise SystemExit(main())
