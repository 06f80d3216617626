"""What `highroad profile-train` runs: `python -m highroad.training.profile_train [--steps N] [--compile] [-- ARGS]`.

Starts the repo's training script under torchrun with `--profile`, reads the report it leaves and prints it as a table, or as JSON
with `--json`. With `--compile` the same steps run a second time through torch.compile, and the answer says whether it pays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--script", type=Path, default=Path("train.py"))
    parser.add_argument("--steps", type=int, default=20, help="steps to measure, after three to warm up")
    parser.add_argument("--nproc", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=Path("runs/profile"), help="where the trace goes")
    parser.add_argument("--compile", action="store_true", help="measure whether torch.compile pays")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("rest", nargs="*", metavar="ARGS", help="options of the script, after `--`")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    report = measure(options, options.output)
    if options.compile:
        with tempfile.TemporaryDirectory() as folder:
            compiled = measure(options, Path(folder), "--compile")
        report["compile"] = payoff(report, compiled)
    print(json.dumps(report, indent=1) if options.json else table(report, options.output))


def measure(options: argparse.Namespace, output: Path, *more: str) -> dict[str, Any]:
    """The report of a profiled run. Ends the process with the script's exit code if it fails."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.nproc)]
    script = [str(options.script), "--output", str(output), "--profile", str(options.steps), *more, *options.rest]
    # That of an earlier run is not this one's.
    (output / "profile.json").unlink(missing_ok=True)
    # The profiler's library would tell about graphics cards that are not there; 5 leaves nothing but what is fatal.
    quiet = {"KINETO_LOG_LEVEL": "5"} | os.environ
    done = subprocess.run([*launcher, *script], stdout=sys.stderr, env=quiet, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    try:
        report = json.loads((output / "profile.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"`{options.script}` ended before any step was measured: give it more data") from None
    if report["n_steps"] < options.steps:
        print(f"the training ended after {report['n_steps']} of {options.steps} steps; these are measured", file=sys.stderr)
    return report


def payoff(eager: dict[str, Any], compiled: dict[str, Any]) -> dict[str, float | None]:
    """What torch.compile wins a step, what it costs at the start, and after how many steps that is even (``None``: never)."""
    won_ms = eager["step_ms"] - compiled["step_ms"]
    cost_s = compiled["warm_up_s"] - eager["warm_up_s"]
    pays_after = max(0.0, cost_s) * 1e3 / won_ms if won_ms > 0 else None
    return {"step_ms": compiled["step_ms"], "won_ms": won_ms, "cost_s": cost_s, "pays_after_steps": pays_after}


def table(report: dict[str, Any], output: Path) -> str:
    lines = [
        f"{report['step_mean_ms']:.2f} ms a step, {report['n_processes']} process(es) on {report['device']}",
        f"means of {report['n_steps']} steps; half of them took at most {report['step_ms']:.2f} ms",
        "",
    ]
    for part in sorted(report["parts"], key=lambda part: -part["ms"]):
        lines.append(f"  {part['part']:14} {part['ms']:9.2f} ms {part['share']:7.1%}")
    lines.append(f"\nbetween steps (validation, checkpoints, the next batch): {report['between_ms']:.2f} ms a step")
    lines.append(f"communication, within the backward pass: {report['communication_ms']:.2f} ms a step")
    if gain := report.get("compile"):
        lines.append(verdict(gain))
    return "\n".join([*lines, f"trace, for chrome://tracing or ui.perfetto.dev: {output / 'trace.json'}"])


def verdict(gain: dict[str, float | None]) -> str:
    if gain["pays_after_steps"] is None:
        return f"torch.compile does not pay here: {gain['step_ms']:.1f} ms a step with it"
    steps = round(gain["pays_after_steps"])
    return f"torch.compile wins {gain['won_ms']:.1f} ms a step and costs {gain['cost_s']:.0f} s: it pays after {steps} steps"


if __name__ == "__main__":
    main()
