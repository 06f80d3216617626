"""The golden cases: the test split, in slices."""

import unicodedata
from collections.abc import Iterator

import data

# Words that injections and honest questions about security and language models share.
TRIGGERS = ("ignore", "instruction", "prompt", "system", "hidden", "bypass", "jailbreak", "reveal", "rules", "guideline")


def cases() -> Iterator[dict]:
    for i, (text, label) in enumerate(data.split("test")):
        yield {
            "id": f"s-labs-test-{i:04}",
            "input": {"text": text},
            "expected": data.LABELS[label],
            "slices": ["source:s-labs", length(text), script(text), words(text)],
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
