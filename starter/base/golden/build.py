"""Build the golden set: the cases of golden/cases.py and the must-pass cases of this repo.

`python golden/build.py` writes golden/test.jsonl. Its digest is part of every verdict, so the same data must give the
same bytes: cases keep their order, keys keep theirs. A repo whose cases.py has `red_team` gets golden/red_team.jsonl
beside it: attacks from elsewhere, to be looked at with `highroad eval --golden golden/red_team.jsonl`.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.chdir(HERE.parent)
sys.path.insert(0, os.getcwd())

import cases  # noqa: E402


def main() -> None:
    own = (HERE / "must_pass.jsonl").read_text(encoding="utf-8").splitlines()
    test = lines(cases.cases())
    write("test.jsonl", own + test, f"{len(own)} must-pass cases and {len(test)} of golden/cases.py")
    if hasattr(cases, "red_team"):
        attacks = lines(cases.red_team())
        write("red_team.jsonl", attacks, f"{len(attacks)} cases of the red team")


def lines(cases: Iterable[dict]) -> list[str]:
    return [json.dumps(case | {"must_pass": False}, ensure_ascii=False) for case in cases]


def write(name: str, cases: list[str], what: str) -> None:
    path = HERE / name
    path.write_text("\n".join(cases) + "\n", encoding="utf-8")
    print(f"{path}: {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
