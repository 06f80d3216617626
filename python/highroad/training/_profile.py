"""Where a step's time goes: `highroad profile-train` runs the script with `--profile N` and shows what this measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from ._job import Job

# Steps before measuring: allocations, autotuning and torch.compile happen in them.
N_WARM_UP = 3
_COMMUNICATION = ("gloo:", "nccl:", "c10d::", "record_param_comms")


class Parts:
    """Names the parts of a step: ``with parts("forward"): …``. Costs nothing unless the run is profiled.

    A step is from its first part to ``end_step``; what the loop does besides (validation, checkpoints, getting the next batch) is
    told by itself. After ``options.profile`` steps ``end_step`` writes ``output/profile.json`` and ``output/trace.json`` (Chrome's
    trace format, one file for each process but the first) and ends the run. A training that ends before reports the steps it had.
    """

    def __init__(self, options: argparse.Namespace, job: Job) -> None:
        self._n_steps, self._job, self._output = options.profile, job, Path(options.output)
        self._compiled = options.compile
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._steps: list[float] = []
        self._between: list[float] = []
        self._started = self._step_ended = time.perf_counter()
        self._step_started: float | None = None
        self._is_measuring = False
        self._profiler = torch.profiler.profile(acc_events=True) if self._n_steps else None
        # A profiler that still measures when the interpreter ends takes the process down with it.
        job.at_end(self._finish)

    def __call__(self, name: str) -> contextlib.AbstractContextManager:
        return self._measured(name) if self._n_steps else contextlib.nullcontext()

    def end_step(self) -> None:
        if not self._n_steps:
            return
        now = time.perf_counter()
        # A loop that names no parts has nothing between its steps.
        self._steps.append(now - (self._step_started or self._step_ended))
        if len(self._steps) == N_WARM_UP:
            self._warm_up_s = now - self._started
            self._seconds.clear()
            self._between.clear()
            self._profiler.start()
            self._is_measuring = True
        if len(self._steps) == N_WARM_UP + self._n_steps:
            self._finish()
            raise SystemExit(0)
        self._step_ended, self._step_started = time.perf_counter(), None

    def _finish(self) -> None:
        if not self._is_measuring:
            return
        self._is_measuring = False
        self._profiler.stop()
        if len(self._steps) > N_WARM_UP:
            self._report()

    @contextlib.contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        if self._step_started is None:
            self._step_started = started
            self._between.append(started - self._step_ended)
        with torch.profiler.record_function(name):
            yield
            # An accelerator works on while Python goes on; waiting puts the time where it belongs.
            if self._job.device.type == "cuda":
                torch.cuda.synchronize()
        self._seconds[name].append(time.perf_counter() - started)

    def _report(self) -> None:
        rank = self._job.rank
        self._profiler.export_chrome_trace(str(self._output / (f"trace-{rank}.json" if rank else "trace.json")))
        if not self._job.leads:
            return
        steps = self._steps[N_WARM_UP:]
        total = sum(steps)
        parts = {name: sum(seconds) for name, seconds in self._seconds.items()}
        parts["other"] = max(0.0, total - sum(parts.values()))
        report = {
            "n_steps": len(steps),
            "n_processes": self._job.world,
            "device": str(self._job.device),
            "compiled": self._compiled,
            "warm_up_s": self._warm_up_s,
            "step_ms": statistics.median(steps) * 1e3,
            # The parts are means too, and add up to it.
            "step_mean_ms": total / len(steps) * 1e3,
            "parts": [
                {"part": name, "ms": seconds / len(steps) * 1e3, "share": seconds / total} for name, seconds in parts.items()
            ],
            "between_ms": sum(self._between[: len(steps)]) / len(steps) * 1e3,
            # Within the backward pass and beside it, so it is no part of its own.
            "communication_ms": self._communication_s() / len(steps) * 1e3,
        }
        (self._output / "profile.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def _communication_s(self) -> float:
        events = [event for event in self._profiler.key_averages() if event.key.startswith(_COMMUNICATION)]
        device = sum(event.self_device_time_total for event in events)
        return (device or sum(event.self_cpu_time_total for event in events)) / 1e6
