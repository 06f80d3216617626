"""The licence that each installed distribution declares, by normalised name."""

import json
import re
from importlib.metadata import distributions

LONGEST = 60


def licence(metadata):
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [text.split(" :: ")[-1] for text in metadata.get_all("Classifier") or [] if text.startswith("License :: ")]
    if classifiers:
        return ", ".join(sorted(classifiers))
    # Some hold the whole text of the licence here.
    text = (metadata.get("License") or "").strip().split("\n")[0]
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


found = {}
for distribution in distributions():
    name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
    # The first on the path is the one that is imported.
    found.setdefault(name, licence(distribution.metadata))
print(json.dumps(found))
