"""Metrics of a run: on the screen, in a file beside the weights, and in the tracked run where there is one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._provenance import data_digests
from .._run import RUN_ID, URI, Run, run
from .._standard import standard
from ._data import fingerprint
from ._job import Job

# Tag: the options of the last start, as JSON.
OPTIONS_TAG = "highroad.options"
# What every MLflow server takes.
_MAX_TAG_CHARS = 5000


class Log:
    """Writes ``output/metrics.jsonl`` with every digit, prints what a person reads, and logs through ``highroad.run``.

    `highroad train` says where runs are tracked (``MLFLOW_TRACKING_URI``, a server); a bare `python train.py` keeps the file
    only. Of all processes the leading one logs, and no step waits for the server.
    """

    def __init__(self, options: argparse.Namespace, job: Job, last_step: int) -> None:
        self._options, self._job, self._last_step = options, job, last_step
        self._path = Path(options.output, "metrics.jsonl")
        self._is_tracked = job.leads and os.environ.get(URI, "").startswith(("http://", "https://"))
        self._tracked: Run | None = None

    @contextlib.contextmanager
    def run(
        self, step: int, run_id: str | None, files: Mapping[str, str | os.PathLike[str]], splits: Mapping[str, Sequence[Any]]
    ) -> Iterator[str | None]:
        """The run that metrics go to: the one `highroad train` opened, the resumed one (``run_id``), or a new one.

        ``files`` are what it is trained on, by the names their digests are recorded under; ``splits`` the examples made of
        them. What an interrupted run logged after ``step`` is cut.
        """
        if self._job.leads:
            self._cut(step)
        if not self._is_tracked:
            yield run_id
            return
        price = standard().get("tracking", {}).get("price_per_hour")
        with run(run_id=os.environ.get(RUN_ID) or run_id, price_per_hour=price) as self._tracked:
            if step == 0:
                self._tracked.log_params(vars(self._options))
            # A parameter is set once: what a resumed run was told instead is in a tag.
            options = json.dumps({name: str(value) for name, value in vars(self._options).items()})
            if len(options) <= _MAX_TAG_CHARS:
                self._tracked.set_tags({OPTIONS_TAG: options})
            digests = data_digests(files)
            self._tracked.set_tags({f"highroad.data.{name}": digest for name, digest in digests.items()})
            for name, examples in splits.items():
                self._tracked.log_input(fingerprint(examples, digests), name=name, context=name)
            yield self._tracked.run_id

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        if not self._job.leads or not metrics:
            return
        shown = " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
        # A reader that has left ends no training: the file has it all.
        with contextlib.suppress(BrokenPipeError):
            print(f"step {step}/{self._last_step} {shown}", flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._tracked:
            self._tracked.log(metrics, step=step)

    def _cut(self, step: int) -> None:
        """Keeps the lines up to ``step``; a last line that a dying process left unfinished goes too."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step] if step else []
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(self._path)
