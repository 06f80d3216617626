"""Build the golden set: the cases of golden/cases.py and the must-pass cases of this repo.

`python golden/build.py` writes golden/test.jsonl. Its digest is part of every verdict, so the same data must give the
same bytes: cases keep their order, keys keep theirs.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.chdir(HERE.parent)
sys.path.insert(0, os.getcwd())

from cases import cases  # noqa: E402


def main() -> None:
    own = (HERE / "must_pass.jsonl").read_text(encoding="utf-8").splitlines()
    test = [json.dumps(case | {"must_pass": False}, ensure_ascii=False) for case in cases()]
    path = HERE / "test.jsonl"
    path.write_text("\n".join(own + test) + "\n", encoding="utf-8")
    print(f"{path}: {len(own)} must-pass cases and {len(test)} of the test split", file=sys.stderr)


if __name__ == "__main__":
    main()
