"""The calls that `mlflow_replay.py` plays: real MLflow clients, and by hand what they do not send.

Times are given where a call takes one, so that orders do not depend on the clock. Nothing here is random.
"""

from __future__ import annotations

import json
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

LONG = "x" * 100_001


def play(p) -> None:
    experiments(p)
    runs(p)
    batches(p)
    numbers(p)
    inputs(p)
    run_searches(p)
    experiment_searches(p)
    registry(p)
    registry_searches(p)
    logged_models(p)
    artifacts(p)
    clients(p)
    wrong_parameters(p)
    odd_requests(p)
    transfers(p)


def post(p, path: str, name: str, /, **body: Any) -> dict:
    return p.call(f"{path}: {name}", "POST", path, body)


def get(p, path: str, name: str, /, **query: Any) -> dict:
    return p.call(f"{path}: {name}", "GET", path, query=query)


def experiment(p, name: str, /, **more: Any) -> str:
    return post(p, "experiments/create", name, name=name, **more).get("experiment_id", "0")


def run(p, experiment_id: str, name: str, start_time: int = 1, /, **more: Any) -> str:
    made = post(p, "runs/create", name, experiment_id=experiment_id, start_time=start_time, run_name=name, user_id="me", **more)
    return made["run"]["info"]["run_id"]


def experiments(p) -> None:
    get(p, "experiments/get", "the default", experiment_id="0")
    one = experiment(p, "exp one", tags=[{"key": "a", "value": "1"}, {"key": "größe", "value": "ü 漢"}])
    get(p, "experiments/get", "with tags", experiment_id=one)
    get(p, "experiments/get-by-name", "found", experiment_name="exp one")
    get(p, "experiments/get-by-name", "none", experiment_name="nobody")
    get(p, "experiments/get", "none", experiment_id="424242")
    get(p, "experiments/get", "no number", experiment_id="abc")
    experiment(p, "exp one")
    post(p, "experiments/create", "500 characters", name="n" * 500)
    post(p, "experiments/create", "501 characters", name="n" * 501)
    post(p, "experiments/create", "with a place", name="placed", artifact_location="s3://bucket/folder/")
    post(p, "experiments/create", "with a query in the place", name="bad place", artifact_location="s3://b/f?x=1")
    post(p, "experiments/create", "with a fragment", name="bad place 2", artifact_location="s3://b/f#x")
    post(p, "experiments/create", "with dots in the place", name="bad place 3", artifact_location="s3://b/../f")
    get(p, "experiments/get-by-name", "placed", experiment_name="placed")
    for name, tag in TAGS.items():
        post(p, "experiments/set-experiment-tag", name, experiment_id=one, **tag)
    post(p, "experiments/set-experiment-tag", "20001 characters", experiment_id=one, key="k", value="x" * 20_001)
    post(p, "experiments/set-experiment-tag", "no experiment", experiment_id="424242", key="k", value="v")
    post(p, "experiments/delete-experiment-tag", "there", experiment_id=one, key="a")
    post(p, "experiments/delete-experiment-tag", "gone", experiment_id=one, key="a")
    get(p, "experiments/get", "after its tags", experiment_id=one)
    post(p, "experiments/update", "renamed", experiment_id=one, new_name="exp 1")
    post(p, "experiments/update", "to a name that is taken", experiment_id=one, new_name="placed")
    post(p, "experiments/update", "none", experiment_id="424242", new_name="x")
    post(p, "experiments/update", "too long", experiment_id=one, new_name="n" * 501)
    run_id = run(p, one, "in a deleted experiment")
    post(p, "experiments/delete", "once", experiment_id=one)
    post(p, "experiments/delete", "twice", experiment_id=one)
    get(p, "experiments/get", "deleted", experiment_id=one)
    get(p, "experiments/get-by-name", "deleted", experiment_name="exp 1")
    get(p, "runs/get", "of a deleted experiment", run_id=run_id)
    experiment(p, "exp 1")
    post(p, "experiments/update", "deleted", experiment_id=one, new_name="y")
    post(p, "experiments/set-experiment-tag", "deleted", experiment_id=one, key="k", value="v")
    post(p, "experiments/delete-experiment-tag", "deleted", experiment_id=one, key="k")
    post(p, "runs/create", "in a deleted one", experiment_id=one, start_time=1)
    post(p, "runs/create", "in none", experiment_id="424242", start_time=1)
    post(p, "experiments/restore", "once", experiment_id=one)
    post(p, "experiments/restore", "twice", experiment_id=one)
    post(p, "experiments/restore", "none", experiment_id="424242")
    post(p, "experiments/delete", "none", experiment_id="424242")
    get(p, "runs/get", "of a restored experiment", run_id=run_id)
    post(p, "experiments/delete", "the default", experiment_id="0")
    post(p, "experiments/restore", "the default", experiment_id="0")


TAGS = {
    "plain": {"key": "plain", "value": "v"},
    "without a value": {"key": "novalue"},
    "an empty value": {"key": "empty", "value": ""},
    "unicode": {"key": "größe 漢", "value": "🦀 ü"},
    "a slash": {"key": "a/b", "value": "v"},
    "two dots": {"key": "../b", "value": "v"},
    "a bad character": {"key": "a;b", "value": "v"},
    "a new line in the value": {"key": "lines", "value": "a\nb"},
    "250 characters": {"key": "k" * 250, "value": "v"},
    "251 characters": {"key": "k" * 251, "value": "v"},
    "twice": {"key": "plain", "value": "w"},
}


def runs(p) -> None:
    one = experiment(p, "for runs")
    run_id = run(p, one, "first", 1000, tags=[{"key": "team", "value": "a"}])
    get(p, "runs/get", "new", run_id=run_id)
    get(p, "runs/get", "by its old name", run_uuid=run_id)
    get(p, "runs/get", "none", run_id="0" * 32)
    get(p, "runs/get", "unsafe", run_id="../x")
    post(p, "runs/create", "named by a tag", experiment_id=one, start_time=5, user_id="me",
         tags=[{"key": "mlflow.runName", "value": "tagged"}])
    post(p, "runs/create", "named twice alike", experiment_id=one, start_time=5, run_name="n",
         tags=[{"key": "mlflow.runName", "value": "n"}])
    post(p, "runs/create", "named twice", experiment_id=one, start_time=5, run_name="n",
         tags=[{"key": "mlflow.runName", "value": "m"}])
    post(p, "runs/create", "bare", experiment_id=one)
    post(p, "runs/create", "without an experiment", start_time=1)
    post(p, "runs/create", "a long name", experiment_id=one, start_time=1, run_name="n" * 300)
    post(p, "runs/create", "a bad tag", experiment_id=one, start_time=1, tags=[{"key": "a;b", "value": "c"}])
    for name, tag in TAGS.items():
        post(p, "runs/set-tag", name, run_id=run_id, **tag)
    for length in [5000, 5001, 8000, 8001]:
        post(p, "runs/set-tag", f"{length} characters", run_id=run_id, key="long", value="x" * length)
    post(p, "runs/set-tag", "by the old name", run_uuid=run_id, key="old", value="name")
    post(p, "runs/set-tag", "none", run_id="0" * 32, key="k", value="v")
    post(p, "runs/set-tag", "its name", run_id=run_id, key="mlflow.runName", value="renamed by tag")
    post(p, "runs/delete-tag", "there", run_id=run_id, key="a/b")
    post(p, "runs/delete-tag", "gone", run_id=run_id, key="a/b")
    post(p, "runs/delete-tag", "none", run_id="0" * 32, key="a/b")
    for name, tag in TAGS.items():
        post(p, "runs/log-parameter", name, run_id=run_id, **tag)
    for length in [6000, 6001]:
        post(p, "runs/log-parameter", f"{length} characters", run_id=run_id, key=f"long{length}", value="x" * length)
    post(p, "runs/log-parameter", "again", run_id=run_id, key="plain", value="v")
    post(p, "runs/log-parameter", "none", run_id="0" * 32, key="k", value="v")
    get(p, "runs/get", "with tags and params", run_id=run_id)
    for status in ["RUNNING", "SCHEDULED", "FAILED", "KILLED", "FINISHED", "finished", "NOPE", ""]:
        post(p, "runs/update", f"status {status}", run_id=run_id, status=status, end_time=2000)
    post(p, "runs/update", "status 3", run_id=run_id, status=3)
    post(p, "runs/update", "status 33", run_id=run_id, status=33)
    post(p, "runs/update", "its name", run_id=run_id, run_name="renamed")
    post(p, "runs/update", "an empty name", run_id=run_id, run_name="")
    post(p, "runs/update", "nothing", run_id=run_id)
    post(p, "runs/update", "only the end", run_uuid=run_id, end_time=3000)
    post(p, "runs/update", "none", run_id="0" * 32, status="FINISHED")
    get(p, "runs/get", "updated", run_id=run_id)
    post(p, "runs/delete", "once", run_id=run_id)
    post(p, "runs/delete", "twice", run_id=run_id)
    post(p, "runs/delete", "none", run_id="0" * 32)
    get(p, "runs/get", "deleted", run_id=run_id)
    post(p, "runs/log-metric", "deleted", run_id=run_id, key="m", value=1, timestamp=1, step=0)
    post(p, "runs/log-parameter", "deleted", run_id=run_id, key="p", value="1")
    post(p, "runs/set-tag", "deleted", run_id=run_id, key="p", value="1")
    post(p, "runs/delete-tag", "deleted", run_id=run_id, key="plain")
    post(p, "runs/update", "deleted", run_id=run_id, status="FINISHED")
    post(p, "runs/log-batch", "deleted", run_id=run_id, tags=[{"key": "a", "value": "b"}])
    post(p, "runs/log-inputs", "deleted", run_id=run_id, datasets=[])
    post(p, "runs/restore", "once", run_id=run_id)
    post(p, "runs/restore", "twice", run_id=run_id)
    post(p, "runs/restore", "none", run_id="0" * 32)
    model = {"run_id": run_id, "artifact_path": "model", "utc_time_created": "2020-01-01 00:00:00", "flavors": {"x": {}}}
    post(p, "runs/log-model", "once", run_id=run_id, model_json=json.dumps(model))
    post(p, "runs/log-model", "no JSON", run_id=run_id, model_json="{")
    post(p, "runs/log-model", "missing fields", run_id=run_id, model_json="{}")
    get(p, "runs/get", "with a noted model", run_id=run_id)


def batches(p) -> None:
    one = experiment(p, "for batches")
    run_id = run(p, one, "batched")
    metric = {"key": "m", "value": 1.5, "timestamp": 10, "step": 0}

    def batch(name: str, **body: Any) -> None:
        post(p, "runs/log-batch", name, run_id=run_id, **body)

    batch("nothing")
    batch("all three", metrics=[metric], params=[{"key": "p", "value": "1"}], tags=[{"key": "t", "value": "1"}])
    batch("1000 metrics", metrics=[{**metric, "step": n} for n in range(1000)])
    batch("1001 metrics", metrics=[{**metric, "step": n} for n in range(1001)])
    batch("100 params", params=[{"key": f"p{n}", "value": "1"} for n in range(100)])
    batch("101 params", params=[{"key": f"q{n}", "value": "1"} for n in range(101)])
    batch("100 tags", tags=[{"key": f"t{n}", "value": "1"} for n in range(100)])
    batch("101 tags", tags=[{"key": f"u{n}", "value": "1"} for n in range(101)])
    batch("1001 of all", metrics=[metric] * 901, params=[{"key": f"p{n}", "value": "1"} for n in range(100)])
    batch("over a megabyte", tags=[{"key": f"t{n}", "value": "x" * 8000} for n in range(100)],
          params=[{"key": f"l{n}", "value": "x" * 6000} for n in range(50)])
    batch("a param anew", params=[{"key": "p", "value": "2"}], tags=[{"key": "never", "value": "1"}])
    batch("a param twice", params=[{"key": "w", "value": "1"}, {"key": "w", "value": "2"}])
    batch("a param twice alike", params=[{"key": "w", "value": "1"}, {"key": "w", "value": "1"}])
    batch("a tag twice", tags=[{"key": "w", "value": "1"}, {"key": "w", "value": "2"}])
    batch("a bad metric key", metrics=[{**metric, "key": "a;b"}])
    batch("an empty metric key", metrics=[{**metric, "key": ""}])
    batch("a metric without a key", metrics=[{"value": 1, "timestamp": 1}])
    batch("a metric without a value", metrics=[{"key": "m", "timestamp": 1}])
    batch("a metric without a timestamp", metrics=[{"key": "m", "value": 1}])
    batch("a metric of text", metrics=[{**metric, "value": "much"}])
    batch("a metric of true", metrics=[{**metric, "value": True}])
    batch("a metric of null", metrics=[{**metric, "value": None}])
    batch("a step of text", metrics=[{**metric, "step": "x"}])
    batch("a step as text", metrics=[{**metric, "key": "s", "step": "7", "timestamp": "8", "value": "2.5"}])
    batch("a step that is a fraction", metrics=[{**metric, "step": 1.5}])
    batch("a negative step", metrics=[{**metric, "key": "neg", "step": -3}])
    batch("a negative timestamp", metrics=[{**metric, "key": "neg", "timestamp": -3}])
    batch("a metric key of 251", metrics=[{**metric, "key": "k" * 251}])
    batch("a param of 6001", params=[{"key": "long", "value": "x" * 6001}])
    batch("a param without a key", params=[{"value": "x"}])
    batch("a param without a value", params=[{"key": "novalue"}])
    batch("a param of a number", params=[{"key": "n", "value": 3}])
    batch("a bad param key", params=[{"key": "../p", "value": "3"}])
    batch("a tag of 8001", tags=[{"key": "long", "value": "x" * 8001}])
    batch("a bad tag key", tags=[{"key": "a\u0000b", "value": "3"}])
    batch("an empty tag key", tags=[{"key": "", "value": "3"}])
    batch("metrics that are no list", metrics={"m": 1})
    batch("unknown fields", metrics=[{**metric, "key": "f", "more": 1}], also="this")
    post(p, "runs/log-batch", "no run", run_id="0" * 32, metrics=[metric])
    get(p, "runs/get", "after the batches", run_id=run_id)


def numbers(p) -> None:
    one = experiment(p, "for numbers")
    run_id = run(p, one, "numbers")
    for n, value in enumerate(["NaN", "Infinity", "-Infinity", 1e308, -0.0, 5e-324, 0.1, 10**17, "1e3", "inf", "nan", " 1"]):
        post(p, "runs/log-metric", f"{value!r}", run_id=run_id, key="odd", value=value, timestamp=n, step=n)
        post(p, "runs/log-metric", f"{value!r} alone", run_id=run_id, key=f"odd{n}", value=value, timestamp=n, step=n)
    get(p, "metrics/get-history", "odd numbers", run_id=run_id, metric_key="odd")
    for step, value, at in [(0, 3, 5), (0, 4, 5), (0, 4, 5), (0, 9, 4), (2, 1, 1), (1, 7, 9), (2, "NaN", 1), (-1, 8, 8)]:
        post(p, "runs/log-metric", f"step {step} {value} at {at}", run_id=run_id, key="steps", value=value, timestamp=at, step=step)
    post(p, "runs/log-metric", "no step", run_id=run_id, key="nostep", value=1, timestamp=1)
    post(p, "runs/log-metric", "no timestamp", run_id=run_id, key="x", value=1)
    post(p, "runs/log-metric", "no value", run_id=run_id, key="x", timestamp=1)
    post(p, "runs/log-metric", "value 0", run_id=run_id, key="zero", value=0, timestamp=0)
    post(p, "runs/log-metric", "a bad key", run_id=run_id, key="a;b", value=0, timestamp=0)
    post(p, "runs/log-metric", "a dotted key", run_id=run_id, key="a/../b", value=0, timestamp=0)
    post(p, "runs/log-metric", "a key of 251", run_id=run_id, key="k" * 251, value=0, timestamp=0)
    post(p, "runs/log-metric", "a big step", run_id=run_id, key="big", value=0, timestamp=0, step=2**63 - 1)
    post(p, "runs/log-metric", "too big a step", run_id=run_id, key="big", value=0, timestamp=0, step=2**63)
    post(p, "runs/log-metric", "an unknown model", run_id=run_id, key="m", value=0, timestamp=0, model_id="m-none")
    post(p, "runs/log-metric", "no run", run_id="0" * 32, key="m", value=0, timestamp=0)
    post(p, "runs/log-metric", "a dataset", run_id=run_id, key="ds", value=1, timestamp=0, dataset_name="d", dataset_digest="1")
    get(p, "runs/get", "with odd numbers", run_id=run_id)

    def history(name: str, **more: Any) -> dict:
        return get(p, "metrics/get-history", name, run_id=run_id, metric_key="steps", **more)

    token, page = "", 0
    history("whole")
    while page == 0 or token:
        token = history(f"page {page}", max_results=3, **({"page_token": token} if token else {})).get("next_page_token", "")
        page += 1
    history("max_results 0", max_results=0)
    history("max_results -1", max_results=-1)
    history("max_results of text", max_results="x")
    history("a bad token", page_token="!!")
    get(p, "metrics/get-history", "none logged", run_id=run_id, metric_key="nothing")
    get(p, "metrics/get-history", "no run", run_id="0" * 32, metric_key="steps")
    get(p, "metrics/get-history-bulk-interval", "two runs", run_ids=[run_id], metric_key="steps", max_results=10)
    get(p, "metrics/get-history-bulk-interval", "a range", run_ids=[run_id], metric_key="steps", start_step=0, end_step=1)
    get(p, "metrics/get-history-bulk-interval", "half a range", run_ids=[run_id], metric_key="steps", start_step=0)
    get(p, "metrics/get-history-bulk-interval", "a range backwards", run_ids=[run_id], metric_key="steps", start_step=3, end_step=1)
    get(p, "metrics/get-history-bulk-interval", "no key", run_ids=[run_id])
    get(p, "metrics/get-history-bulk-interval", "no runs", metric_key="steps")
    get(p, "metrics/get-history-bulk-interval", "over the limit", run_ids=[run_id], metric_key="steps", max_results=2501)
    many = run(p, one, "many points")
    post(p, "runs/log-batch", "500 points", run_id=many,
         metrics=[{"key": "c", "value": n, "timestamp": n, "step": n} for n in range(500)])
    get(p, "metrics/get-history-bulk-interval", "sampled", run_ids=[many], metric_key="c", max_results=10)


def inputs(p) -> None:
    one = experiment(p, "for inputs")
    run_id, second = run(p, one, "reads"), run(p, one, "reads too")
    dataset = {"name": "d", "digest": "abc", "source_type": "local", "source": "/x", "schema": "s", "profile": "{}"}

    def inputs_of(name: str, *datasets: dict, **more: Any) -> None:
        post(p, "runs/log-inputs", name, run_id=run_id, datasets=list(datasets), **more)

    inputs_of("one", {"dataset": dataset, "tags": [{"key": "mlflow.data.context", "value": "train"}, {"key": "b", "value": "c"}]})
    inputs_of("again with another context", {"dataset": dataset, "tags": [{"key": "mlflow.data.context", "value": "eval"}]})
    inputs_of("without tags", {"dataset": {**dataset, "digest": "def"}})
    inputs_of("only what must be", {"dataset": {"name": "e", "digest": "1", "source_type": "local", "source": "x"}})
    get(p, "runs/get", "with inputs", run_id=run_id)
    post(p, "runs/log-inputs", "another run", run_id=second, datasets=[{"dataset": dataset}])
    for path in ["/api/2.0mlflow/experiments/search-datasets", "/ajax-api/2.0/mlflow/experiments/search-datasets"]:
        p.call(f"{path}: found", "POST", path, {"experiment_ids": [one]})
        p.call(f"{path}: none", "POST", path, {"experiment_ids": ["424242"]})
        p.call(f"{path}: nothing asked", "POST", path, {"experiment_ids": []})
        p.call(f"{path}: too many", "POST", path, {"experiment_ids": ["0"] * 21})
        p.call(f"{path}: missing", "POST", path, {})
    for filter in ["dataset.name = 'd'", "dataset.digest = 'abc'", "dataset.context = 'train'", "dataset.context = 'eval'",
                   "dataset.name LIKE '%'", "dataset.name != 'd'", "dataset.name IN ('d', 'e')", "dataset.nope = 'd'",
                   "dataset.name = 'd' AND dataset.context = 'none'", "dataset.name > 'a'", "dataset.profile = '{}'",
                   "datasets.name = 'd'"]:
        search_runs(p, f"filter {filter}", experiment_ids=[one], filter=filter)
    # Refused by one server and kept by the other: last, so that nothing else sees it.
    inputs_of("no dataset", {"tags": []})
    inputs_of("no name", {"dataset": {**dataset, "name": ""}})
    inputs_of("no digest", {"dataset": {k: v for k, v in dataset.items() if k != "digest"}})
    inputs_of("no source", {"dataset": {"name": "e", "digest": "1", "source_type": "local"}})
    inputs_of("no source type", {"dataset": {"name": "e", "digest": "1", "source": "x"}})
    inputs_of("a long name", {"dataset": {**dataset, "name": "n" * 501}})
    inputs_of("a long digest", {"dataset": {**dataset, "digest": "n" * 37}})
    inputs_of("a long tag", {"dataset": dataset, "tags": [{"key": "k" * 256, "value": "v"}]})
    inputs_of("a long tag value", {"dataset": dataset, "tags": [{"key": "k", "value": "v" * 501}]})
    post(p, "runs/log-inputs", "no run", run_id="0" * 32, datasets=[{"dataset": dataset}])
    post(p, "runs/log-inputs", "nothing", run_id=run_id)


def search_runs(p, name: str, /, **body: Any) -> dict:
    """Whole runs are compared elsewhere; here it is which, and in what order."""
    found = post(p, "runs/search", name, **body)
    exchange = p.exchanges[-1]
    if exchange["status"] == 200:
        names = [each["info"]["run_name"] for each in exchange["body"].get("runs", [])]
        if "dataset" in name or "artifact_uri" in name or "['run_id']" in name:
            names.sort()  # Equal times, or ids, which each server draws by chance.
        exchange["body"] = {"runs": names} | ({"next_page_token": "x"} if "next_page_token" in exchange["body"] else {})
    return found


RUN_FILTERS = """
metrics.loss < 0.3
metrics.loss <= 0.2
metrics.loss = 0.2
metrics.loss == 0.2
metrics.loss != 0.2
metrics.loss <> 0.2
metrics.loss > -1
metrics.loss >= 1e-1
metric.loss < 0.3
metrics.`loss` < 0.3
metrics."loss" < 0.3
metrics.'loss' < 0.3
metrics.nothing < 1
metrics.`val loss` < 1
metrics.nan > 0
metrics.nan != 1
metrics.loss = '0.2'
metrics.loss LIKE '0.2'
metrics.loss IN (0.1, 0.2)
metrics.loss IS NULL
metrics.loss IS NOT NULL
metrics.a.b = 1
metrics.loss <0.3 and metrics.loss>0.1
params.kind = 'Wide'
params.kind = "Wide"
params.kind != 'Wide'
params.kind LIKE 'W%'
params.kind LIKE 'w%'
params.kind ILIKE 'w%'
params.kind LIKE '_ide'
params.kind NOT LIKE 'W%'
params.kind IN ('Wide', 'narrow')
params.kind NOT IN ('Wide')
params.kind = 3
params.kind = Wide
params.kind > 'a'
params.kind IS NULL
params.kind IS NOT NULL
params.kind is null
param.kind = 'Wide'
parameters.kind = 'Wide'
parameter.kind = 'Wide'
params."a key" = 'x'
params.`a key` = 'x'
params.kind = 'O''Hara'
params.quote = "O'Hara"
params.kind = ''
params.empty = ''
tags.team = 'a'
tags.team != 'a'
tags.team IS NULL
tags.team IS NOT NULL
tags.`a key` = 'even'
tags."a key" = 'odd'
tag.team = 'a'
tags.team = 'A'
tags.team ILIKE 'A'
tags.team IN ('a')
tags.größe = 'ü'
tags.`größe` = 'ü'
tags.mlflow.runName = 'run-1'
tags.`mlflow.runName` LIKE 'run-%'
tags.`mlflow.user` = 'me'
run_name = 'run-1'
`run name` = 'run-1'
"run name" = 'run-1'
attributes.run_name = 'run-1'
attribute.run_name LIKE 'run-%'
attr.run_name = 'run-1'
run.run_name = 'run-1'
attributes.`Run name` = 'run-1'
attributes."run_name" = 'run-1'
run_name ILIKE 'RUN-%'
run_name != 'run-1'
status = 'RUNNING'
attributes.status = 'FINISHED'
attributes.status != 'RUNNING'
attributes.Status = 'RUNNING'
attributes.status = 'running'
user_id = 'me'
attributes.user_id != 'me'
User = 'me'
attributes.artifact_uri LIKE 'mlflow-artifacts:%'
attributes.experiment_id = '1'
attributes.lifecycle_stage = 'active'
attributes.source_name = 'x'
start_time > 2
start_time = 3
start_time != 3
start_time >= 2 AND start_time < 5
start_time = '3'
start_time LIKE '3'
attributes.start_time <= 2
created > 2
attributes.Created > 2
end_time = 9000
end_time > 1
end_time IS NULL
attributes.nope = 'x'
nope = 'x'
nope.x = 'y'
run_id IN ()
run_id IN ('x', 'y')
run_id NOT IN ('x')
run_id = 'x'
attributes.run_id != 'x'
status IN ('RUNNING')
status IN ('RUNNING', 'FINISHED')
metrics.loss < 0.3 AND params.kind = 'Wide' AND tags.team = 'a'
metrics.loss < 0.3 OR params.kind = 'Wide'
(metrics.loss < 0.3)
metrics.loss < 0.3 AND
AND metrics.loss < 0.3
metrics.loss
metrics.loss <
< 3
metrics.loss < abc
metrics.loss << 3
params.kind = 'Wide
params.kind 'Wide'
params = 'x'
= 'x'
loss < 3
;
params.kind = 'x'; DROP TABLE runs
metrics.loss < 0.3 metrics.loss > 0.1
params.kind LIKE 5
params.`kind = 'x'
prompts.name = 'x'
models.name = 'x'
""".strip().splitlines()

RUN_ORDERS = [
    ["metrics.loss"], ["metrics.loss ASC"], ["metrics.loss DESC"], ["metrics.loss desc"], ["metrics.nan ASC"], ["metrics.nan DESC"],
    ["metrics.`val loss` DESC"], ["params.kind"], ["params.kind DESC", "start_time ASC"], ["tags.team", "start_time"],
    ["tags.`a key` DESC"], ["start_time"], ["start_time DESC"], ["attributes.start_time ASC"], ["attribute.end_time DESC"],
    ["run_name ASC"], ["attributes.run_name DESC"], ["status"], ["Created"], ["attributes.Created ASC"], ["`Run name` DESC"],
    ["attributes.artifact_uri"], ["user_id"], ["User"], ["run_id"], ["metrics.none ASC"],
    ["nope"], ["attributes.nope"], ["metrics.loss UP"], ["metrics.loss ASC DESC"], [""], ["nope.x"], ["dataset.name"], ["metrics"],
    ["start_time; DROP"], ["start_time ASC", "start_time DESC"], ["attributes.start_time ASC, metrics.loss"], ["lifecycle_stage"],
]  # fmt: skip


def run_searches(p) -> None:
    one, other = experiment(p, "searched"), experiment(p, "searched too")
    ids = []
    for n in range(6):
        tags = [{"key": "a key", "value": "even" if n % 2 == 0 else "odd"}, {"key": "team", "value": "ab"[n // 3]}]
        run_id = run(p, one, f"run-{n}", n + 1, tags=tags[: 1 if n == 5 else 2] + [{"key": "größe", "value": "ü"}])
        metrics = [{"key": "loss", "value": n / 10, "timestamp": 1, "step": 0}, {"key": "a.b", "value": 1, "timestamp": 1, "step": 0}]
        if n % 2:
            metrics.append({"key": "nan", "value": "NaN" if n == 1 else n, "timestamp": 1, "step": 0})
        metrics.append({"key": "val loss", "value": (n * 7) % 5, "timestamp": 1, "step": 0})
        params = [{"key": "kind", "value": "Wide" if n > 2 else "narrow"}, {"key": "a key", "value": "x"},
                  {"key": "quote", "value": "O'Hara"}, {"key": "empty", "value": ""}]
        if n != 0:
            post(p, "runs/log-batch", f"of run {n}", run_id=run_id, metrics=metrics, params=params)
        ids.append(run_id)
    post(p, "runs/update", "finished", run_id=ids[2], status="FINISHED", end_time=9000)
    run(p, other, "elsewhere", 77)

    def search(name: str, /, **body: Any) -> dict:
        return search_runs(p, name, **({"experiment_ids": [one]} | body))

    post(p, "runs/search", "whole", experiment_ids=[one], max_results=2)
    for filter in RUN_FILTERS:
        search(f"filter {filter}", filter=filter)
    for order in RUN_ORDERS:
        search(f"order {order}", order_by=order)
    search("ids", filter=f"run_id IN ('{ids[0]}', '{ids[4]}')", order_by=["start_time"])
    search("not ids", filter=f"attributes.run_id NOT IN ('{ids[0]}', '{ids[4]}')", order_by=["start_time"])
    search("an id", filter=f"run_id = '{ids[0]}'")
    search("ids like", filter=f"run_id LIKE '{ids[0][:20]}%'")
    search("two experiments", experiment_ids=[one, other], order_by=["start_time DESC"], max_results=2)
    search("no experiments", experiment_ids=[])
    search("experiments missing", experiment_ids=None)
    search("an unknown experiment", experiment_ids=["424242"])
    search("an experiment that is no number", experiment_ids=["abc"])
    search("an experiment as a number", experiment_ids=[int(one)])
    token, page = "", 0
    while page == 0 or token:
        token = search(f"page {page}", order_by=["metrics.loss DESC"], max_results=4, **({"page_token": token} if token else {})).get("next_page_token", "")
        page += 1
    for n in [0, -1, 50_000, 50_001, "7", "x", 2.5, None]:
        search(f"max_results {n!r}", max_results=n)
    search("a bad token", page_token="nope")
    search("an empty token", page_token="")
    search("a filter of 3", filter=3)
    search("an order of text", order_by="start_time")
    search("an order of numbers", order_by=[1])
    post(p, "runs/delete", "searched", run_id=ids[1])
    for view in ["ACTIVE_ONLY", "DELETED_ONLY", "ALL", "NOPE", "", 1, 2, 3, 9, "active_only"]:
        search(f"view {view!r}", run_view_type=view, order_by=["start_time"])
    post(p, "experiments/delete", "searched", experiment_id=other)
    search("a deleted experiment", experiment_ids=[other])
    search("all of a deleted experiment", experiment_ids=[other], run_view_type="ALL")


def experiment_searches(p) -> None:
    for n, name in enumerate(["find a", "find b", "Find C", "find_d"]):
        experiment(p, name, tags=[{"key": "n", "value": str(n)}, {"key": "a key", "value": "x"}][: 1 if n == 3 else 2])
    experiment_id = experiment(p, "find gone")
    post(p, "experiments/delete", "found gone", experiment_id=experiment_id)

    def search(name: str, method: str = "POST", **body: Any) -> dict:
        p.step(f"experiments/search: {name}")
        more = {"query": body} if method == "GET" else {"body": {"max_results": 100} | body}
        found = p.call(f"experiments/search: {name}", method, "experiments/search", **more)
        exchange = p.exchanges[-1]
        if exchange["status"] == 200:
            names = [each["name"] for each in exchange["body"].get("experiments", [])]
            exchange["body"] = {"experiments": names} | ({"next_page_token": "x"} if "next_page_token" in exchange["body"] else {})
        return found

    for filter in ["name = 'find a'", "name != 'find a' AND name ILIKE 'find%'", "name LIKE 'find%'", "name ILIKE 'FIND%'", "name LIKE 'Find%'",
                   "attribute.name = 'find b'", "attributes.name = 'find b'", "attr.name = 'find b'", "tags.n = '1'", "tags.n != '1'",
                   "tag.n = '1'", "tags.`a key` = 'x'", "tags.\"a key\" LIKE 'x%'", "tags.n IS NULL", "tags.`a key` IS NULL AND name ILIKE 'find%'",
                   "tags.n IS NOT NULL", "tags.n IN ('1', '2')", "name IN ('find a', 'find b')", "creation_time > 0 AND name LIKE 'find a'",
                   "creation_time < 5", "last_update_time >= 1 AND name = 'find a'", "creation_time = 'x'", "experiment_id = '0'", "name = 3",
                   "name > 'a'", "nope = 'x'", "nope.x = 'y'", "metrics.a = 1", "name = 'a' OR name = 'b'", "name", "name =", "(name = 'find a')",
                   "name LIKE 'find_d'", "name NOT LIKE 'find%'", "", " ", "name = \"find a\"", "`name` = 'find a'", "tags.n > '1'"]:
        search(f"filter {filter}", filter=filter, order_by=["name"])
    for order in [["name"], ["name DESC"], ["name ASC"], ["creation_time", "name"], ["last_update_time DESC", "name"], ["experiment_id"],
                  ["experiment_id DESC"], ["tags.n"], ["nope"], [""], ["name UP"], ["attribute.name DESC"]]:
        search(f"order {order}", filter="name ILIKE 'find%'", order_by=order)
    token, page = "", 0
    while page == 0 or token:
        token = search(f"page {page}", filter="name ILIKE 'find%'", order_by=["name"], max_results=2, **({"page_token": token} if token else {})).get("next_page_token", "")
        page += 1
    for n in [0, -1, 50_000, 50_001, "7", "x", None]:
        search(f"max_results {n!r}", filter="name = 'find a'", max_results=n)
    search("nothing asked", max_results=None, filter="name = 'find a'")
    for view in ["ACTIVE_ONLY", "DELETED_ONLY", "ALL", "NOPE", "", 1, 2, 3]:
        search(f"view {view!r}", view_type=view, filter="name ILIKE 'find%'", order_by=["name"])
    search("a bad token", page_token="nope")
    search("by query", "GET", max_results=2, filter="name ILIKE 'find%'", order_by=["name"], view_type="ALL")
    search("by query without max_results", "GET", filter="name ILIKE 'find%'")


def registry(p) -> None:
    one = experiment(p, "for models")
    run_id = run(p, one, "makes models")
    models, versions = "registered-models", "model-versions"
    post(p, f"{models}/create", "plain", name="reg", description="d", tags=[{"key": "a", "value": "1"}])
    post(p, f"{models}/create", "again", name="reg")
    for name in ["a/b", "a:b", "", " ", "n" * 255, "n" * 256, "größe 漢", "a\nb", "a.b", "a%b", "."]:
        post(p, f"{models}/create", f"named {name[:10]!r} {len(name)}", name=name)
    post(p, f"{models}/create", "a bad tag", name="bad tag", tags=[{"key": "", "value": "1"}])
    get(p, f"{models}/get", "plain", name="reg")
    get(p, f"{models}/get", "none", name="none")
    for name, tag in TAGS.items():
        post(p, f"{models}/set-tag", name, name="reg", **tag)
    for length in [5000, 5001, 100_000, 100_001]:
        post(p, f"{models}/set-tag", f"{length} characters", name="reg", key="long", value="x" * length)
    post(p, f"{models}/set-tag", "none", name="none", key="k", value="v")
    p.call("registered-models/delete-tag: there", "DELETE", f"{models}/delete-tag", {"name": "reg", "key": "plain"})
    p.call("registered-models/delete-tag: gone", "DELETE", f"{models}/delete-tag", {"name": "reg", "key": "plain"})
    p.call("registered-models/delete-tag: none", "DELETE", f"{models}/delete-tag", {"name": "none", "key": "plain"})
    p.call("registered-models/delete-tag: long", "DELETE", f"{models}/delete-tag", {"name": "reg", "key": "long"})
    p.call("registered-models/update: described", "PATCH", f"{models}/update", {"name": "reg", "description": "new"})
    p.call("registered-models/update: undescribed", "PATCH", f"{models}/update", {"name": "reg"})
    p.call("registered-models/update: emptied", "PATCH", f"{models}/update", {"name": "reg", "description": ""})
    p.call("registered-models/update: none", "PATCH", f"{models}/update", {"name": "none", "description": "x"})
    for name in ["to be renamed", "taken"]:
        post(p, f"{models}/create", name, name=name)
    post(p, f"{models}/rename", "once", name="to be renamed", new_name="renamed")
    post(p, f"{models}/rename", "to a name that is taken", name="renamed", new_name="taken")
    post(p, f"{models}/rename", "to a bad name", name="renamed", new_name="a/b")
    post(p, f"{models}/rename", "to itself", name="renamed", new_name="renamed")
    post(p, f"{models}/rename", "none", name="none", new_name="x")
    p.call("registered-models/delete: once", "DELETE", f"{models}/delete", {"name": "renamed"})
    p.call("registered-models/delete: twice", "DELETE", f"{models}/delete", {"name": "renamed"})

    source = f"mlflow-artifacts:/{one}/{run_id}/artifacts/model"
    post(p, f"{versions}/create", "first", name="reg", source=source, run_id=run_id, tags=[{"key": "k", "value": "v"}], description="first", run_link="http://x")
    post(p, f"{versions}/create", "second", name="reg", source="s3://bucket/model")
    post(p, f"{versions}/create", "third", name="reg", source="models:/reg/1")
    post(p, f"{versions}/create", "of none", name="none", source="s3://bucket/x")
    post(p, f"{versions}/create", "of a prompt-like source", name="reg", source="dummy-source")
    for bad in ["", "s3://x", "/etc/passwd", "file:///etc/passwd", "../up", "s3://b/../../x", "mlflow-artifacts:/../../x", "models:/none/1", "models:/reg",
                "models:/m-" + "0" * 32, "http://x/%2e%2e/y", "ftp://x/y", "s3://x?y=..", "s3://b/a%2e%2e/c"]:
        post(p, f"{versions}/create", f"source {bad}", name="reg", source=bad)
    post(p, f"{versions}/create", "an unknown run", name="reg", source="s3://bucket/x", run_id="0" * 32)
    post(p, f"{versions}/create", "an unknown model", name="reg", source="s3://bucket/x", model_id="m-" + "0" * 32)
    get(p, f"{models}/get", "with versions", name="reg")
    get(p, f"{versions}/get", "first", name="reg", version="1")
    for version in ["99", "0", "-1", "x", "1.0", " 1", "01"]:
        get(p, f"{versions}/get", f"version {version}", name="reg", version=version)
        get(p, f"{versions}/get-download-uri", f"version {version}", name="reg", version=version)
    get(p, f"{versions}/get", "of none", name="none", version="1")
    for version in ["1", "2", "3"]:
        get(p, f"{versions}/get-download-uri", version, name="reg", version=version)
    for name, tag in TAGS.items():
        post(p, f"{versions}/set-tag", name, name="reg", version="1", **tag)
    post(p, f"{versions}/set-tag", "100001 characters", name="reg", version="1", key="long", value=LONG)
    post(p, f"{versions}/set-tag", "none", name="reg", version="99", key="k", value="v")
    p.call("model-versions/delete-tag: there", "DELETE", f"{versions}/delete-tag", {"name": "reg", "version": "1", "key": "plain"})
    p.call("model-versions/delete-tag: gone", "DELETE", f"{versions}/delete-tag", {"name": "reg", "version": "1", "key": "plain"})
    p.call("model-versions/update: described", "PATCH", f"{versions}/update", {"name": "reg", "version": "1", "description": "new"})
    p.call("model-versions/update: undescribed", "PATCH", f"{versions}/update", {"name": "reg", "version": "1"})
    p.call("model-versions/update: a number", "PATCH", f"{versions}/update", {"name": "reg", "version": 1, "description": "n"})
    p.call("model-versions/update: none", "PATCH", f"{versions}/update", {"name": "reg", "version": "99", "description": "x"})
    for stage in ["Staging", "staging", "Production", "Archived", "None", "nope", "PRODUCTION"]:
        post(p, f"{versions}/transition-stage", stage, name="reg", version="1", stage=stage, archive_existing_versions=False)
    post(p, f"{versions}/transition-stage", "archiving", name="reg", version="2", stage="Production", archive_existing_versions=True)
    post(p, f"{versions}/transition-stage", "archiving None", name="reg", version="2", stage="None", archive_existing_versions=True)
    post(p, f"{versions}/transition-stage", "again", name="reg", version="2", stage="Production", archive_existing_versions=True)
    post(p, f"{versions}/transition-stage", "none", name="reg", version="99", stage="Production")
    for stages in [None, [], ["Production"], ["None", "Archived"], ["production"], ["nope"], ["Staging"]]:
        body = {"name": "reg"} | ({"stages": stages} if stages is not None else {})
        post(p, f"{models}/get-latest-versions", f"{stages}", **body)
        get(p, f"{models}/get-latest-versions", f"{stages}", **body)
    get(p, f"{models}/get-latest-versions", "none", name="none")
    for alias in ["champion", "Champion 2", "latest", "v1", "V12", "v", "a-b_c", "a/b", "größe", "1", "", "a" * 255, "a" * 256]:
        post(p, f"{models}/alias", f"set {alias[:20]!r} {len(alias)}", name="reg", alias=alias, version="1")
        get(p, f"{models}/alias", f"{alias[:20]!r} {len(alias)}", name="reg", alias=alias)
    post(p, f"{models}/alias", "moved", name="reg", alias="champion", version="2")
    post(p, f"{models}/alias", "to none", name="reg", alias="champion", version="99")
    post(p, f"{models}/alias", "of none", name="none", alias="champion", version="1")
    get(p, f"{models}/alias", "moved", name="reg", alias="champion")
    get(p, f"{models}/alias", "of none", name="none", alias="champion")
    get(p, f"{models}/get", "with aliases", name="reg")
    p.call("registered-models/alias: delete", "DELETE", f"{models}/alias", {"name": "reg", "alias": "champion"})
    p.call("registered-models/alias: delete twice", "DELETE", f"{models}/alias", {"name": "reg", "alias": "champion"})
    p.call("registered-models/alias: delete of none", "DELETE", f"{models}/alias", {"name": "none", "alias": "champion"})
    p.call("model-versions/delete: once", "DELETE", f"{versions}/delete", {"name": "reg", "version": "3"})
    p.call("model-versions/delete: twice", "DELETE", f"{versions}/delete", {"name": "reg", "version": "3"})
    post(p, f"{versions}/create", "after a deletion", name="reg", source="s3://bucket/x")
    get(p, f"{versions}/get", "deleted", name="reg", version="3")


def registry_searches(p) -> None:
    one = experiment(p, "for model searches")
    run_id = run(p, one, "searched models")
    for n, name in enumerate(["look a", "look b", "Look C"]):
        post(p, "registered-models/create", name, name=name, tags=[{"key": "n", "value": str(n)}, {"key": "a key", "value": "x"}])
        for v in range(n + 1):
            post(p, "model-versions/create", f"{name} {v}", name=name, source=f"s3://look/{name[-1]}/{v}", run_id=run_id if v == 0 else "",
                 tags=[{"key": "v", "value": str(v)}, {"key": "of", "value": name}])
    post(p, "registered-models/create", "a prompt", name="look prompt", tags=[{"key": "mlflow.prompt.is_prompt", "value": "true"}])
    post(p, "model-versions/create", "a prompt", name="look prompt", source="dummy-source",
         tags=[{"key": "mlflow.prompt.is_prompt", "value": "true"}, {"key": "mlflow.prompt.text", "value": "hi {{x}}"}])

    def search(kind: str, name: str, /, **query: Any) -> dict:
        found = get(p, f"{kind}/search", name, **query)
        exchange = p.exchanges[-1]
        if exchange["status"] == 200:
            key = kind.replace("-", "_")
            names = [each["name"] + "".join(f" {each[v]}" for v in ["version"] if v in each) for each in exchange["body"].get(key, [])]
            exchange["body"] = {key: names} | ({"next_page_token": "x"} if "next_page_token" in exchange["body"] else {})
        return found

    for filter in ["name = 'look a'", "name LIKE 'look%'", "name ILIKE 'look%'", "name != 'look a' AND name ILIKE 'look%'", "name = 3", "name > 'a'",
                   "tags.n = '1'", "tag.n = '1'", "tags.`a key` = 'x'", "tags.n != '1'", "tags.n LIKE '%'", "tags.n ILIKE '1'", "tags.n IS NULL",
                   "tags.n IN ('1')", "name IN ('look a', 'look b')", "nope = 'x'", "attributes.name = 'look a'", "attribute.name = 'look a'",
                   "name = 'look a' OR name = 'look b'", "name", "", "name = \"look a\"", "`name` = 'look a'", "name LIKE 'look_a'",
                   "name='look a' AND tag.`mlflow.prompt.is_prompt` != 'true'", "tag.`mlflow.prompt.is_prompt` = 'true'",
                   "tags.`mlflow.prompt.is_prompt` = 'false'", "name NOT LIKE 'look%'", "metrics.a = 1", "tags.n = '1' AND tags.`a key` = 'x'",
                   "tags.n != '1' AND name LIKE 'look%'"]:
        search("registered-models", f"filter {filter}", filter=filter, order_by=["name"])
    for order in [["name"], ["name DESC"], ["name ASC"], ["timestamp", "name"], ["last_updated_timestamp DESC", "name"], ["creation_timestamp"],
                  ["nope"], [""], ["name UP"], ["name ASC", "name DESC"], ["tags.n"]]:
        search("registered-models", f"order {order}", filter="name ILIKE 'look%'", order_by=order)
    for n in [1, 0, -1, 1000, 1001, "x"]:
        search("registered-models", f"max_results {n!r}", filter="name ILIKE 'look%'", max_results=n, order_by=["name"])
    search("registered-models", "a bad token", page_token="nope")
    for filter in ["name = 'look b'", "name LIKE 'look%'", "name ILIKE 'LOOK%'", f"run_id = '{run_id}'", f"run_id IN ('{run_id}')", "run_id IN ()",
                   "run_id IN ('x', 'y')", "source_path = 's3://look/b/1'", "source_path LIKE 's3://look%'", "source = 's3://look/b/1'",
                   "version_number = 2 AND name ILIKE 'look%'", "version_number > 1 AND name ILIKE 'look%'", "version_number = '2'", "version = 2",
                   "version_number IN (1)", "tags.v = '1'", "tags.v != '1' AND name ILIKE 'look%'", "tag.v = '1'", "tags.`v` = '1'", "tags.v IS NULL",
                   "tags.v = '1' AND tags.of = 'look b'", "name = 'look a' AND run_id != 'x'", "user_id = 'x'", "status = 'READY'", "nope = 'x'",
                   "creation_timestamp > 0 AND name = 'look a'", "last_updated_timestamp > 5", "name > 'a'", "name = 3", "name = 'a' OR name = 'b'",
                   "name", "", "tag.`mlflow.prompt.is_prompt` = 'true'", "name = 'look prompt'",
                   "name='look prompt' AND tag.`mlflow.prompt.is_prompt` = 'true'", "attributes.name = 'look a'", "current_stage = 'None'",
                   "name NOT LIKE 'look%'", "source_path ILIKE 'S3://LOOK/C%'", "run_id LIKE '%'"]:
        search("model-versions", f"filter {filter}", filter=filter, order_by=["name", "version_number DESC"])
    for order in [["name"], ["name DESC", "version_number"], ["version_number"], ["version_number DESC"], ["creation_timestamp", "name", "version_number"],
                  ["last_updated_timestamp DESC", "name", "version_number"], ["nope"], [""], ["name UP"], ["run_id", "name", "version_number"], ["source_path"], ["tags.v"]]:
        search("model-versions", f"order {order}", filter="name ILIKE 'look%'", order_by=order)
    for n in [1, 0, -1, 200_000, 200_001, "x"]:
        search("model-versions", f"max_results {n!r}", filter="name ILIKE 'look%'", max_results=n, order_by=["name", "version_number"])
    search("model-versions", "a bad token", page_token="nope")


def logged_models(p) -> None:
    one = experiment(p, "for logged models")
    run_id = run(p, one, "logs models")
    ids = {}

    def create(name: str, /, **body: Any) -> None:
        made = post(p, "logged-models", name, **({"experiment_id": one} | body))
        ids[name] = made.get("model", {}).get("info", {}).get("model_id", "m-" + "0" * 32)

    create("plain", name="alpha", model_type="kind", source_run_id=run_id, params=[{"key": "p", "value": "1"}], tags=[{"key": "t", "value": "1"}])
    create("second", name="beta", params=[{"key": "p", "value": "2"}], tags=[{"key": "t", "value": "2"}])
    create("third", name="Gamma", model_type="other")
    create("nameless")
    # What one server may keep and the other refuse goes where nothing else sees it.
    apart = {"experiment_id": experiment(p, "for odd logged models")}
    for bad in ["a/b", "a:b", "a.b", "a%b", "a\"b", "a'b", "", " ", "größe"]:
        create(f"named {bad!r}", name=bad, **apart)
    create("a long param", name="x", **apart, params=[{"key": "p", "value": "x" * 6001}])
    create("a bad param", name="x", **apart, params=[{"key": "a;b", "value": "x"}])
    create("a bad tag", name="x", **apart, tags=[{"key": "", "value": "x"}])
    create("an unknown run", name="x", source_run_id="0" * 32)
    post(p, "logged-models", "in none", experiment_id="424242", name="x")
    post(p, "logged-models", "no experiment", name="x")
    model_id = ids["plain"]
    none = "m-" + "0" * 32

    def model(name: str, method: str, below: str = "", body: Any = None, of: str = model_id, query: Any = None) -> None:
        p.call(f"logged-models/{{id}}{below} {method}: {name}", method, f"logged-models/{of}{below}", body, query)

    model("pending", "GET")
    model("none", "GET", of=none)
    model("status without its id", "PATCH", body={"status": "LOGGED_MODEL_PENDING"})
    model("status READY", "PATCH", body={"model_id": model_id, "status": "LOGGED_MODEL_READY"})
    model("status of a number", "PATCH", body={"model_id": model_id, "status": 2})
    model("status nope", "PATCH", body={"model_id": model_id, "status": "nope"})
    model("status missing", "PATCH", body={"model_id": model_id})
    model("status failed", "PATCH", body={"model_id": ids["second"], "status": "LOGGED_MODEL_UPLOAD_FAILED"}, of=ids["second"])
    model("status of none", "PATCH", body={"model_id": none, "status": "LOGGED_MODEL_READY"}, of=none)
    model("two", "PATCH", "/tags", {"tags": [{"key": "a", "value": "1"}, {"key": "größe", "value": "ü"}]})
    model("nothing", "PATCH", "/tags", {"tags": []})
    model("missing", "PATCH", "/tags", {})
    model("a bad key", "PATCH", "/tags", {"tags": [{"key": "", "value": "1"}]})
    model("a bad character", "PATCH", "/tags", {"tags": [{"key": "a;b", "value": "1"}]})
    model("a long value", "PATCH", "/tags", {"tags": [{"key": "long", "value": "x" * 8001}]})
    model("of none", "PATCH", "/tags", {"tags": [{"key": "a", "value": "1"}]}, of=none)
    model("there", "DELETE", "/tags/a")
    model("gone", "DELETE", "/tags/a")
    model("of none", "DELETE", "/tags/a", of=none)
    model("more", "POST", "/params", {"model_id": model_id, "params": [{"key": "q", "value": "1"}]})
    model("again", "POST", "/params", {"model_id": model_id, "params": [{"key": "q", "value": "1"}]})
    model("changed", "POST", "/params", {"model_id": model_id, "params": [{"key": "q", "value": "2"}]})
    model("missing", "POST", "/params", {})
    model("of none", "POST", "/params", {"model_id": none, "params": [{"key": "q", "value": "1"}]}, of=none)
    model("empty", "GET", "/artifacts/directories")
    for of, value in [("plain", 0.5), ("second", 0.25), ("plain", 0.75)]:
        post(p, "runs/log-metric", f"of model {of} {value}", run_id=run_id, key="acc", value=value, timestamp=1, step=int(value * 100), model_id=ids[of],
             dataset_name="d" if value > 0.5 else "", dataset_digest="1" if value > 0.5 else "")
    post(p, "runs/outputs", "one", run_id=run_id, models=[{"model_id": model_id, "step": 3}])
    post(p, "runs/outputs", "again", run_id=run_id, models=[{"model_id": model_id, "step": 4}])
    post(p, "runs/outputs", "nothing", run_id=run_id, models=[])
    post(p, "runs/outputs", "missing", run_id=run_id)
    post(p, "runs/outputs", "no run", run_id="0" * 32, models=[{"model_id": model_id, "step": 3}])
    post(p, "runs/outputs", "no model", run_id=run_id, models=[{"step": 3}])
    post(p, "runs/log-inputs", "a model", run_id=run_id, models=[{"model_id": ids["second"]}])
    get(p, "runs/get", "with models", run_id=run_id)
    model("with metrics", "GET")
    post(p, "registered-models/create", "of a logged model", name="from logged")
    post(p, "model-versions/create", "of a logged model", name="from logged", source=f"models:/{model_id}", model_id=model_id)
    get(p, "model-versions/get-download-uri", "of a logged model", name="from logged", version="1")
    get(p, "model-versions/get", "of a logged model", name="from logged", version="1")
    model("registered", "GET")

    def search(name: str, /, **body: Any) -> dict:
        found = post(p, "logged-models/search", name, **({"experiment_ids": [one]} | body))
        exchange = p.exchanges[-1]
        if exchange["status"] == 200:
            names = [each["info"]["name"] if not each["info"]["name"].startswith("m-") else "m-" for each in exchange["body"].get("models", [])]
            exchange["body"] = {"models": names} | ({"next_page_token": "x"} if "next_page_token" in exchange["body"] else {})
        return found

    by_name = [{"field_name": "name", "ascending": True}]
    for filter in ["name = 'alpha'", "name != 'alpha'", "name LIKE '%a'", "name ILIKE 'GAMM%'", "name IN ('alpha', 'beta')", "name NOT IN ('alpha')",
                   "status = 'READY'", "status = 'PENDING'", "status = 'LOGGED_MODEL_READY'", "status != 'READY'", "model_type = 'kind'", "params.p = '1'", "params.p LIKE '%'", "params.p != '1'",
                   "tags.t = '1'", "tags.`t` = '2'", "tags.t IS NULL", "metrics.acc > 0.4", "metrics.acc >= 0.25", "metrics.acc = 0.25", "metrics.acc < 0.1",
                   "metrics.acc LIKE 'x'", f"model_id = '{model_id}'", f"source_run_id = '{run_id}'", "creation_timestamp > 0", "last_updated_timestamp > 0",
                   "creation_time > 0", "nope = 'x'", "nope.x = 'y'", "name > 'a'", "name = 3", "name = 'alpha' AND params.p = '1'",
                   "name = 'alpha' OR name = 'beta'", "name", "", "attributes.name = 'alpha'", "params.p = 1", "metrics.acc = '1'", "experiment_id = '1'"]:
        search(f"filter {filter}", filter=filter, order_by=by_name)
    for order in [by_name, [{"field_name": "name", "ascending": False}], [{"field_name": "name"}], [{"field_name": "metrics.acc"}],
                  [{"field_name": "metrics.acc", "ascending": False}], [{"field_name": "metrics.acc", "dataset_name": "d", "dataset_digest": "1"}],
                  [{"field_name": "creation_timestamp", "ascending": True}, {"field_name": "name"}], [{"field_name": "last_updated_timestamp", "ascending": False}],
                  [{"field_name": "nope"}], [{"field_name": "params.p"}], [{}], [{"field_name": "model_type"}, *by_name], ["name"]]:
        search(f"order {order}", order_by=order)
    search("a dataset", datasets=[{"dataset_name": "d", "dataset_digest": "1"}], order_by=by_name)
    search("a dataset and a metric", datasets=[{"dataset_name": "d"}], filter="metrics.acc > 0.6", order_by=by_name)
    search("another dataset and a metric", datasets=[{"dataset_name": "e"}], filter="metrics.acc > 0.1", order_by=by_name)
    search("no dataset name", datasets=[{}])
    search("no experiments", experiment_ids=[])
    search("experiments missing", experiment_ids=None)
    search("an unknown experiment", experiment_ids=["424242"])
    token, page = "", 0
    while page == 0 or token:
        token = search(f"page {page}", order_by=by_name, max_results=2, **({"page_token": token} if token else {})).get("next_page_token", "")
        page += 1
    for n in [0, 50, "x"]:
        search(f"max_results {n!r}", max_results=n, order_by=by_name)
    search("a bad token", page_token="nope")
    model("once", "DELETE")
    model("twice", "DELETE")
    model("deleted", "GET")
    search("after a deletion", order_by=by_name)
    model("status of a deleted one", "PATCH", body={"model_id": model_id, "status": "LOGGED_MODEL_READY"})


def artifacts(p) -> None:
    one = experiment(p, "for artifacts")
    run_id = run(p, one, "has artifacts")
    root = "/api/2.0/mlflow-artifacts/artifacts"
    base = f"{root}/{one}/{run_id}/artifacts"

    def put(name: str, path: str, data: bytes) -> None:
        p.call(f"artifacts PUT: {name}", "PUT", f"{base}/{path}", data=data)

    put("a file", "a.txt", b"hello")
    put("a file below", "sub/b ü.txt", b"b")
    put("an empty file", "empty", b"")
    put("over a file", "a.txt", b"hello again")
    get(p, "artifacts/list", "root", run_id=run_id)
    get(p, "artifacts/list", "a folder", run_id=run_id, path="sub")
    get(p, "artifacts/list", "no folder", run_id=run_id, path="nope")
    get(p, "artifacts/list", "a file", run_id=run_id, path="a.txt")
    get(p, "artifacts/list", "up", run_id=run_id, path="../..")
    get(p, "artifacts/list", "absolute", run_id=run_id, path="/etc")
    get(p, "artifacts/list", "no run", run_id="0" * 32)
    get(p, root, "root of a run", path=f"{one}/{run_id}/artifacts")
    get(p, root, "nothing there", path="nope/nope")
    get(p, root, "up", path="../x")
    p.call("artifacts GET: a file", "GET", f"{base}/a.txt")
    p.call("artifacts GET: none", "GET", f"{base}/none.txt")
    p.call("artifacts GET: a folder", "GET", f"{base}/sub")
    p.call("artifacts DELETE: a file", "DELETE", f"{base}/a.txt")
    p.call("artifacts DELETE: twice", "DELETE", f"{base}/a.txt")
    get(p, "artifacts/list", "after the deletion", run_id=run_id)


def clients(p) -> None:
    """The real client does what teams do with it."""
    mlflow.set_tracking_uri(p.uri)
    mlflow.set_registry_uri(p.uri)
    client = MlflowClient(p.uri)
    p.step("client: experiment")
    one = client.create_experiment("by a client", tags={"a": "b"})
    client.set_experiment_tag(one, "c", "d")
    client.get_experiment_by_name("nobody")
    client.rename_experiment(one, "by the client")
    p.step("client: run")
    made = client.create_run(one, start_time=5, run_name="by a client", tags={"x": "y"})
    run_id = made.info.run_id
    client.log_param(run_id, "lr", 0.1)
    client.log_metric(run_id, "loss", 0.5, timestamp=6, step=1)
    client.log_batch(run_id, [Metric("loss", 0.25, 7, 2), Metric("nan", float("nan"), 7, 2)], [Param("p", "q")], [RunTag("t", "u")])
    client.get_metric_history(run_id, "loss")
    client.log_inputs(run_id, [DatasetInput(Dataset("d", "1", "local", "/x"), [InputTag("mlflow.data.context", "train")])])
    client.set_terminated(run_id, "FINISHED", end_time=9)
    client.get_run(run_id)
    p.step("client: search")
    client.search_runs([one], "metrics.loss < 1 AND tags.x = 'y'", ViewType.ALL, order_by=["metrics.loss DESC"])
    client.search_experiments(filter_string="name LIKE 'by the%'", order_by=["name"])
    p.step("client: artifacts")
    client.log_text(run_id, "text", "a/b.txt")
    client.log_dict(run_id, {"a": 1}, "d.json")
    client.list_artifacts(run_id)
    client.list_artifacts(run_id, "a")
    p.step("client: registry")
    client.create_registered_model("of a client", {"a": "b"}, "text")
    client.create_model_version("of a client", "s3://x/y", run_id, {"c": "d"}, description="v1")
    client.set_registered_model_alias("of a client", "champion", "1")
    client.get_model_version_by_alias("of a client", "champion")
    client.transition_model_version_stage("of a client", "1", "Staging")
    client.search_model_versions("name = 'of a client'")
    client.search_registered_models("name = 'of a client'")
    client.update_model_version("of a client", "1", "text")
    client.delete_registered_model_alias("of a client", "champion")
    client.delete_model_version("of a client", "1")
    client.rename_registered_model("of a client", "of the client")
    client.delete_registered_model("of the client")
    p.step("client: errors")
    for call in [
        lambda: client.get_run("0" * 32),
        lambda: client.log_param(run_id, "lr", 0.2),
        lambda: client.create_experiment("by the client"),
        lambda: client.get_registered_model("nobody"),
        lambda: client.search_runs([one], "nonsense ="),
    ]:
        try:
            call()
        except MlflowException:
            continue
        raise AssertionError("an error was expected")
    p.step("client: logged model")
    logged = client.create_logged_model(one, "made", run_id, {"t": "1"}, {"p": "1"}, "kind")
    client.finalize_logged_model(logged.model_id, "READY")
    client.set_logged_model_tags(logged.model_id, {"u": "2"})
    client.delete_logged_model_tag(logged.model_id, "u")
    client.search_logged_models([one])
    p.step("client: prompts")
    client.register_prompt("a-prompt", "Say {{what}}", commit_message="first", tags={"k": "v"})
    client.register_prompt("a-prompt", "Say {{what}} now")
    client.get_prompt("a-prompt")
    client.get_prompt_version("a-prompt", 1)
    client.load_prompt("prompts:/a-prompt/2")
    client.set_prompt_alias("a-prompt", "live", 1)
    client.load_prompt("prompts:/a-prompt@live")
    client.search_prompts()
    client.search_prompt_versions("a-prompt")
    client.set_prompt_version_tag("a-prompt", 1, "q", "r")
    client.delete_prompt_alias("a-prompt", "live")
    p.step("client: deletions")
    client.delete_tag(run_id, "x")
    client.delete_run(run_id)
    client.restore_run(run_id)
    client.delete_experiment(one)
    client.restore_experiment(one)


"""Routes and what a good call sends; each parameter is then left out, emptied and given another type."""
ROUTES = {
    "POST experiments/create": {"name": "never made", "artifact_location": "s3://x", "tags": [{"key": "a", "value": "b"}]},
    "GET experiments/get": {"experiment_id": "0"},
    "GET experiments/get-by-name": {"experiment_name": "Default"},
    "POST experiments/update": {"experiment_id": "0", "new_name": "Default"},
    "POST experiments/delete": {"experiment_id": "424242"},
    "POST experiments/restore": {"experiment_id": "424242"},
    "POST experiments/set-experiment-tag": {"experiment_id": "0", "key": "k", "value": "v"},
    "POST experiments/delete-experiment-tag": {"experiment_id": "0", "key": "k"},
    "POST runs/create": {"experiment_id": "0", "user_id": "me", "run_name": "n", "start_time": 1, "tags": []},
    "GET runs/get": {"run_id": "$run"},
    "POST runs/update": {"run_id": "$run", "status": "RUNNING", "end_time": 1, "run_name": "n"},
    "POST runs/delete": {"run_id": "0" * 32},
    "POST runs/restore": {"run_id": "0" * 32},
    "POST runs/log-metric": {"run_id": "$run", "key": "k", "value": 1, "timestamp": 1, "step": 1},
    "POST runs/log-parameter": {"run_id": "$run", "key": "k", "value": "v"},
    "POST runs/set-tag": {"run_id": "$run", "key": "k", "value": "v"},
    "POST runs/delete-tag": {"run_id": "$run", "key": "k"},
    "POST runs/log-batch": {"run_id": "$run", "metrics": [], "params": [], "tags": []},
    "POST runs/log-inputs": {"run_id": "$run", "datasets": [], "models": []},
    "POST runs/outputs": {"run_id": "$run", "models": []},
    "POST runs/log-model": {"run_id": "$run", "model_json": "{}"},
    "GET metrics/get-history": {"run_id": "$run", "metric_key": "k"},
    "GET artifacts/list": {"run_id": "$run"},
    "POST registered-models/create": {"name": "battery", "description": "d", "tags": []},
    "GET registered-models/get": {"name": "battery"},
    "PATCH registered-models/update": {"name": "battery", "description": "d"},
    "POST registered-models/rename": {"name": "battery", "new_name": "battery"},
    "DELETE registered-models/delete": {"name": "nobody"},
    "POST registered-models/set-tag": {"name": "battery", "key": "k", "value": "v"},
    "DELETE registered-models/delete-tag": {"name": "battery", "key": "k"},
    "POST registered-models/get-latest-versions": {"name": "battery", "stages": []},
    "POST model-versions/create": {"name": "battery", "source": "s3://bucket/x", "run_id": "$run", "tags": [], "description": "d", "run_link": ""},
    "GET model-versions/get": {"name": "battery", "version": "1"},
    "PATCH model-versions/update": {"name": "battery", "version": "1", "description": "d"},
    "POST model-versions/transition-stage": {"name": "battery", "version": "1", "stage": "None", "archive_existing_versions": False},
    "POST model-versions/set-tag": {"name": "battery", "version": "1", "key": "k", "value": "v"},
    "DELETE model-versions/delete-tag": {"name": "battery", "version": "1", "key": "k"},
    "DELETE model-versions/delete": {"name": "battery", "version": "99"},
    "GET model-versions/get-download-uri": {"name": "battery", "version": "1"},
    "POST registered-models/alias": {"name": "battery", "alias": "a", "version": "1"},
    "GET registered-models/alias": {"name": "battery", "alias": "a"},
    "DELETE registered-models/alias": {"name": "battery", "alias": "none"},
    "POST logged-models": {"experiment_id": "0", "name": "n", "model_type": "t", "source_run_id": "$run", "params": [], "tags": []},
}


def wrong_parameters(p) -> None:
    run_id = run(p, "0", "battery")
    for route, good in ROUTES.items():
        method, path = route.split(" ")
        good = {key: run_id if value == "$run" else value for key, value in good.items()}
        send = (lambda name, args: p.call(name, method, path, query=args)) if method == "GET" else (lambda name, args: p.call(name, method, path, args))
        send(f"{route}: good", good)
        send(f"{route}: nothing", {})
        for key, value in good.items():
            send(f"{route}: without {key}", {k: v for k, v in good.items() if k != key})
            send(f"{route}: {key} empty", good | {key: ""})
            if method != "GET":
                send(f"{route}: {key} of another type", good | {key: "x" if not isinstance(value, str) else 7})


def odd_requests(p) -> None:
    odd = {"data": b"{", "headers": {"content-type": "application/json"}}
    p.call("odd: half a body", "POST", "/api/2.0/mlflow/experiments/create", **odd)
    p.call("odd: no body", "POST", "/api/2.0/mlflow/experiments/create")
    p.call("odd: a list", "POST", "/api/2.0/mlflow/experiments/search", [1])
    p.call("odd: null", "POST", "/api/2.0/mlflow/experiments/create", data=b"null", headers={"content-type": "application/json"})
    p.call("odd: a number", "POST", "/api/2.0/mlflow/experiments/create", data=b"3", headers={"content-type": "application/json"})
    p.call("odd: encoded twice", "POST", "/api/2.0/mlflow/experiments/create", data=json.dumps(json.dumps({"name": "twice encoded"})),
           headers={"content-type": "application/json"})
    p.call("odd: another type of content", "POST", "/api/2.0/mlflow/experiments/create", data=b'{"name": "typed"}', headers={"content-type": "text/plain"})
    p.call("odd: with a charset", "POST", "/api/2.0/mlflow/experiments/create", data=b'{"name": "charset"}',
           headers={"content-type": "application/json; charset=utf-8"})
    p.call("odd: no type of content", "POST", "/api/2.0/mlflow/experiments/create", data=b'{"name": "untyped"}')
    p.call("odd: camel case", "POST", "/api/2.0/mlflow/experiments/create", {"name": "camel", "artifactLocation": "s3://camel"})
    p.call("odd: both cases", "POST", "/api/2.0/mlflow/experiments/create", {"name": "both", "artifactLocation": "s3://a", "artifact_location": "s3://b"})
    p.call("odd: camel case id", "POST", "/api/2.0/mlflow/experiments/update", {"experimentId": "0", "newName": "Default"})
    p.call("odd: not UTF-8", "POST", "/api/2.0/mlflow/experiments/create", data=b'{"name": "\xff"}', headers={"content-type": "application/json"})
    p.call("odd: a name twice", "POST", "/api/2.0/mlflow/experiments/create", data=b'{"name": "one", "name": "two"}', headers={"content-type": "application/json"})
    p.call("odd: a lone surrogate", "POST", "/api/2.0/mlflow/experiments/create", data=b'{"name": "\\ud800"}', headers={"content-type": "application/json"})
    p.call("odd: GET of a POST route", "GET", "/api/2.0/mlflow/experiments/create")
    p.call("odd: no such route", "GET", "/api/2.0/mlflow/nothing")
    p.call("odd: ajax", "GET", "/ajax-api/2.0/mlflow/experiments/get", query={"experiment_id": "0"})
    p.call("odd: twice in the query", "GET", "/api/2.0/mlflow/experiments/get", query=[("experiment_id", "0"), ("experiment_id", "1")])
    p.call("health", "GET", "/health")
    p.call("version", "GET", "/version")
    p.call("server-info", "GET", "/api/3.0/mlflow/server-info")
    p.call("workspaces", "GET", "/api/3.0/mlflow/workspaces")
    p.call("workspaces: create", "POST", "/api/3.0/mlflow/workspaces", {"name": "w"})
    p.call("workspaces: get", "GET", "/api/3.0/mlflow/workspaces/default")


def transfers(p) -> None:
    """What is on the server's own disk has no addresses to sign: the client then sends the file in one request."""
    one, path = "/api/2.0/mlflow-artifacts/mpu/{}/0/of a run/artifacts", "/api/2.0/mlflow-artifacts/presigned/0/of a run/artifacts/a"
    part = {"part_number": 1, "etag": "x", "url": "y"}
    p.call("mpu/create", "POST", one.format("create"), body={"path": "/tmp/big.bin", "num_parts": 2})
    p.call("mpu/create: nothing", "POST", one.format("create"), body={})
    p.call("mpu/complete", "POST", one.format("complete"), body={"path": "big.bin", "upload_id": "1", "parts": [part]})
    p.call("mpu/abort", "POST", one.format("abort"), body={"path": "big.bin", "upload_id": "1"})
    p.call("presigned", "GET", path)
