"""The golden cases: beginnings of held-out summaries, and the character that comes next."""

from collections.abc import Iterator

import data


def cases() -> Iterator[dict]:
    for i, text in enumerate(data.texts("test")):
        for at in (40, 80, 120):
            if at < len(text) and text[at] in data.CHARACTERS:
                yield {
                    "id": f"summary-{i:03}-{at}",
                    "input": {"text": text[:at]},
                    "expected": data.LABELS[data.CHARACTERS.index(text[at])],
                    "slices": ["next:space" if text[at] == " " else "next:other"],
                }
