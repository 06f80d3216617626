"""A golden set in shards, answered by tasks of a Ray cluster.

`highroad eval --ray` starts this module. Each task runs the same `highroad eval --shard` on the same bytes: binary, package and golden
set go through Ray's object store, once to each machine. The files it leaves are joined by `highroad` itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ray

Files = dict[str, bytes]


def files_of(path: Path) -> Files:
    """A file's bytes, or those of all files of a folder, by relative name."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def answer(shard: str, binary: Files, package: Files, golden: Files, options: list[str]) -> bytes:
    """The file of one shard. Errors hold what `highroad` said."""
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder), Path(folder) / "shard.json"
        (program,) = (write(place / "binary", binary) / name for name in binary)
        program.chmod(0o700)
        (cases,) = (write(place / "golden", golden) / name for name in golden)
        given = [write(place / "package", package), "--golden", cases, "--shard", shard, "--out", out]
        environment = os.environ | {"HIGHROAD_HOME": str(place / "home")}
        done = subprocess.run([program, "eval", *given, *options], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"shard {shard}: {done.stderr.strip()}")
        return out.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m highroad._ray_eval", description=__doc__)
    parser.add_argument("--address", required=True, help="of the cluster; `auto` for the one this machine belongs to")
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files of the shards")
    parser.add_argument("--threads", type=int, default=1, help="of each task, which reserves as many CPUs")
    told = parser.parse_args()

    ray.init(address=told.address, log_to_driver=False)
    task = ray.remote(num_cpus=told.threads, max_retries=2)(answer)
    given = [ray.put(files_of(path)) for path in (told.binary, told.package, told.golden)]
    options = ["--threads", str(told.threads)]
    waiting = {
        task.remote(f"{number}/{told.shards}", *given, options): number
        for number in range(1, told.shards + 1)
    }
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done)
            (told.out / f"{number}.json").write_bytes(ray.get(done))
            print(f"shard {number} of {told.shards} is answered", file=sys.stderr, flush=True)
    except ray.exceptions.RayTaskError as error:
        print(f"error: {error.cause}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
