"""`highroad track` answers what the real `mlflow server` answered: `conformance/mlflow_replay.py`, `make mlflow-answers`."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import REPO, serving

sys.path.insert(0, str(REPO / "conformance"))

import mlflow_replay


def test_every_difference_from_mlflow_is_explained(highroad: Path, tmp_path: Path) -> None:
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path)]
    with serving(command, tmp_path / "server.log") as uri:
        ours = mlflow_replay.play(uri)
    theirs = mlflow_replay.recorded()
    left, unused = mlflow_replay.unexplained(mlflow_replay.differences(theirs, ours), mlflow_replay.explanations())
    assert not left, mlflow_replay.report(theirs, ours, left)
    assert not unused, f"explanations that explain nothing: {unused}"
    assert len(theirs) > 1500, "the record is whole"
