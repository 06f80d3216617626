"""The dashboard over 10,000 runs and 10 million points, and what MLflow's own pages ask their server for over the same data.

Each server makes its SQLite tables, is stopped, and the same rows are put into both by bulk SQL. Then the calls behind each
view are timed, and Chromium opens the pages of Highroad. `make bench` runs this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import report
import track
from playwright.sync_api import sync_playwright

BEGAN_MS = 1_700_000_000_000
N_METRICS, N_PARAMS, N_TAGS = 9, 12, 5
LONG_RUN, LONG_METRIC = f"{0:032x}", "metric_0"
# A curve that falls and shakes.
VALUE = "10.0 / (1 + step) + abs(step * 7919 % 1000) / 1000.0"
REPEATS = 20
# No more of a call once its repeats have taken this long together.
SLOW_MS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--long", type=int, default=1_000_000, help="points of one metric of one run")
    parser.add_argument("--points", type=int, default=10_000_000, help="points in all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=track.ROOT / "target") as folder:
        ours, highroad_mb = measure(Path(folder), "highroad track", "track.db", options, highroad_calls)
        theirs, mlflow_mb = measure(Path(folder), "mlflow server", "mlflow.db", options, mlflow_calls)
    rows = [[what, shown(ours[what]), shown(theirs[what]) if what in theirs else "–"] for what in ours]
    rows.append(["memory of the server after all this, MB", f"{highroad_mb:.0f}", f"{mlflow_mb:.0f}"])
    title = f"{options.runs:,} runs, {options.points:,} points; milliseconds, median of up to {REPEATS} (95th percentile)."
    text = title + "\n\n" + report.markdown(["what", "Highroad", "MLflow"], rows)
    print(text)
    report.write("dashboard.py", text)


def shown(millis: list[float]) -> str:
    return f"{statistics.median(millis):.0f} ({statistics.quantiles(millis, n=20)[-1]:.0f})"


@contextlib.contextmanager
def server(name: str, home: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([str(part) for part in track.SERVERS[name](port, home)], cwd=home, **quiet)
    try:
        track.wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        process.terminate()
        process.wait(timeout=30)


def measure(folder: Path, name: str, database: str, options, calls) -> tuple[dict[str, list[float]], float]:
    home = folder / name.replace(" ", "-")
    home.mkdir()
    with server(name, home):
        pass
    begun = time.monotonic()
    fill(home / database, options)
    print(f"{name}: filled in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    with server(name, home) as (url, pid):
        found = calls(url)
        memory_mb = track.memory_mb(pid)
    shutil.rmtree(home)
    return found, memory_mb


def fill(path: Path, options) -> None:
    """The same rows for either server, made by SQL: only the names of some columns differ, and that Highroad numbers series."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("BEGIN")
    is_mlflow = path.name == "mlflow.db"
    run_id = "run_uuid" if is_mlflow else "run_id"
    insert_runs(database, options.runs, is_mlflow)
    for table, many in [("params", N_PARAMS), ("tags", N_TAGS)]:
        values = f"SELECT {run_id}, '{table}_' || i, abs((rowid * 7919 + i) % (2 + i)) FROM runs, n"
        database.execute(f"{up_to(many)} INSERT INTO {table} ({run_id}, key, value) {values}")
    n_points = max(1, (options.points - options.long) // (options.runs * N_METRICS))
    values = f"SELECT {run_id}, 'metric_' || i, :last, {BEGAN_MS} + :last, {VALUE.replace('step', ':last')}, 0 FROM runs, n"
    newest = f"INSERT INTO latest_metrics ({run_id}, key, step, timestamp, value, is_nan) {values}"
    database.execute(f"{up_to(N_METRICS)} {newest}", {"last": n_points - 1})
    series = f"{run_id}, key" if is_mlflow else "series_id"
    table = f"metrics ({series}, step, timestamp, value, is_nan)" if is_mlflow else f"points ({series}, step, timestamp, value, is_nan)"
    of_long = f"{run_id} = '{LONG_RUN}' AND key = '{LONG_METRIC}'"
    for many, which in [(n_points, f"NOT ({of_long})"), (options.long, of_long)]:
        points = f"SELECT {series}, i, {BEGAN_MS} + i, {VALUE.replace('step', 'i')}, 0 FROM latest_metrics CROSS JOIN n WHERE {which}"
        database.execute(f"{up_to(many)} INSERT INTO {table} {points}")
    last = {"last": options.long - 1}
    database.execute(f"UPDATE latest_metrics SET step = :last, timestamp = {BEGAN_MS} + :last WHERE {of_long}", last)
    database.execute("COMMIT")
    database.execute("ANALYZE" if is_mlflow else "PRAGMA optimize")
    database.close()


def up_to(many: int) -> str:
    """The whole numbers below `many` as the table `n`."""
    return f"WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {many - 1})"


def insert_runs(database: sqlite3.Connection, n_runs: int, is_mlflow: bool) -> None:
    run_id, name, more, source = ("run_uuid", "name", ", source_type", ", 'LOCAL'") if is_mlflow else ("run_id", "run_name", "", "")
    columns = f"{run_id}, experiment_id, {name}, user_id, status, start_time, end_time, artifact_uri, lifecycle_stage{more}"
    values = f"printf('%032x', i), 0, 'run-' || i, 'me', 'FINISHED', {BEGAN_MS} + i, {BEGAN_MS} + i + 1000, 'x', 'active'{source}"
    database.execute(f"{up_to(n_runs)} INSERT INTO runs ({columns}) SELECT {values} FROM n")


def timed(call, *arguments) -> list[float]:
    """Milliseconds of each of up to ``REPEATS`` calls after a first one; of slow calls fewer."""
    call(*arguments)
    waits: list[float] = []
    while len(waits) < REPEATS and (len(waits) < 3 or sum(waits) < SLOW_MS):
        begun = time.perf_counter()
        call(*arguments)
        waits.append((time.perf_counter() - begun) * 1e3)
    return waits


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.loads(reply.read())


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=300) as reply:
        return json.loads(reply.read())


FIRST, SORT, FILTER, DEEP = "first 100 rows", "sort by a metric", "filter by a metric and a param", "rows 9,900 to 10,000"
OPEN, LONG, TEN = "open the run with 1M points", "its curve of 1M points", "one metric of ten runs"


def highroad_calls(url: str) -> dict[str, list[float]]:
    columns = [f"metrics.metric_{k}" for k in range(5)] + [f"params.params_{k}" for k in range(4)]
    table = {"experiment_ids": ["0"], "limit": 100, "columns": columns}
    rows = lambda **over: post(f"{url}/ui/api/runs/table", {**table, **over})  # noqa: E731
    series = lambda runs: post(f"{url}/ui/api/series", {"run_ids": runs, "keys": [LONG_METRIC], "buckets": 600})  # noqa: E731
    by_metric = [{"column": "metrics.metric_3", "descending": True}]
    found = {
        FIRST: timed(rows),
        SORT: timed(lambda: rows(order_by=by_metric)),
        FILTER: timed(lambda: rows(filter="metrics.metric_2 < 0.5 AND params.params_1 = '1'")),
        DEEP: timed(lambda: rows(order_by=by_metric, offset=9900)),
        OPEN: timed(lambda: get(f"{url}/ui/api/runs/{LONG_RUN}")),
        LONG: timed(lambda: series([LONG_RUN])),
        TEN: timed(lambda: series([f"{n:032x}" for n in range(1, 11)])),
    }
    return found | in_chromium(url)


def in_chromium(url: str) -> dict[str, list[float]]:
    """From the address to the pixels, each time in an empty browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def seen(path: str, selector: str) -> None:
            context = browser.new_context()
            page = context.new_page()
            page.goto(url + path)
            page.wait_for_selector(selector)
            context.close()

        plot = f'[data-metric="{LONG_METRIC}"] canvas'
        found = {
            "in Chromium: address to first rows": timed(seen, "/ui/experiments/0", ".row.body .pinned a"),
            "in Chromium: address to the curve of 1M points": timed(seen, f"/ui/runs/{LONG_RUN}?metric={LONG_METRIC}", plot),
        }
        browser.close()
    return found


def mlflow_calls(url: str) -> dict[str, list[float]]:
    """What the pages of MLflow 3 send for these views, as its browser's network log shows them."""
    api = f"{url}/ajax-api/2.0/mlflow"
    search = {"experiment_ids": ["0"], "max_results": 100, "run_view_type": "ACTIVE_ONLY", "order_by": ["attributes.start_time DESC"]}
    rows = lambda **over: post(f"{api}/runs/search", {**search, **over})  # noqa: E731
    interval = f"{api}/metrics/get-history-bulk-interval?metric_key={LONG_METRIC}&max_results=320"
    by_metric = ["metrics.metric_3 DESC"]
    return {
        FIRST: timed(rows),
        SORT: timed(lambda: rows(order_by=by_metric)),
        FILTER: timed(lambda: rows(filter="metrics.metric_2 < 0.5 AND params.params_1 = '1'")),
        OPEN: timed(lambda: get(f"{api}/runs/get?run_id={LONG_RUN}")),
        LONG: timed(lambda: get(f"{interval}&run_ids={LONG_RUN}")),
        TEN: timed(lambda: get(interval + "".join(f"&run_ids={n:032x}" for n in range(1, 11)))),
    }


if __name__ == "__main__":
    main()
