"""`highroad track` answers what the real `mlflow server` answered: `conformance/mlflow_replay.py`, `make mlflow-answers`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import REPO, serving


def test_every_difference_from_mlflow_is_explained(highroad: Path, tmp_path: Path) -> None:
    # In a process of its own: the client keeps the experiment that another test chose, in its modules and its environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path)]
    with serving(command, tmp_path / "server.log") as uri:
        replay = [sys.executable, "-W", "ignore", str(REPO / "conformance" / "mlflow_replay.py"), "--uri", uri]
        done = subprocess.run(replay, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) > 1500, "the record is whole"
