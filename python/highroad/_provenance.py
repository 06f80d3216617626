"""Where a package comes from: run, commit, environment and data, as far as this process can tell."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def file_digest(path: str | os.PathLike[str]) -> str:
    """``sha256:…`` of a file's bytes."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return f"sha256:{hasher.hexdigest()}"


def data_digests(data: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """The digest of each named file; values that are digests already stay as they are."""
    return {
        name: str(value) if _DIGEST.fullmatch(str(value)) else file_digest(value)
        for name, value in sorted(data.items())
    }


def git_commit(directory: str | os.PathLike[str] = ".") -> str | None:
    """Commit of the training run if ``highroad export`` says it, else what ``directory`` has checked out.

    ``-dirty`` is appended if tracked files changed; ``None`` outside git.
    """
    if trained := os.environ.get("HIGHROAD_GIT_COMMIT"):
        return trained
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    dirty = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if dirty else commit


def run_id() -> str | None:
    """The tracked run this process belongs to, as ``highroad train`` and ``highroad export`` pass it on."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def _git(directory: str | os.PathLike[str], *args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", os.fspath(directory), *args], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
