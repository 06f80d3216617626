"""A metric of your own as a Python function: ``gates.toml`` names it, ``highroad eval`` and ``gate`` call it.

``python -m highroad.metric FILE:FUNCTION`` reads one JSON object a line on stdin (``id``, ``input``, ``expected``,
``answer``, and ``slices`` and ``tags`` where the case has some), calls the function with each and writes ``id`` and what
it returned, a number.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path


def load(name: str) -> Callable[[dict], float]:
    """The function ``FUNCTION`` of ``FILE`` from ``FILE:FUNCTION``; modules beside the file can be imported by it.

    Raises ``ValueError`` if there is no such file or function.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file `{file}` in {Path.cwd()}")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"`{file}` has no function `{function}`")
    return found


def main() -> None:
    try:
        score = load(sys.argv[1])
    except ValueError as error:
        sys.exit(f"error: {error}")
    # What the function prints must not be taken for a value.
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        case = json.loads(line)
        try:
            value = float(score(case))
        except Exception as error:
            raise RuntimeError(f"the metric failed on case `{case['id']}`") from error
        out.write(json.dumps({"id": case["id"], "value": value}) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
