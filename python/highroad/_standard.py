"""The standard that holds in a repo, for the repo's own scripts."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

# What `highroad` commands tell the scripts they start.
_VARIABLE = "HIGHROAD_STANDARD"
_FILE = Path("highroad.toml")


def standard() -> dict[str, Any]:
    """What highroad.toml of the current directory declares, with what it extends.

    Under ``highroad train``, ``export`` and the like it is what the command has read, defaults included. A script that is started by
    hand reads the file itself, and asks ``highroad standard show`` where the file extends another. ``OSError`` if there is no
    highroad.toml, or it extends another file and there is no ``highroad`` command; ``CalledProcessError`` if that finds it invalid.
    """
    if told := os.environ.get(_VARIABLE):
        return json.loads(told)
    own = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    if "extends" not in own:
        return own
    shown = subprocess.run(["highroad", "standard", "show", "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(shown.stdout)["standard"]
