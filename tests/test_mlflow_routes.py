"""Every route of the real MLflow server is served here or listed as not served, with the reason, and answers accordingly."""

from __future__ import annotations

import fnmatch
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from conftest import REPO

LISTED = json.loads((REPO / "conformance" / "mlflow_routes.json").read_text())
"""Where a route has a page of Highroad's own instead."""
ANSWERED_OTHERWISE = {"GET /", "GET /version", "GET /health"}


def same(path: str) -> str:
    """A path whatever its parameters are called."""
    return re.sub(r"\{\w+\}", "{}", path)


def routes_of_mlflow() -> Iterator[str]:
    """`METHOD PATH` of all that `mlflow server` answers; pages call most of `/api` under `/ajax-api` too."""
    from mlflow.server import app as flask_app
    from mlflow.server.fastapi_app import create_fastapi_app

    for rule in flask_app.url_map.iter_rules():
        path = re.sub(r"<(?:[a-z]+:)?([a-z_]+)>", r"{\1}", rule.rule)
        yield from (f"{method} {path}" for method in rule.methods - {"HEAD", "OPTIONS"})
    for included in create_fastapi_app(flask_app).routes:
        router = getattr(included, "original_router", included)
        prefix = getattr(getattr(included, "include_context", None), "prefix", "")
        for route in getattr(router, "routes", []) or []:
            methods = (getattr(route, "methods", None) or set()) - {"HEAD", "OPTIONS"}
            yield from (f"{method} {prefix}{route.path.replace(':path}', '}')}" for method in methods)


def why_not(route: str) -> str | None:
    for group in LISTED["not_served"]:
        if any(fnmatch.fnmatchcase(route, pattern) for pattern in group["paths"]):
            return group["what"]
    return None


@pytest.fixture(scope="module")
def theirs() -> set[str]:
    every = set(routes_of_mlflow())
    pages = {route for route in every if "/ajax-api/" in route and route.replace("/ajax-api/", "/api/") in every}
    return every - pages


def test_every_route_of_mlflow_is_served_or_listed(theirs: set[str]) -> None:
    served = {f"{route['method']} {same(route['path'])}" for route in LISTED["routes"]}
    assert len(theirs) > 200
    missing = sorted(route for route in theirs if same(route) not in served and why_not(route) is None)
    assert not missing, "neither served nor listed in conformance/mlflow_routes.json"


def test_what_is_not_served_answers_mlflows_error(theirs: set[str], tracking_uri: str) -> None:
    asked = 0
    for route in sorted(theirs - ANSWERED_OTHERWISE):
        if why_not(route) is None:
            continue
        method, path = route.split(" ")
        body = None if method == "GET" else b"{}"
        url = tracking_uri + re.sub(r"\{\w+\}", "x", path)
        request = urllib.request.Request(url, body, {"content-type": "application/json"}, method=method)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        reply = json.loads(error.value.read())
        assert (error.value.code, reply["error_code"]) == (404, "ENDPOINT_NOT_FOUND"), route
        asked += 1
    assert asked > 60


def test_the_reference_lists_what_is_not_served() -> None:
    text = (REPO / "docs" / "reference" / "tracking.md").read_text()
    for group in LISTED["not_served"]:
        assert f"| {group['what']} | {group['why']} |" in text, f"docs/reference/tracking.md lacks `{group['what']}`"
