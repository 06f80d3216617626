"""The golden cases: each person's history, and the film that was seen next."""

from collections.abc import Iterator

import data


def cases() -> Iterator[dict]:
    films = data.histories()[0]
    for i, (history, film) in enumerate(data.split("test")):
        text = " ".join(films[seen] for seen in history)
        yield {"id": f"person-{i:03}", "input": {"text": text}, "expected": films[film], "slices": []}
