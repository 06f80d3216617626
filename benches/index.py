"""Searches in an index, exact, approximate and in LanceDB, beside faiss and usearch.

Vectors are made up: clusters of very different sizes, as texts of some thousand subjects have. Each program builds over the same ones and
answers the same queries, one at a time on one thread: recall@10 against the exact product, p50, seconds to build and memory. Of faiss and
usearch the search's effort is the least that reaches the recall asked for.
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
import report

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
    parser.add_argument("--dry", action="store_true", help="do not write the table")
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
    for recall in options.recall:
        for program in (faiss_ivf, faiss_hnsw, usearch):
            rows += in_a_process(lambda program=program, recall=recall: program(vectors, queries, right, recall), program.__name__, right)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    cells = [[row["name"], f"{row['recall']:.3f}", f"{row['p50_ms']:.2f}", f"{row['build_s']:.1f}", f"{row['mib']:.0f}"] for row in rows]
    text = f"{options.documents:,} vectors of {options.dimensions}, {options.queries} queries.\n\n"
    text += report.markdown(["index", "recall@10", "p50, ms", "build, s", "memory, MiB"], cells)
    print(text)
    if not options.dry:
        report.write("index.py", text)


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


Told = tuple[str, np.ndarray, list[float], float]


def faiss_ivf(vectors: np.ndarray, queries: np.ndarray, right: np.ndarray, recall: float) -> Told:
    import faiss

    begun = time.perf_counter()
    index = faiss.index_factory(vectors.shape[1], f"IVF{round(4 * len(vectors) ** 0.5)},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    build_s = time.perf_counter() - begun
    faiss.omp_set_num_threads(1)
    return least("faiss IVF,Flat", index, "nprobe", queries, right, recall, build_s)


def faiss_hnsw(vectors: np.ndarray, queries: np.ndarray, right: np.ndarray, recall: float) -> Told:
    import faiss

    begun = time.perf_counter()
    index = faiss.index_factory(vectors.shape[1], "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    build_s = time.perf_counter() - begun
    faiss.omp_set_num_threads(1)
    return least("faiss HNSW32", index.hnsw, "efSearch", queries, right, recall, build_s, index)


def usearch(vectors: np.ndarray, queries: np.ndarray, right: np.ndarray, recall: float) -> Told:
    from usearch.index import Index

    class Searched:
        def __init__(self) -> None:
            self.index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32")
            self.index.add(np.arange(len(vectors)), vectors, threads=os.cpu_count())

        def search(self, query: np.ndarray, top: int) -> tuple[None, np.ndarray]:
            return None, self.index.search(query, top, threads=1).keys.reshape(len(query), top)

    begun = time.perf_counter()
    searched = Searched()
    build_s = time.perf_counter() - begun
    return least("usearch", searched.index, "expansion_search", queries, right, recall, build_s, searched)


def least(name: str, knobs, knob: str, queries: np.ndarray, right: np.ndarray, recall: float, build_s: float, index=None) -> Told:
    """Searches with the least effort, a power of 2, that finds as much as asked for."""
    index = index or knobs
    for effort in (2**n for n in range(3, 12)):
        setattr(knobs, knob, effort)
        found, ms, _ = asked(lambda query: index.search(query[None], TOP)[1][0], queries, build_s)
        if share(found, right) >= recall:
            break
    return f"{name}, {knob} {effort}", found, ms, build_s


def asked(search, queries: np.ndarray, build_s: float) -> tuple[np.ndarray, list[float], float]:
    found, ms = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(np.asarray(search(query), int))
        ms.append(1e3 * (time.perf_counter() - begun))
    return np.array(found), ms, build_s


def in_a_process(program, name: str, right: np.ndarray) -> list[dict]:
    """In a process of its own, whose memory is its own; nothing where the package is not installed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            told_name, found, ms, build_s = program()
            mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            told = json.dumps(row(told_name, found, right, ms, build_s, mib)).encode()
            os.write(write, struct.pack("<I", len(told)) + told)
            os._exit(0)
        except ImportError:
            os._exit(3)
        except BaseException as error:  # noqa: BLE001
            print(f"{name}: {error}", file=sys.stderr)
            os._exit(1)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    if os.waitstatus_to_exitcode(status) != 0 or len(told) < 4:
        print(f"{name}: left out (not installed?)", file=sys.stderr)
        return []
    return [json.loads(told[4:])]


def row(name: str, found: np.ndarray, right: np.ndarray, ms: list[float], build_s: float, mib: float) -> dict:
    return {"name": name, "recall": share(found, right), "p50_ms": statistics.median(ms), "build_s": build_s, "mib": mib}


def share(found: np.ndarray, right: np.ndarray) -> float:
    """Recall at the length of the rows."""
    return float(np.mean([len(set(one) & set(other)) / TOP for one, other in zip(found.tolist(), right.tolist(), strict=True)]))


if __name__ == "__main__":
    main()
