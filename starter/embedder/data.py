"""The data: newspaper texts of the Lee background corpus, as it ships with gensim, in halves.

Two halves of one text mean something similar, halves of different texts do not: that is all training is told. People's
similarity judgements of other texts of that newspaper are the golden set; nothing is trained on them. To train on your own
data, give ``halves`` pairs of texts that belong together.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

import encoder

N_VALIDATION = 50
_FOLDER = Path(find_spec("gensim").origin).parent / "test" / "test_data"

Pair = tuple[list[int], list[int]]


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {f"lee/{name}": _FOLDER / name for name in ("lee_background.cor", "lee.cor", "similarities0-1.txt")}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {"lee/lee_background.cor": "train", "lee/lee.cor": "test", "lee/similarities0-1.txt": "test"}


def examples(name: str, options) -> list[Pair]:
    """The token ids of both halves of each text of ``train`` or ``validation``."""
    pairs = halves()
    chosen = pairs[N_VALIDATION:] if name == "train" else pairs[:N_VALIDATION]
    firsts, seconds = ([pair[i] for pair in chosen] for i in (0, 1))
    return list(zip(encoder.token_ids(firsts), encoder.token_ids(seconds), strict=True))


def halves() -> list[tuple[str, str]]:
    """Each text's words in two halves. A text that is also a golden one is left out."""
    golden = set(texts("lee.cor"))
    words = [text.split() for text in texts("lee_background.cor") if text not in golden]
    return [(" ".join(text[: len(text) // 2]), " ".join(text[len(text) // 2 :])) for text in words if len(text) >= 20]


def texts(name: str) -> list[str]:
    return files()[f"lee/{name}"].read_text(encoding="latin-1").splitlines()


def similarities() -> list[list[float]]:
    """How similar people found texts ``i`` and ``j`` of lee.cor, from 0 to 1."""
    return [list(map(float, line.split())) for line in texts("similarities0-1.txt")]


def batches(examples: list[Pair], size: int, generator: torch.Generator) -> list[list[Pair]]:
    return encoder.by_length(examples, size, generator, length=lambda pair: len(pair[0]))


def collate(batch: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[2 * B, S]``: all first halves, then all second ones."""
    return encoder.padded([first for first, _ in batch] + [second for _, second in batch])
