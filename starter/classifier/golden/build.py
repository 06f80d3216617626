"""Build the golden set: the test split as named cases in slices, and the must-pass cases of this repo.

`python golden/build.py` writes golden/test.jsonl. Its digest is part of every verdict, so the same data must give the
same bytes: cases keep the order of the split, keys keep theirs.
"""

import json
import sys
import unicodedata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import data  # noqa: E402

# Words that injections and honest questions about security and language models share.
TRIGGERS = ("ignore", "instruction", "prompt", "system", "hidden", "bypass", "jailbreak", "reveal", "rules", "guideline")


def main() -> None:
    own = (HERE / "must_pass.jsonl").read_text(encoding="utf-8").splitlines()
    test = [
        json.dumps(case(f"s-labs-test-{i:04}", text, label), ensure_ascii=False)
        for i, (text, label) in enumerate(data.split("test"))
    ]
    path = HERE / "test.jsonl"
    path.write_text("\n".join(own + test) + "\n", encoding="utf-8")
    print(f"{path}: {len(own)} must-pass cases and {len(test)} of the test split", file=sys.stderr)


def case(name: str, text: str, label: int) -> dict:
    return {
        "id": name,
        "input": {"text": text},
        "expected": data.LABELS[label],
        "slices": ["source:s-labs", length(text), script(text), words(text)],
        "must_pass": False,
    }


def length(text: str) -> str:
    n_words = len(text.split())
    return "length:short" if n_words <= 5 else "length:medium" if n_words <= 10 else "length:long"


def script(text: str) -> str:
    letters = [c for c in text if c.isalpha()]
    latin = all(unicodedata.name(c, "").startswith("LATIN") for c in letters)
    return "script:latin" if letters and latin else "script:other"


def words(text: str) -> str:
    return "words:trigger" if any(word in text.lower() for word in TRIGGERS) else "words:plain"


if __name__ == "__main__":
    main()
