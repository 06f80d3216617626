"""The golden cases: the test split, in slices."""

from collections.abc import Iterator

import data


def cases() -> Iterator[dict]:
    for i, (text, label) in enumerate(data.split("test")):
        topic = data.LABELS[label]
        yield {
            "id": f"reuters-test-{i:04}",
            "input": {"text": text},
            "expected": topic,
            "slices": [f"topic:{topic}", length(text)],
        }


def length(text: str) -> str:
    n_words = len(text.split())
    return "length:short" if n_words <= 40 else "length:medium" if n_words <= 120 else "length:long"
