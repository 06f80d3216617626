import json
import os
import platform
import re
import runpy
from importlib.metadata import distributions
from importlib.util import find_spec


def torch_build():
    """Read from the file that says it: importing torch takes seconds."""
    spec = find_spec("torch")
    file = os.path.join(os.path.dirname(spec.origin), "version.py") if spec and spec.origin else ""
    if not os.path.isfile(file):
        return None
    build = runpy.run_path(file)
    keys = {"version": "__version__", "git_version": "git_version", "cuda": "cuda", "hip": "hip"}
    return {key: build.get(name) and str(build.get(name)) for key, name in keys.items()}


def name(distribution):
    return re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()


packages = {name(distribution): distribution.version for distribution in distributions()}
print(json.dumps({"python": platform.python_version(), "packages": packages, "torch": torch_build()}))
