"""The golden cases: the first 1,000 test pictures, as bytes."""

from collections.abc import Iterator

import data

N_PICTURES = 1_000


def cases() -> Iterator[dict]:
    for i, (picture, label) in enumerate(data.split("test")[:N_PICTURES]):
        yield {
            "id": f"fashion-{i:04}",
            "input": {"tokens": picture.tolist()},
            "expected": data.LABELS[label],
            "slices": [f"label:{data.LABELS[label]}"],
        }
