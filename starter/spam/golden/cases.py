"""The golden cases: the test split, in slices."""

from collections.abc import Iterator

import corpus
import data


def cases() -> Iterator[dict]:
    folders = {mail.text: mail.folder for mail in corpus.mails("test")}
    for i, (text, label) in enumerate(data.split("test")):
        yield {
            "id": f"spam-assassin-test-{i:04}",
            "input": {"text": text},
            "expected": data.LABELS[label],
            "slices": [f"folder:{folders[text]}", length(text)],
        }


def length(text: str) -> str:
    n_words = len(text.split())
    return "length:short" if n_words <= 60 else "length:medium" if n_words <= 250 else "length:long"
