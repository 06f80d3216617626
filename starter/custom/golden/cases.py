"""The golden cases: the test split."""

from collections.abc import Iterator

import data


def cases() -> Iterator[dict]:
    for i, (row, label) in enumerate(data.split("test")):
        text = " ".join(data.WORDS[word] for word in row)
        yield {"id": f"phishing-{i:04}", "input": {"text": text}, "expected": data.LABELS[label], "slices": []}
