"""The golden cases: all 1,225 pairs of 50 newspaper texts, and how similar people found them."""

import itertools
from collections.abc import Iterator

import data


def cases() -> Iterator[dict]:
    texts, similar = data.texts("lee.cor"), data.similarities()
    for i, j in itertools.combinations(range(len(texts)), 2):
        yield {
            "id": f"lee-{i:02}-{j:02}",
            "input": {"a": texts[i], "b": texts[j]},
            "expected": similar[i][j],
            "slices": ["similar" if similar[i][j] >= 0.5 else "unrelated"],
        }
