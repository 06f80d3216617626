"""The `highroad` command as fixtures: import them where they are used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def highroad_bin() -> Path:
    path = Path(os.environ.get("HIGHROAD_BIN", ROOT / "target" / "debug" / "highroad"))
    if not path.is_file():
        pytest.fail(f"{path} is not built: run `cargo build --bin highroad`")
    return path


def environment(cwd, home=None) -> dict[str, str]:
    """Of a command with a home of its own, away from every configured tracking server (other tests leave theirs in the process)."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "HIGHROAD_TRACKING_URI")}
    return kept | {"HIGHROAD_HOME": str(home or Path(cwd) / ".highroad"), "HIGHROAD_PYTHON": sys.executable}


@pytest.fixture(scope="session")
def call(highroad_bin):
    """Runs ``highroad ARGS`` in ``cwd``, in its `environment`."""

    def run(*args, cwd, home=None, code=0, **variables):
        command = [highroad_bin, *map(str, args)]
        done = subprocess.run(command, cwd=cwd, env=environment(cwd, home) | variables, capture_output=True, text=True, timeout=600)
        assert code is None or done.returncode == code, f"{args} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def pack_again(call, source, out, cwd):
    """Packs a package source for another owner: the same model under another digest, as no gate compares a package with itself."""
    copy = shutil.copytree(source, Path(cwd) / f"{out}.source")
    described = (copy / "package.toml").read_text()
    (copy / "package.toml").write_text(re.sub(r'(?m)^owner = "(.*)"$', r'owner = "\1, again"', described))
    call("pack", copy, "-o", out, cwd=cwd)


def bless(call, golden, cwd, **options):
    """Answers for a test's golden set, which gates refuse otherwise."""
    call("golden", "bless", golden, "--by", "tests", "--why", "made for this test", cwd=cwd, **options)
