"""What a serving process answers, held by schemathesis against its own OpenAPI document."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

CHECKS = "not_a_server_error,status_code_conformance,unsupported_method,content_type_conformance,response_schema_conformance"
# What hosts answer in is theirs, and the file's facts stand in a larger object.
OPEN = {"ChatCompletion", "Completion", "CompletionUsage", "FileStatus"}


def schemathesis(url: str, folder: Path, *options: str, document: dict | None = None, **parameters: str) -> subprocess.CompletedProcess:
    """A run against the server at `url` by its document, or by another one; `parameters` are parts of paths, so that routes are reached."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in parameters.items()]
    (folder / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines, ""]))
    told = [f"{url}/openapi.json"]
    if document is not None:
        (folder / "openapi.json").write_text(json.dumps(document))
        told = ["openapi.json", "--url", url]
    command = [Path(sys.executable).parent / "schemathesis", "run", *told, "--max-examples", "2", "--seed", "7", "--checks", CHECKS]
    command += ["--phases", "examples,coverage", "--continue-on-failure", "--no-color", "--suppress-health-check", "all", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def closed(document: dict) -> dict:
    """The document with answers that have no other keys than it names: clients must take others, and a test must not."""
    document = copy.deepcopy(document)
    schemas = document["components"]["schemas"]
    responses = [one["responses"] for path in document["paths"].values() for one in path.values()]
    reached: set[str] = set()
    waiting = names([responses, document["components"]["responses"]])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting |= names(schemas[name])
    for name in reached - OPEN:
        if "properties" in schemas[name] and "additionalProperties" not in schemas[name]:
            schemas[name]["unevaluatedProperties"] = False
    return document


def names(part: object) -> set[str]:
    """The schemas that `part` refers to."""
    if isinstance(part, list):
        return set().union(*map(names, part))
    if not isinstance(part, dict):
        return set()
    to = part.get("$ref")
    own = {to.rsplit("/", 1)[1]} if isinstance(to, str) and to.startswith("#/components/schemas/") else set()
    return own.union(*map(names, part.values()))
