"""Tests see the repo as its scripts do: modules beside highroad.toml, which is read from the current directory."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.chdir(ROOT)
sys.path[:0] = [str(ROOT), str(ROOT / "golden")]
