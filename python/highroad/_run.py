"""``highroad.run``: a tracked run whose logging never waits for the server.

docs/reference/run-logger.md says what each call promises.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from . import _highroad

DEFAULT_URI = "http://127.0.0.1:5000"
DEFAULT_EXPERIMENT = "Default"
#: How long the end of a run waits for its server before it leaves the rest to ``highroad runs sync``.
PATIENCE_S = 30.0
#: MLflow's environment variables, read where no argument is given.
URI, RUN_ID, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"
JOURNAL = "HIGHROAD_JOURNAL"
#: What `highroad train` says of earlier starts of the run it opened: JSON with ``seconds`` and, where it was measured, ``joules``.
SPENT = "HIGHROAD_SPENT"
#: Tag: why a run failed.
ERROR_TAG = "highroad.error"
#: Longest text of :data:`ERROR_TAG`.
MAX_ERROR_CHARS = 2000
# Parts of the names of variables whose values are never recorded, and the length from which on a value is no common word.
_SECRETS, _LEAST_HIDDEN = ("KEY", "TOKEN", "SECRET", "PASSWORD"), 6


class UndeliveredWarning(UserWarning):
    """Something that was logged is on this disk and not yet, or never will be, at the server."""


class Run:
    """A run that is being tracked; made by :func:`run`."""

    def __init__(
        self, run_id: str, tracking_uri: str, journal: Path, *, owned: bool, system_metrics: float | None, price_per_hour: float | None
    ) -> None:
        self.run_id = run_id
        self.tracking_uri = tracking_uri
        self._owned = owned
        self._price = price_per_hour
        self._journal = journal
        self._pid = os.getpid()
        # A process that was started for the run has worked on it since it began to import.
        self._spent: dict[str, float] = {} if owned else json.loads(os.environ.get(SPENT) or "{}")
        self._began = time.monotonic() - (_age_s() if self._spent else 0.0)
        self._recorder: _highroad.Recorder | None = _highroad.Recorder.start(journal, tracking_uri, run_id, system_metrics)
        atexit.register(self.end, "FAILED")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        code = getattr(error, "code", None)
        if error is not None and (not isinstance(error, SystemExit) or isinstance(code, str)) and self._recorder is not None:
            self.set_tags({ERROR_TAG: _told(error)})
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit)) and getattr(error, "code", 1) not in (None, 0)
        self.end("KILLED" if stopped else "FAILED" if kind and kind is not SystemExit else "FINISHED")

    def log(self, metrics: Mapping[str, Any], *, step: int = 0, timestamp_ms: int | None = None) -> None:
        """Queues points and returns within microseconds. They are on the disk after :meth:`flush`."""
        points = [(key, _number(key, value)) for key, value in metrics.items()]
        self._here().log_metrics(points, _now_ms() if timestamp_ms is None else timestamp_ms, int(step))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Queues parameters; a parameter is set once."""
        self._here().log_params([(key, str(value)) for key, value in params.items()])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Queues tags; a tag may be set again."""
        self._here().set_tags([(key, str(value)) for key, value in tags.items()])

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Copies a file, or all files of a folder, into the journal; they are uploaded from there."""
        source = Path(path)
        files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
        for file in files:
            name = file.relative_to(source.parent).as_posix()
            self._here().log_artifact(file, f"{artifact_path.strip('/')}/{name}" if artifact_path else name)

    def log_input(self, fingerprint: Mapping[str, Any], *, name: str, context: str = "training") -> None:
        """Queues a data set as an input of the run: ``Loader.fingerprint()``, or any mapping with a ``digest``."""
        digest = str(fingerprint.get("digest") or hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest())
        files = [file["path"] for file in fingerprint.get("files", [])]
        dataset = {
            "name": name,
            "digest": digest.removeprefix("sha256:")[:36],
            "source_type": "local" if not any(file.startswith("s3://") for file in files) else "s3",
            "source": json.dumps({"files": fingerprint.get("files", []), "digest": digest}),
            "schema": json.dumps(fingerprint.get("schema", {})),
            "profile": json.dumps({key: fingerprint[key] for key in ("rows", "balance") if key in fingerprint}),
        }
        tags = [{"key": "mlflow.data.context", "value": context}]
        self._here().log_inputs(json.dumps([{"dataset": dataset, "tags": tags}]))

    def flush(self) -> None:
        """Returns when everything that was logged before is on the disk: from then on no kill or outage loses it."""
        self._here().flush()

    def end(self, status: str = "FINISHED", *, patience_s: float = PATIENCE_S) -> None:
        """Records duration, energy and cost, ends the run if this process started it, and delivers what is left.

        Waits at most ``patience_s`` for the server. Called by ``with`` and at exit; does nothing the second time.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is None or os.getpid() != self._pid:
            return
        atexit.unregister(self.end)
        seconds = time.monotonic() - self._began + self._spent.get("seconds", 0.0)
        tags = {"highroad.duration_seconds": f"{seconds:.3f}"}
        if (energy := recorder.energy_joules()) is not None:
            tags["highroad.energy_joules"] = f"{energy + self._spent.get('joules', 0.0):.1f}"
        if self._price is not None:
            tags["highroad.cost_estimate"] = f"{self._price * seconds / 3600:.6f}"
        recorder.set_tags(list(tags.items()))
        if self._owned:
            recorder.end(status, _now_ms())
        _, folder, n_refused, trouble = recorder.close(patience_s)
        if trouble:
            _warn(f"run {self.run_id} is not fully delivered: {trouble}; `highroad runs sync` delivers {folder}")
        if n_refused:
            _warn(f"the server refused {n_refused} entries of run {self.run_id}; see {folder / 'refused.jsonl'}")

    def _here(self) -> _highroad.Recorder:
        if os.getpid() != self._pid:
            raise RuntimeError("this run belongs to the parent process: call highroad.run() after the fork")
        if self._recorder is None:
            raise RuntimeError("the run has ended")
        return self._recorder


def run(
    experiment: str | None = None,
    *,
    name: str | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    tags: Mapping[str, Any] | None = None,
    system_metrics: float | None = 10.0,
    price_per_hour: float | None = None,
    journal: str | os.PathLike[str] | None = None,
) -> Run:
    """Starts a run, or goes on with the one that ``highroad train`` opened (``MLFLOW_RUN_ID``); use it with ``with``.

    ``system_metrics`` is the seconds between samples, ``None`` for none. Starting a new run needs the server; all that
    follows does not. Also delivers what earlier runs of this folder left behind.
    """
    uri = (tracking_uri or os.environ.get(URI) or DEFAULT_URI).rstrip("/")
    if not uri.startswith(("http://", "https://")):
        raise ValueError(f"the tracking URI is {uri!r}: highroad.run speaks to a server, http://… or https://…")
    root = Path(journal or os.environ.get(JOURNAL) or Path(".highroad") / "journal")
    joined = run_id or os.environ.get(RUN_ID)
    if joined is None:
        source = {"mlflow.user": _user(), "mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}
        all_tags = source | {key: str(value) for key, value in (tags or {}).items()}
        where = experiment or os.environ.get(EXPERIMENT) or DEFAULT_EXPERIMENT
        made = _highroad.create_run(uri, where, name, list(all_tags.items()), _now_ms())
        return Run(made, uri, root, owned=True, system_metrics=system_metrics, price_per_hour=price_per_hour)
    resumed = Run(joined, uri, root, owned=False, system_metrics=system_metrics, price_per_hour=price_per_hour)
    if tags:
        resumed.set_tags(tags)
    return resumed


def sync_runs(journal: str | os.PathLike[str] | None = None, *, patience_s: float = PATIENCE_S) -> list[dict[str, Any]]:
    """Delivers what killed processes and outages left in the journal folder; tells of each journal what became of it."""
    root = Path(journal or os.environ.get(JOURNAL) or Path(".highroad") / "journal")
    keys = ("run_id", "journal", "n_refused", "trouble")
    return [dict(zip(keys, outcome, strict=True)) for outcome in _highroad.sync_runs(root, patience_s)]


def end_abandoned() -> None:
    """Ends the run of this environment as killed: the command that opened it is gone, and nobody else will."""
    if not (run_id := os.environ.get(RUN_ID)) or not (uri := os.environ.get(URI)):
        return
    address = urlsplit(uri)
    if address.hostname in ("127.0.0.1", "localhost"):
        # A server inside the killed command has gone with it; the next one there ends the run.
        try:
            socket.create_connection((address.hostname, address.port or 80), timeout=1).close()
        except OSError:
            return
    root = Path(os.environ.get(JOURNAL) or Path(".highroad") / "journal")
    recorder = _highroad.Recorder.start(root, uri.rstrip("/"), run_id, None)
    recorder.set_tags([(ERROR_TAG, "the `highroad` command that started it was killed")])
    recorder.end("KILLED", _now_ms())
    recorder.close(PATIENCE_S)


def _told(error: BaseException) -> str:
    """Kind and text of an error, bounded, without the values of secret variables."""
    text = str(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}".removesuffix(": ")
    for name, value in os.environ.items():
        if len(value) >= _LEAST_HIDDEN and any(part in name.upper() for part in _SECRETS):
            text = text.replace(value, "***")
    return text[:MAX_ERROR_CHARS]


def _age_s() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _number(key: str, value: Any) -> float:
    """A Python number; a tensor or an array of one element gives its own."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metric {key!r} is {value!r}, which is no number") from error


def _warn(text: str) -> None:
    warnings.warn(text, UndeliveredWarning, stacklevel=4)


def _user() -> str:
    import getpass  # noqa: PLC0415  Needed once a run.

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _now_ms() -> int:
    return math.floor(time.time() * 1000)
