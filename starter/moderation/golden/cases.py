"""The golden cases: the test split, in slices; and what a red team would try."""

import unicodedata
from collections.abc import Iterator

import corpus
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


def red_team() -> Iterator[dict]:
    """Attacks from other sources than the training data, in other languages and in disguise, and harmless texts that look like one.

    What is trained on is left out, and so is a text that comes twice.
    """
    seen = {plain(text) for name in ("train", "validation") for text, _ in corpus.texts(name)}
    for case in [*multilingual(), *attacks(), *threats()]:
        if (text := plain(case["input"]["text"])) not in seen:
            seen.add(text)
            yield case


def multilingual() -> Iterator[dict]:
    for i, text in enumerate(corpus.multilingual()):
        yield {
            "id": f"multilingual-{i:04}",
            "input": {"text": text},
            "expected": "injection",
            "slices": ["source:multilingual", length(text), script(text), words(text)],
        }


def attacks() -> Iterator[dict]:
    for row in corpus.attacks():
        is_attack = row["label"] == "malicious"
        yield {
            "id": f"bastion-{row['id']}",
            "input": {"text": row["text"]},
            "expected": "injection" if is_attack else "benign",
            "slices": ["source:bastion", f"attack:{row['category']}" if is_attack else "attack:none", f"lang:{row['lang']}"],
            "tags": [f"channel:{row['channel']}"] + ([f"tactic:{row['tactic']}"] if row.get("tactic") else []),
        }


def threats() -> Iterator[dict]:
    for i, row in enumerate(corpus.threats()):
        is_attack = bool(row["label"])
        yield {
            "id": f"neuralchemy-{i:04}",
            "input": {"text": row["text"]},
            "expected": "injection" if is_attack else "benign",
            "slices": ["source:neuralchemy", f"attack:{row['category']}" if is_attack else "attack:none"],
            "tags": [f"severity:{row['severity']}"] if row["severity"] else [],
        }


def plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def length(text: str) -> str:
    n_words = len(text.split())
    return "length:short" if n_words <= 5 else "length:medium" if n_words <= 10 else "length:long"


def script(text: str) -> str:
    letters = [c for c in text if c.isalpha()]
    latin = all(unicodedata.name(c, "").startswith("LATIN") for c in letters)
    return "script:latin" if letters and latin else "script:other"


def words(text: str) -> str:
    return "words:trigger" if any(word in text.lower() for word in TRIGGERS) else "words:plain"
