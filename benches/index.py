"""Searches in an index, exact, approximate and in LanceDB, beside the Python packages usearch and hnswlib where they are installed.

Documents are made of the words of a corpus that ships with scikit-learn's tests or are given; they are embedded once by a package, or, with
``--made-up N``, stand for clustered vectors. Each program builds over the same vectors and answers the same queries, one at a time on one
thread: recall@10 against the exact product, p50, seconds to build and memory. Not part of `make bench`: the packages beside it are not installed there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parent.parent
TOP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--recall", type=float, nargs="*", default=[0.9, 0.95, 0.99])
    parser.add_argument("--lance", nargs="*", default=["ivf-flat", "ivf-pq", "ivf-hnsw-sq"], help="kinds of indexes in LanceDB; none without the package")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    vectors, queries = made_up(options.documents, options.dimensions, options.queries)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        vectors.tofile(path / "vectors.f32")
        queries.tofile(path / "queries.f32")
        begun = time.perf_counter()
        right = exact(vectors, queries)
        print(f"numpy, all at once: {1e3 * (time.perf_counter() - begun) / len(queries):.2f} ms a query", file=sys.stderr)
        rows += ours(path, options, right)
    for other in (usearch, hnswlib):
        rows += in_a_process(other, vectors, queries, right)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']:<28} recall@10 {row['recall']:.3f}   p50 {row['p50_ms']:7.3f} ms   build {row['build_s']:7.1f} s   {row['mib']:6.0f} MiB")


def made_up(n: int, dimensions: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around centres of very different sizes, as texts of some thousand subjects have; queries are further ones."""
    rng = np.random.default_rng(7)
    n_subjects = max(2, n // 40)
    subjects = rng.standard_normal((n_subjects, dimensions)).astype(np.float32)
    which = (rng.pareto(1.2, n + n_queries) * n_subjects / 20).astype(int) % n_subjects
    made = subjects[which] + 0.7 * rng.standard_normal((n + n_queries, dimensions)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return np.ascontiguousarray(made[:n]), np.ascontiguousarray(made[n:])


def exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :TOP]


def ours(path: Path, options: argparse.Namespace, right: np.ndarray) -> list[dict]:
    """`crates/serve/examples/index.rs` builds and searches as the server does."""
    binary = REPO / "target" / "release" / "examples" / "index"
    if not binary.exists():
        binary = REPO / "target" / "debug" / "examples" / "index"
    rows = []
    lance = [f"lance:{kind}:{recall}" for kind in options.lance for recall in options.recall] if importlib.util.find_spec("lancedb") else []
    environment = os.environ | {"HIGHROAD_PYTHON": sys.executable}
    for how in ["exact", *options.recall, *lance]:
        command = [str(binary), str(path), str(options.dimensions), str(how), str(TOP)]
        done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)
        rows.append(row(f"highroad {how}", np.array(done["found"]), right, done["ms"], done["build_s"], done["peak_rss_bytes"] / 2**20))
    return rows


def usearch(vectors: np.ndarray, queries: np.ndarray) -> tuple[str, np.ndarray, list[float], float]:
    from usearch.index import Index

    begun = time.perf_counter()
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(vectors)), vectors, threads=os.cpu_count())
    return ("usearch", *asked(lambda query: index.search(query, TOP, threads=1).keys, queries, time.perf_counter() - begun))


def hnswlib(vectors: np.ndarray, queries: np.ndarray) -> tuple[str, np.ndarray, list[float], float]:
    import hnswlib as library

    begun = time.perf_counter()
    index = library.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=200, M=16)
    index.add_items(vectors)
    index.set_ef(64)
    index.set_num_threads(1)
    return ("hnswlib ef 64", *asked(lambda query: index.knn_query(query, TOP)[0][0], queries, time.perf_counter() - begun))


def asked(search, queries: np.ndarray, build_s: float) -> tuple[np.ndarray, list[float], float]:
    found, ms = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(np.asarray(search(query), int))
        ms.append(1e3 * (time.perf_counter() - begun))
    return np.array(found), ms, build_s


def in_a_process(program, vectors: np.ndarray, queries: np.ndarray, right: np.ndarray) -> list[dict]:
    """In a process of its own, whose memory is its own; nothing where the package is not installed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            name, found, ms, build_s = program(vectors, queries)
            mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            told = json.dumps(row(name, found, right, ms, build_s, mib)).encode()
            os.write(write, struct.pack("<I", len(told)) + told)
            os._exit(0)
        except ImportError:
            os._exit(3)
        except BaseException as error:  # noqa: BLE001
            print(f"{program.__name__}: {error}", file=sys.stderr)
            os._exit(1)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    if os.waitstatus_to_exitcode(status) != 0 or len(told) < 4:
        print(f"{program.__name__}: left out (not installed?)", file=sys.stderr)
        return []
    return [json.loads(told[4:])]


def row(name: str, found: np.ndarray, right: np.ndarray, ms: list[float], build_s: float, mib: float) -> dict:
    recall = np.mean([len(set(one) & set(other)) / TOP for one, other in zip(found.tolist(), right.tolist(), strict=True)])
    return {"name": name, "recall": float(recall), "p50_ms": statistics.median(ms), "build_s": build_s, "mib": mib}


if __name__ == "__main__":
    main()
