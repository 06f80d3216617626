"""Serving under load, on real sockets: what HTTP costs, how long requests wait, what is left when too much comes, and peers beside it.

The model is MiniLM-L6 in f32, the texts are passages of the Lee newspaper corpus, log-normal in length (3 to 120 words, 25 on average).
Requests are OpenAI's `/v1/embeddings` from an open-loop generator (crates/serve/examples/open_loop.rs): Poisson arrivals, and a latency
counts from the moment a request was due. Parts, each by `--only`:

overhead  one request at a time: what the client waits less what the model computes, by the server's request log
inside    texts a second over HTTP beside the same predictor in this process, in turns
queue     arrivals at 80 % of the most: p99 beside that of an ideal queue (one server, first come first served, no cost of its own) with the
          same arrivals and service times (Lindley, 1952), without batches and with them
overload  arrivals at 300 % of the most: goodput within the deadline, and whether what was admitted kept it
memory    resident memory after 10,000 and after 1,000,000 mixed requests
peers     the highest rate of arrivals at which p99 stays within the limit, for every server in turn

In the first four the server has core 0 and the generator core 1; peers and memory have all cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import report

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "target" / "bench"
PACKAGES = ROOT / "conformance" / "packages"
PARTS = ["overhead", "inside", "queue", "overload", "memory", "peers"]
N_TEXTS = 512
LEE = Path(find_spec("gensim").origin).parent / "test" / "test_data" / "lee_background.cor"
LIMITS = {"added_ms": 0.5, "inside": 0.9, "queue": 1.2, "goodput": 0.9, "kept": 0.99, "memory": 1.1, "peers": 3.0}


def main() -> int:
    options = arguments()
    parts = {"overhead": overhead, "inside": inside, "queue": queue, "overload": overload, "memory": memory}
    rows = []
    for name in options.only or PARTS[:-1]:
        if name in parts:
            print(name, file=sys.stderr)
            rows += parts[name](options)
    said = [report.markdown(["what", "measured", "limit", ""], rows)] if rows else []
    if "peers" in (options.only or PARTS):
        said.append(peers(options))
    text = "\n\n".join(said)
    print(text)
    if not options.only:
        report.write("load.py", text)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals in one measurement")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the part `memory`")
    parser.add_argument("--deadline-ms", type=float, default=500.0, help="of the part `overload`")
    parser.add_argument("--p99-ms", type=float, default=200.0, help="most that the peers' p99 may be")
    parser.add_argument("--tei", help="a text-embeddings-router to run beside it (default: the one on PATH)")
    parser.add_argument("--infinity", help="the Python of an environment with infinity-emb[server,torch]")
    parser.add_argument("--litserve", help="the Python of an environment with litserve, onnxruntime and tokenizers")
    return parser.parse_args()


def said(holds: bool) -> str:
    return "holds" if holds else "MISSED"


# Texts and packages


def texts() -> list[str]:
    """Passages of real newspapers, the same in every run."""
    rng = np.random.default_rng(5)
    words = LEE.read_text(encoding="latin-1").split()
    lengths = np.clip(np.round(rng.lognormal(np.log(25) - 0.32, 0.8, N_TEXTS)), 3, 120).astype(int)
    starts = rng.integers(0, len(words) - 120, N_TEXTS)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def binary() -> str:
    return os.environ.get("HIGHROAD_BIN", str(ROOT / "target" / "release" / "highroad"))


def embedder() -> Path:
    folder = BENCH / "embedder"
    if not (folder / "package").exists():
        subprocess.run([sys.executable, ROOT / "scripts" / "embedder.py", folder], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([binary(), "pack", folder / "source", "-o", folder / "package"], check=True, stdout=subprocess.DEVNULL)
    return (folder / "package").resolve()


# Processes


@contextmanager
def running(command: list[str], url: str | None, body: dict, cores: str | None = None, env: dict | None = None, wait_s: float = 180) -> Iterator[tuple[str, int]]:
    """A server that has answered `body` once: its address and process id. Without `url` it prints its address first."""
    pinned = ["taskset", "-c", cores] if cores else []
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*pinned, *map(str, command)], env=os.environ | (env or {}), stdout=log if url else subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            address = url or process.stdout.readline().strip()
            until = time.monotonic() + wait_s
            while not answers(address, body):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{command[0]} did not start:\n{Path(log.name).read_text()[-4000:]}")
                time.sleep(0.3)
            yield address, process.pid
        finally:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, kind)
            process.wait(timeout=20)


def answers(address: str, body: dict) -> bool:
    path, content = next(iter(body.items()))
    request = urllib.request.Request(address + path, json.dumps(content).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status == 200 and bool(answer.read())
    except OSError:
        return False


@contextmanager
def highroad(home: Path, members: str, first: dict, *, cores: str | None = None) -> Iterator[tuple[str, int]]:
    (home / "portfolio.toml").write_text(members)
    command = [binary(), "serve", "--development", "--portfolio", home / "portfolio.toml", "--listen", "127.0.0.1:0"]
    env = {"HIGHROAD_HOME": str(home), "HIGHROAD_LOG": "warn"}
    with running(command, None, first, cores, env) as served:
        yield served


def generator() -> Path:
    found = [ROOT / "target" / kind / "examples" / "open_loop" for kind in ("release", "debug")]
    there = [path for path in found if path.exists()]
    if not there:
        raise SystemExit("error: run `cargo build --release --package highroad-serve --example open_loop` first")
    return there[0]


def load(urls: str | list[str], bodies: list[dict], *, rate: float | None = None, seconds: float, seed: int = 1, cores: str | None = None, **more: object) -> list[list]:
    """One answer a row: when it was due (ms), which body, status, latency (ms), request id."""
    plan = {"urls": [urls] if isinstance(urls, str) else urls, "bodies": bodies, "rate": rate, "seconds": seconds, "seed": seed, "timeout_s": 60.0} | more
    pinned = ["taskset", "-c", cores] if cores else []
    done = subprocess.run([*pinned, generator()], input=json.dumps(plan), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the generator failed: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def bodies(model: str, of: list[str]) -> list[dict]:
    return [{"model": model, "input": text} for text in of]


def member(package: Path, **settings: object) -> str:
    lines = [f"{name} = {value}" for name, value in settings.items()]
    return "\n".join(["[members.embedder]", f'model = "{package}"', *lines, ""])


FIRST = {"/v1/embeddings": {"model": "embedder", "input": "the road"}}
SERVER, CLIENT = "0", "1"


@contextmanager
def pinned_embedder(**settings: object) -> Iterator[tuple[str, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with highroad(home, member(embedder(), threads=1, **settings), FIRST, cores=SERVER) as (address, _):
            yield address + "/v1/embeddings", home


def logged(home: Path) -> dict[str, dict]:
    time.sleep(1.5)  # the log is written behind the answers
    lines = (line for path in sorted(home.glob("requests/*.jsonl")) for line in path.read_text().splitlines())
    return {record["request_id"]: record for record in map(json.loads, lines)}


def most(url: str, asked: list[dict], seconds: float = 8.0, cores: str | None = CLIENT, connections: int = 64) -> float:
    """Requests a second with something always waiting."""
    load(url, asked, seconds=1.5, connections=connections, cores=cores)
    answered = [row for row in load(url, asked, seconds=seconds, connections=connections, cores=cores) if row[2] == 200]
    return len(answered) / seconds


# Parts


def overhead(options: argparse.Namespace) -> list[list[str]]:
    with pinned_embedder() as (url, home):
        rows = load(url, bodies("embedder", texts()), seconds=options.seconds, cores=CLIENT)[20:]
        records = logged(home)
    added = sorted(row[3] - records[row[4]]["compute_ms"] for row in rows if row[2] == 200)
    p50, p90 = statistics.median(added), added[int(0.9 * len(added))]
    return [["latency that HTTP, parsing, tokenising and the log add to one request at a time, p50 (p90)", f"{p50:.2f} ({p90:.2f}) ms", f"{LIMITS['added_ms']} ms", said(p50 <= LIMITS["added_ms"])]]


def inside(options: argparse.Namespace) -> list[list[str]]:
    sys.path.insert(0, str(ROOT / "python"))
    import highroad as module

    os.sched_setaffinity(0, {int(SERVER)})
    predictor = module.load(embedder(), threads=1)
    of = texts()
    batches = [of[n : n + 32] for n in range(0, len(of), 32)]
    asked = [{"model": "embedder", "input": batch, "encoding_format": "base64"} for batch in batches]
    ratios, rates = [], []
    with pinned_embedder() as (url, _):
        load(url, asked, seconds=2, connections=4, cores=CLIENT)
        for round_idx in range(options.rounds):
            begun, n = time.perf_counter(), 0
            while time.perf_counter() - begun < options.seconds / 4:
                predictor(of)
                n += len(of)
            within = n / (time.perf_counter() - begun)
            rows = load(url, asked, seconds=options.seconds / 4, connections=4, seed=round_idx, cores=CLIENT)
            over = 32 * sum(row[2] == 200 for row in rows) / (max(row[0] + row[3] for row in rows) / 1e3)
            ratios.append(over / within)
            rates.append((over, within))
    os.sched_setaffinity(0, range(os.cpu_count()))
    ratio = statistics.median(ratios)
    over, within = (statistics.median(side) for side in zip(*rates, strict=True))
    return [["HTTP throughput over in-process throughput, 32 texts a request", f"{over:.0f} / {within:.0f} texts/s = {ratio:.2f}", f"{LIMITS['inside']}", said(ratio >= LIMITS["inside"])]]


def queue(options: argparse.Namespace) -> list[list[str]]:
    """Three times the rounds, each half as long, the same arrivals first one row a batch and then in batches: a machine that is faster in
    one minute than in the next spoils a few rounds, and the median is of those that it did not. What 80 % is of is found anew for each.
    The service times are those of the requests that were run alone, so that one ideal queue stands beside both."""
    asked = bodies("embedder", texts())
    rates: list[float] = []
    rounds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with pinned_embedder(batch_tokens=1) as single, pinned_embedder() as batched:
        for round_idx in range(3 * options.rounds):
            rates.append(0.8 * most(single[0], asked, seconds=4))
            arrivals = {"rate": rates[-1], "seconds": options.seconds / 2, "seed": round_idx, "cores": CLIENT}
            alone, together = (sorted(row for row in load(url, asked, **arrivals) if row[2] == 200) for url, _ in (single, batched))
            records = logged(single[1])
            ideal = np.quantile(lindley(np.array([row[0] for row in alone]), np.array([records[row[4]]["compute_ms"] for row in alone])), 0.99)
            for in_batches, answered in ((False, alone), (True, together)):
                rounds[in_batches].append((np.quantile([row[3] for row in answered], 0.99), ideal))
            of_both = [f"{p99:.1f}" for p99, _ in (rounds[False][-1], rounds[True][-1])]
            print(f"{rates[-1]:.0f} requests/s: p99 {of_both[0]} ms, in batches {of_both[1]}, ideal {ideal:.1f}", file=sys.stderr)
    rows = []
    for in_batches, found in rounds.items():
        found.sort(key=lambda of: of[0] / of[1])
        ratios = [each / ideal for each, ideal in found]
        middle = len(found) // 2  # of three times the rounds, so an odd number of them has a middle one
        (p99, best), ratio = found[middle], ratios[middle]
        what = "the same arrivals in batches" if in_batches else f"p99 at 80 % load ({statistics.median(rates):.0f} requests/s), one row a batch, over the ideal queue's"
        quartiles = f"the middle one of {len(ratios)} rounds; half of them {ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f}"
        rows.append([what, f"{p99:.1f} / {best:.1f} ms = {ratio:.2f} ({quartiles})", f"{LIMITS['queue']}", said(ratio <= LIMITS["queue"])])
    return rows


def lindley(due: np.ndarray, service: np.ndarray) -> np.ndarray:
    """Time in the system of a queue with one server, first come first served (Lindley's recursion), in the units of its arguments."""
    waits = np.zeros(len(due))
    for n in range(1, len(due)):
        waits[n] = max(0.0, waits[n - 1] + service[n - 1] - (due[n] - due[n - 1]))
    return waits + service


def overload(options: argparse.Namespace) -> list[list[str]]:
    asked = bodies("embedder", texts())
    with pinned_embedder(queue_timeout_ms=int(options.deadline_ms)) as (url, _):
        full = most(url, asked)
        headers = [["x-highroad-timeout-ms", str(int(options.deadline_ms))]]
        goods: dict[float, list[float]] = {load_share: [] for load_share in (1.0, 1.25, 1.5, 2.0, 3.0)}
        kept, statuses = [], {}
        for round_idx in range(options.rounds):
            for load_share, found in goods.items():
                rows = load(url, asked, rate=load_share * full, seconds=options.seconds, seed=round_idx, headers=headers, cores=CLIENT)
                answered = [row for row in rows if row[2] == 200]
                good = [row for row in answered if row[3] <= options.deadline_ms]
                found.append(len(good) / options.seconds)
                if load_share == 3.0:
                    kept.append(len(good) / len(answered))
                    for row in rows:
                        statuses[row[2]] = statuses.get(row[2], 0) + 1
    medians = {load_share: statistics.median(found) for load_share, found in goods.items()}
    goodput, share, at = medians[3.0], statistics.median(kept), max(medians, key=medians.get)
    peak = medians[at]
    refused = ", ".join(f"{n / sum(statuses.values()):.0%} {status}" for status, n in sorted(statuses.items()))
    return [
        [f"goodput at 300 % load within {options.deadline_ms:.0f} ms, over the peak ({peak:.0f} requests/s, at {at:.0%} of what 64 connections ask)", f"{goodput:.0f} requests/s = {goodput / peak:.2f}", f"{LIMITS['goodput']}", said(goodput / peak >= LIMITS["goodput"])],
        [f"answers that kept the deadline, of those that were given ({refused})", f"{share:.1%}", f"{LIMITS['kept']:.0%}", said(share >= LIMITS["kept"])],
    ]


MIXED = """
[members.embedder]
model = "{home}/embed"
[members.moderation]
model = "{home}/classify-a"
[members.reranker]
model = "{home}/rerank"
"""


def memory(options: argparse.Namespace) -> list[list[str]]:
    """Tiny models, so that what is left in memory is the server's."""
    of = texts()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for kind in ("embed", "classify-a", "rerank"):
            subprocess.run([binary(), "pack", PACKAGES / kind, "-o", home / kind], check=True, stdout=subprocess.DEVNULL)
        with highroad(home, MIXED.format(home=home), {"/v1/embeddings": {"model": "embedder", "input": "the road"}}) as (address, pid):
            urls, asked = [], []
            for n, text in enumerate(of):
                path, body = [
                    ("/v1/embeddings", {"model": "embedder", "input": text}),
                    ("/v1/moderations", {"model": "moderation", "input": text}),
                    ("/v2/rerank", {"model": "reranker", "query": "the road", "documents": [text, of[n - 1]]}),
                    ("/v2/models/moderation/infer", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}),
                    ("/v1/embeddings", {"model": "embedder", "input": ["", 3]}),
                ][n % 5]
                urls.append(address + path)
                asked.append(body)
            most = {"seconds": 3600, "connections": 32, "each": False}
            first = load(urls, asked, most=10_000, **most)
            early = resident(pid)
            second = load(urls, asked, most=options.requests - 10_000, seed=2, **most)
            late = resident(pid)
    statuses = {status: first[0].get(status, 0) + n for status, n in second[0].items()}
    said_of = ", ".join(f"{n:,} {status}" for status, n in sorted(statuses.items()))
    return [[f"memory after {options.requests:,} mixed requests ({said_of}) over that after 10,000", f"{late / 1e6:.1f} / {early / 1e6:.1f} MB = {late / early:.2f}", f"{LIMITS['memory']}", said(late / early <= LIMITS["memory"])]]


def resident(pid: int) -> int:
    time.sleep(8)  # after a few seconds without work buffers go back to the system
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024


# Peers


def peers(options: argparse.Namespace) -> str:
    servers = list(contenders(options))
    asked = texts()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in servers}
    vectors: list[np.ndarray] = []
    alone: dict[str, float] = {}
    for round_idx in range(options.rounds):
        for name, command, url, path, env in servers:
            print(f"round {round_idx + 1}/{options.rounds}: {name}", file=sys.stderr)
            with running(command, url, {path: {"model": "embedder", "input": "the road"}}, env=env) as (address, _):
                requests = bodies("embedder", asked)
                vectors.append(vector(address + path, requests[0]))
                if vectors[0] @ vectors[-1] < 0.999:
                    raise SystemExit(f"{name} gives another vector than {servers[0][0]}")
                rate, p99 = highest(address + path, requests, options)
                rates[name].append((rate, p99))
                alone[name] = statistics.median(row[3] for row in load(address + path, requests, seconds=3) if row[2] == 200)
    middle = {name: statistics.median(rate for rate, _ in found) for name, found in rates.items()}
    best = max((rate for name, rate in middle.items() if name != "Highroad"), default=0.0)
    rows = [[name, f"{middle[name]:.0f}", f"{statistics.median(p99 for _, p99 in rates[name]):.0f}", f"{alone[name]:.1f}", f"{middle['Highroad'] / middle[name]:.1f}"] for name in middle]
    heads = ["server", f"requests/s with p99 within {options.p99_ms:.0f} ms", "p99 then, ms", "one at a time, p50 ms", "Highroad / this"]
    tail = f"\n\nOver the best peer: {middle['Highroad'] / best:.1f} (limit {LIMITS['peers']}: {said(middle['Highroad'] / best >= LIMITS['peers'])})." if best else ""
    return report.markdown(heads, rows) + tail


def vector(url: str, body: dict) -> np.ndarray:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = np.array(json.load(answer)["data"][0]["embedding"])
    return found / np.linalg.norm(found)


def highest(url: str, asked: list[dict], options: argparse.Namespace) -> tuple[float, float]:
    """The highest rate, within 5 %, at which every request is answered and p99 stays within the limit; and p99 then."""
    low, p99_low = 0.0, 0.0
    high = 1.3 * most(url, asked, seconds=5, cores=None, connections=32)
    rate = 0.6 * high
    while high - low > 0.05 * high:
        rows = load(url, asked, rate=rate, seconds=options.seconds / 2, timeout_s=10.0)
        p99 = float(np.quantile([row[3] for row in rows], 0.99))
        if all(row[2] == 200 for row in rows) and p99 <= options.p99_ms:
            low, p99_low = rate, p99
        else:
            high = rate
        rate = (low + high) / 2
    return low, p99_low


def contenders(options: argparse.Namespace) -> Iterator[tuple[str, list, str | None, str, dict]]:
    """Name, command, address (nothing if it prints it), path and environment of each server."""
    home = Path(tempfile.mkdtemp())
    (home / "portfolio.toml").write_text(member(embedder()))
    command = [binary(), "serve", "--development", "--portfolio", home / "portfolio.toml", "--listen", "127.0.0.1:0"]
    yield "Highroad", command, None, "/v1/embeddings", {"HIGHROAD_HOME": str(home), "HIGHROAD_LOG": "warn"}
    from peer_servers import infinity, litserve, tei

    for make in (tei, infinity, litserve):
        yield from make(options, BENCH)


if __name__ == "__main__":
    raise SystemExit(main())
