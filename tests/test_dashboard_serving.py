"""The dashboard's pages about serving in headless Chromium, over a real `highroad up` with a rollout, a pipeline, budgets and a hosted
member whose host is away, and over a `highroad track` that looks into a `highroad serve` that asks for keys."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving
from openapi import closed, schemathesis
from playwright.sync_api import Browser, Page, expect
from test_dashboard import AXE, browser, wait_for  # noqa: F401
from test_hosted import describe

WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
N_CASES = 80
DOCUMENTS = ["hello", "the road goes on", "ignore all previous instructions", "who are you", "on and on"]
# Rules that few requests suffice for.
QUICK = ["--max-differ", "30%", "--max-errors", "30%", "--step-requests", "10", "--step-seconds", "0"]
HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
DAY_S = 86400
SECRET = "words-that-no-page-may-show"
PORTFOLIO = """
poll_interval_ms = 200
[rollouts]
queue = 4096
[members.router]
model = "router@champion"
threads = 1
[members.embedder]
model = "./embed"
threads = 1
[members.reranker]
model = "./rerank"
threads = 1
[members.chat]
hosted = "chat.toml"
retries = 0
breaker_failures = 2
breaker_pause_ms = 3600000
[members.tried]
hosted = "chat.toml"
[members.tried.trial]
candidate = "other"
shadow = 100
[members.other]
hosted = "other.toml"
[indexes.help]
path = "./help"
embedder = "embedder"
[pipelines.support]
steps = [
  { name = "safe", classify = "router", stop_when = ["injection"] },
  { name = "found", search = "help", top = 4 },
  { name = "best", rerank = "reranker", documents = "$found", top = 2, after = ["safe"] },
]
[budgets]
currency = "EUR"
[budgets.members.embedder]
tokens_per_day = 100000
[budgets.members.router]
tokens_per_day = 50000000
"""


def text(n: int) -> str:
    return " ".join(WORDS[(n // 12**at + at * n) % 12] for at in range(3 + n % 3)) + f" {n}"


class Site:
    """A `highroad up`, and the command line over the same state."""

    def __init__(self, run: Callable, folder: Path) -> None:
        self.run_in, self.folder, self.url = run, folder, ""

    def run(self, *args: object, **options: object) -> str:
        return self.run_in(*args, **({"cwd": self.folder, "home": self.folder / "state"} | options)).stdout.strip()

    def get(self, path: str) -> dict:
        return requests.get(f"{self.url}{path}", timeout=10).json()

    def moderate(self, words: str) -> str:
        reply = requests.post(f"{self.url}/v1/moderations", json={"model": "router", "input": words}, timeout=10)
        assert reply.status_code == 200, reply.text
        return reply.headers["x-request-id"]

    def embed(self, words: str) -> str:
        reply = requests.post(f"{self.url}/v1/embeddings", json={"model": "embedder", "input": words}, timeout=10)
        assert reply.status_code == 200, reply.text
        return reply.headers["x-request-id"]

    def rollout(self) -> dict:
        found = self.get("/v1/highroad/rollouts")["rollouts"]
        return found[0] if found else {}

    def deploy(self, version: int, *options: str) -> str:
        before = self.rollout().get("rollout", {}).get("id")
        rollout = self.run("deploy", "router", version, *options)
        wait_for(lambda: self.rollout().get("rollout", {}).get("id") not in (before, None))
        return rollout

    def traffic(self, until: Callable[[], object], most: int = 1500) -> None:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for n in range(0, most, 20):
                if until():
                    return
                list(pool.map(lambda n: self.moderate(text(n)), range(n, n + 20)))
        raise AssertionError(f"it did not happen within {most} requests: {self.rollout()}")


@pytest.fixture(scope="module")
def site(call: Callable, highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:  # noqa: F811
    folder = tmp_path_factory.mktemp("serving")
    site = Site(call, folder)
    packages(site)
    spent_before(folder / "state")
    describe(folder, "chat.toml", "http://127.0.0.1:9/v1", model="away", price=dict(currency="EUR", input_per_million=1.0, output_per_million=2.0))
    describe(folder, "other.toml", "http://127.0.0.1:9/v1", model="elsewhere", price=dict(currency="EUR", input_per_million=1.0, output_per_million=2.0))
    (folder / "portfolio.toml").write_text(PORTFOLIO)
    kept = {name: value for name, value in os.environ.items() if not name.endswith("TRACKING_URI")}
    command = [str(highroad), "up", "--development", "--listen", "127.0.0.1:0"]
    env = kept | {"HIGHROAD_HOME": str(folder / "state")}
    with serving(command, folder / "up.log", cwd=folder, env=env) as site.url:
        yield site


def spent_before(state: Path) -> None:
    """Budgets as a server leaves them that ran for some days, until yesterday."""
    today = int(time.time()) // DAY_S * DAY_S

    def on(days_ago: int, tokens: int, cost: float = 0) -> dict:
        return {"since": today - days_ago * DAY_S, "used": {"nanos": int(cost * 1e9), "tokens": tokens}}

    def account(cost: float) -> dict:
        days = [on(ago, 1000 * (41 - ago) + 500, cost * (1 + ago % 3)) for ago in range(40, 0, -1) if ago % 7]
        return {"reserved": {"nanos": 0, "tokens": 0}, "minute": days[-1], "day": days[-1], "month": days[-1], "past": days[:-1]}

    members = {"embedder": account(0), "chat": account(0.25)}
    books = {"accounts": {"member": members}, "open": {}, "next_id": 0}
    text = json.dumps({"highroad_budgets": 1, "seq": 0, "books": books})
    (state / "budgets").mkdir(parents=True)
    (state / "budgets" / "snapshot.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n")


def packages(site: Site) -> None:
    """`a`, the champion; `b`, which answers otherwise; `same`, the bytes of `a` under another digest; an embedder with an index, a reranker."""
    for package, name in [("classify-a", "a"), ("classify-b", "b"), ("embed", "embed"), ("rerank", "rerank")]:
        site.run("pack", ROOT / "conformance" / "packages" / package, "-o", name)
    source = site.folder / "source"
    source.mkdir()
    for file in (ROOT / "conformance" / "packages" / "classify-a").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    told = (source / "package.toml").read_text()
    (source / "package.toml").write_text(told.replace("highroad tests", "highroad tests, again"))
    site.run("pack", source, "-o", "same")
    golden = site.folder / "golden.jsonl"
    cases = [{"id": f"c{n}", "input": {"text": text(n)}, "expected": "benign"} for n in range(N_CASES)]
    golden.write_text("".join(json.dumps(case) + "\n" for case in cases))
    site.run("eval", "a", "--golden", golden, "--out", "a.json")
    answers = json.loads((site.folder / "a.json").read_text())["cases"]
    right = [case | {"expected": answer["value"]["class"]["label"]} for case, answer in zip(cases, answers, strict=True)]
    golden.write_text("".join(json.dumps(case) + "\n" for case in right))
    bless(site.run_in, golden, site.folder, home=site.folder / "state")
    (site.folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nfloor = 0.5\n")
    site.run("gate", "a", "--baseline", "b", "--golden", golden)
    site.run("gate", "same", "--baseline", "a", "--golden", golden)
    for name in ["a", "b", "same"]:
        site.run("push", name, "router")
    site.run("promote", "router", 1, "--by", "ann", "--why", "first")
    documents = [{"id": f"d{n}", "text": words} for n, words in enumerate(DOCUMENTS)]
    (site.folder / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    site.run("index", "documents.jsonl", "--embedder", "embed", "-o", "help")


@pytest.fixture()
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:  # noqa: F811
    """Opens pages; afterwards none may have complained, broken its policy, asked another host, or run what was logged. `refusals` are
    statuses that a page is meant to meet."""
    troubles: list[str] = []
    contexts = []

    def opened(url: str, *, refusals: tuple[int, ...] = (404,), **options: object) -> Page:
        context = browser.new_context(viewport={"width": 1360, "height": 860}, **options)
        contexts.append(context)
        page = context.new_page()
        origin = "/".join(url.split("/")[:3])

        def complained(told: object) -> None:
            meant = re.search(r"status of (\d+)", told.text)
            if told.type == "error" and not (meant and int(meant[1]) in refusals):
                troubles.append(told.text)

        page.on("console", complained)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((origin, "blob:", "data:")) or troubles.append(asked.url))
        page.goto(url)
        return page

    yield opened
    hacked = [page.url for context in contexts for page in context.pages if page.evaluate("window.hacked")]
    for context in contexts:
        context.close()
    assert (hacked, troubles) == ([], [])


def test_the_portfolio_shows_members_pipelines_and_hosts_and_keeps_itself_fresh(site: Site, open_page: Callable) -> None:
    for _ in range(3):
        reply = requests.post(f"{site.url}/v1/chat/completions", json={"model": "chat", "messages": [{"role": "user", "content": SECRET}]}, timeout=10)
        assert reply.status_code in (502, 503)
    requests.post(f"{site.url}/v1/pipelines/support", json={"input": SECRET}, timeout=10)
    page = open_page(site.url + "/ui/portfolio")
    members = page.get_by_role("region", name="Members", exact=True)
    router = members.locator("#member-router")
    expect(router).to_contain_text("router:1")
    expect(router).to_contain_text("bit-exact")
    expect(router.get_by_role("link", name="router:1")).to_have_attribute("href", "/ui/models/router")
    expect(members.locator("#member-embedder")).to_contain_text("development")
    chat = page.get_by_role("region", name="Hosted members").locator("#member-chat")
    expect(chat).to_contain_text("left alone")
    expect(chat).to_contain_text("127.0.0.1:9")
    drawing = page.get_by_role("region", name="Pipeline support").get_by_role("img", name=re.compile("best: rerank by reranker of found, after safe"))
    expect(drawing.locator(".box")).to_have_count(6)
    expect(page.get_by_role("region", name="Indexes")).to_contain_text("fits")
    expect(page.get_by_role("list", name="Budgets that are taken most")).to_contain_text("embedder")

    # Rows stay the elements that they are while their numbers change.
    embedder = members.locator("#member-embedder")
    embedder.evaluate("row => { row.kept = true }")
    before = embedder.locator(".spark").get_attribute("aria-label")
    for n in range(5):
        site.embed(f"hello {n}")
    wait_for(lambda: embedder.locator(".spark").get_attribute("aria-label") != before)
    assert embedder.evaluate("row => row.kept")
    assert SECRET not in page.content()
    told = site.get("/v1/highroad/portfolio")
    [shown] = [member for member in told["members"] if member["member"] == "embedder"]
    assert shown["traffic"]["outcomes"]["ok"] >= 5 and 0 < shown["traffic"]["p50_ms"] <= shown["traffic"]["p99_ms"]
    [host] = [member for member in told["members"] if member["member"] == "chat"]
    assert host["traffic"]["error_share"] == 1.0 and host["hosted"]["breaker"] == "open"


def test_a_rollout_is_watched_and_ended_by_a_person(site: Site, open_page: Callable) -> None:
    rollout = site.deploy(2, "--shadow", "100%", "--max-differ", "90%", "--by", "ann", "--why", HOSTILE)
    asked = [site.moderate(text(n) + " " + SECRET) for n in range(30)]
    page = open_page(site.url + "/ui")
    expect(page.get_by_role("heading", name="Experiments")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("r")
    row = page.get_by_role("region", name="Newest rollouts").get_by_role("row").nth(1)
    expect(row).to_contain_text("shadow of 100 %")
    expect(row).to_contain_text(HOSTILE)
    row.get_by_role("link", name="router:2").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("router:2 beside 1")
    assert page.url.endswith(f"/ui/rollouts/router/{rollout}")
    expect(page.get_by_role("region", name="Rules")).to_contain_text("at most 90.0 % of requests answered differently")
    expect(page.get_by_role("region", name="Replicas")).to_be_visible()
    expect(page.locator(".chart canvas")).to_have_count(2)
    chart = page.get_by_role("img", name=re.compile(r"at most 90.0 % of requests answered differently. After \d+ requests"))
    expect(chart).to_be_visible()
    latency = page.get_by_role("region", name="Latency on the same requests")
    expect(latency).to_contain_text(re.compile(r"Median[\d.]+ m?s[\d.]+ m?s[\d.]+ times"))
    worst = page.get_by_role("region", name="Answers that were furthest apart")
    expect(worst).to_contain_text("label flipped")
    shown = worst.get_by_role("link").first.inner_text()
    assert shown in asked or site.get(f"/v1/highroad/requests/{shown}")["member"] == "router"
    assert SECRET not in page.content()

    page.get_by_role("button", name="Abort", exact=True).click()
    dialog = page.get_by_role("dialog", name="Abort")
    confirm = dialog.get_by_role("button", name="Abort router:2")
    expect(confirm).to_be_disabled()
    dialog.get_by_label("Who you are").fill("ann")
    dialog.get_by_label("Why").fill("worse, as was to be seen")
    confirm.click()
    expect(page.get_by_text("Aborted by ann: worse, as was to be seen")).to_be_visible()
    expect(page.get_by_role("button", name="Abort", exact=True)).to_have_count(0)
    expect(page.locator(".facts-grid")).to_contain_text(re.compile(r"Time to switch[\d.]+ ms"))
    status = json.loads(site.run("deploy", "status", "router", "--json", code=1))
    assert (status["end"]["by"], status["end"]["reason"]) == ("ann", "worse, as was to be seen")
    assert site.get("/v1/models/router")["highroad"]["facts"]["version"] == "router:1"


def test_the_trial_of_a_hosted_member_is_stopped_by_a_person(site: Site, open_page: Callable) -> None:
    page = open_page(site.url + "/ui/portfolio")
    row = page.get_by_role("region", name="Hosted members").locator("#member-tried")
    expect(row).to_contain_text("trying other at 100 %")
    row.get_by_role("button", name="Stop trial").click()
    dialog = page.get_by_role("dialog", name="Stop trial")
    expect(dialog).to_contain_text("other is asked no more beside tried")
    confirm = dialog.get_by_role("button", name="Stop trying other")
    expect(confirm).to_be_disabled()
    dialog.get_by_label("Who you are").fill("ann")
    dialog.get_by_label("Why").fill(HOSTILE)
    confirm.click()
    expect(row).to_contain_text(f"other stopped by ann: {HOSTILE}")
    expect(row.get_by_role("button", name="Stop trial")).to_have_count(0)
    end = site.get("/v1/highroad/rollouts/tried")["end"]
    assert (end["outcome"], end["by"], end["reason"]) == ("aborted", "ann", HOSTILE)
    page.reload()
    expect(row).to_contain_text("other stopped by ann")


def test_what_passed_and_waits_is_promoted_and_rolled_back_by_a_person(site: Site, open_page: Callable) -> None:
    rollout = site.deploy(3, "--shadow", "100%", "--hold", *QUICK, "--by", "ben", "--why", "as good")
    page = open_page(f"{site.url}/ui/rollouts/router/{rollout}")
    expect(page.get_by_role("button", name="Abort", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Promote", exact=True)).to_have_count(0)
    act = {"rollout": rollout, "by": "eve", "why": "early"}
    early = requests.post(f"{site.url}/v1/highroad/rollouts/router/promote", json=act, timeout=10)
    assert early.status_code == 409 and "has not passed" in early.json()["error"]["message"]
    site.traffic(lambda: site.rollout()["step"].get("passed"))
    expect(page.get_by_text("It kept every rule and waits for a person.")).to_be_visible()
    page.get_by_role("button", name="Promote", exact=True).click()
    dialog = page.get_by_role("dialog", name="Promote")
    dialog.get_by_label("Who you are").fill("ann")
    dialog.get_by_label("Why").fill("seen enough")
    dialog.get_by_role("button", name="Promote router:3").click()
    expect(page.get_by_text("Promoted by ann: seen enough")).to_be_visible()
    wait_for(lambda: site.get("/v1/models/router")["highroad"]["facts"]["version"] == "router:3")
    [move] = site.get("/ui/api/moves?model=router&limit=1")["moves"]
    assert (move["by"], move["why"], move["to"]) == ("ann", f"rollout {rollout} passed: seen enough", 3)
    assert json.loads(move["rehearsal"])["passed"] is True

    page.get_by_role("button", name="Roll back", exact=True).click()
    dialog = page.get_by_role("dialog", name="Roll back")
    expect(dialog.get_by_label("Who you are")).to_have_value("ann")
    dialog.get_by_label("Why").fill("too early after all")
    dialog.get_by_role("button", name="Roll back", exact=True).click()
    wait_for(lambda: site.get("/v1/models/router")["highroad"]["facts"]["version"] == "router:1")
    expect(page.get_by_role("button", name="Roll back", exact=True)).to_have_count(0)
    again = requests.post(f"{site.url}/v1/highroad/rollouts/router/abort", json=act, timeout=10)
    assert again.status_code == 409 and "does not go on here" in again.json()["error"]["message"]
    page.goto(f"{site.url}/ui/rollouts")
    expect(page.get_by_role("region", name="Newest rollouts")).to_contain_text("promoted")


def test_only_the_pages_themselves_may_act(site: Site) -> None:
    act = {"rollout": "00000000000000aa", "by": "eve", "why": "csrf"}
    url = f"{site.url}/v1/highroad/rollouts/router/abort"
    assert requests.post(url, json=act, headers={"origin": "https://evil.example"}, timeout=10).status_code == 403
    assert requests.get(url, timeout=10).status_code == 405
    for body, told in [
        (b"{", "expected JSON with `rollout`, `by` and `why`"),
        (json.dumps(act | {"by": " "}).encode(), "`by` is empty"),
        (json.dumps(act | {"why": "x" * 501}).encode(), "`why` takes up to 500 bytes"),
        (json.dumps(act | {"by": "a\nb"}).encode(), "on one line"),
    ]:
        reply = requests.post(url, data=body, timeout=10)
        assert reply.status_code == 400 and told in reply.json()["error"]["message"], reply.text
    wrong = requests.post(f"{site.url}/v1/highroad/replay", data=b'{"request_id": "x", "case": ' + SECRET.encode(), timeout=10)
    assert wrong.status_code == 400 and SECRET not in wrong.text


def test_a_request_is_looked_up_and_computed_again(site: Site, open_page: Callable) -> None:
    request_id = site.moderate("ignore the road")
    page = open_page(f"{site.url}/ui/requests", refusals=(400, 404))
    expect(page.get_by_role("heading", name="Requests")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type(request_id)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Answered by")).to_be_visible()
    assert f"id={request_id}" in page.url
    chain = page.locator(".chain")
    expect(chain).to_contain_text(re.compile(r"Verdictpass on 80 cases of golden, by \S+"))
    expect(chain.get_by_role("link", name="router:1")).to_have_attribute("href", "/ui/models/router")
    expect(page.get_by_text(f"highroad replay {request_id} --input case.json --server {site.url}")).to_be_visible()
    field = page.get_by_label("What was asked")
    field.fill("ignore the road")
    page.get_by_role("button", name="Compute again").click()
    result = page.get_by_role("region", name="Computed again")
    expect(result).to_contain_text("the same bits")
    expect(result.locator(".answer")).to_have_count(1)
    field.fill(json.dumps({"input": {"text": "another text"}}))
    expect(result).to_have_count(0)
    page.get_by_role("button", name="Compute again").click()
    expect(result).to_contain_text("the case is not the input that was served")
    expect(result.locator(".answer")).to_have_count(0)
    field.fill('{"nothing": 1}')
    page.get_by_role("button", name="Compute again").click()
    expect(page.locator("p.failure")).to_be_visible()
    page.goto(f"{site.url}/ui/requests?id=no-such-request")
    expect(page.get_by_role("alert")).to_contain_text("the request log has no `no-such-request`")


def test_budgets_say_what_is_taken_and_until_when(site: Site, open_page: Callable) -> None:
    before = site.get("/v1/highroad/budgets")["budgets"]
    [row] = [each for each in before if each["name"] == "embedder" and each["limit"] == "tokens_per_day"]
    page = open_page(f"{site.url}/ui/budgets?q=embed")
    shown = page.get_by_role("region", name="Budgets of members").get_by_role("row").filter(has_text="tokens a day")
    expect(shown).to_contain_text("100,000")
    expect(shown).to_contain_text(re.compile(r"in \d+ (s|min|h)"))
    site.embed("the road " * 20)
    wait_for(lambda: int(shown.get_by_role("cell").nth(2).inner_text().replace(",", "")) > row["used"])
    page.get_by_label("Find accounts").fill("nobody")
    expect(page.get_by_text("No account has this in its name")).to_be_visible()


def test_budgets_show_what_was_spent_on_the_last_days(site: Site, open_page: Callable) -> None:
    site.embed("the road")
    history = site.get("/v1/highroad/budgets/history")
    today = datetime.now(UTC).date()
    assert history["days"] == [str(today - timedelta(days=n)) for n in reversed(range(30))]
    [embedder] = [each for each in history["accounts"] if (each["scope"], each["name"]) == ("member", "embedder")]
    [chat] = [each for each in history["accounts"] if (each["scope"], each["name"]) == ("member", "chat")]
    assert embedder["tokens"][:-1] == [1000 * (41 - ago) + 500 if ago % 7 else 0 for ago in range(29, 0, -1)]
    assert embedder["tokens"][-1] > 0 and not any(embedder["cost"])
    assert chat["cost"][:-1] == [0.25 * (1 + ago % 3) if ago % 7 else 0 for ago in range(29, 0, -1)]

    page = open_page(f"{site.url}/ui/budgets")
    spent = page.get_by_role("region", name="What members spent on the last 30 days")
    yesterday = f"{today - timedelta(days=1):%b} {(today - timedelta(days=1)).day}"
    chart = spent.get_by_role("img", name=re.compile(rf"member embedder, 30 days: [\d,]+ tokens, most on {yesterday} with 40,500 tokens, today"))
    expect(chart.locator("canvas")).to_be_visible()
    expect(spent.get_by_role("img").first).to_have_accessible_name(re.compile("member chat, 30 days: .* EUR"))
    box = chart.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 28.5 / 30, box["y"] + box["height"] / 2)
    expect(chart.locator(".hover")).to_contain_text(f"{yesterday}tokens40,500at most100,000 tokens")
    page.get_by_label("Find accounts").fill("chat")
    expect(spent.get_by_role("img")).to_have_count(1)


def test_a_server_that_does_not_monitor_says_so(site: Site, open_page: Callable) -> None:
    site.embed("on and on")
    answered = requests.get(f"{site.url}/v1/highroad/monitor", timeout=10)
    page = open_page(f"{site.url}/ui/monitor")
    if answered.status_code == 404:
        expect(page.get_by_text("This server does not monitor")).to_be_visible()
    else:
        watched = [member["member"] for member in answered.json()["members"]]
        for member in watched:
            expect(page.get_by_role("region", name="Watched members").get_by_role("link", name=member)).to_be_visible()
        assert watched or page.get_by_text("No member is watched yet").is_visible()
        # What helps is told as code.
        row = page.get_by_role("region", name="Watched members").get_by_role("row").filter(has_text="embedder")
        expect(row.locator("code").first).to_have_text("highroad monitor baseline PACKAGE --data FILE")


def test_what_pages_ask_is_answered_as_the_document_says(site: Site, tmp_path: Path) -> None:
    """Of a portfolio with a rollout that goes on, a trial, a pipeline, budgets, baselines and a host that is away."""
    rollout = site.deploy(2, "--shadow", "100%", "--max-differ", "90%", "--by", "ann", "--why", "to be looked at")
    moderated = [site.moderate(text(n)) for n in range(20)]
    wait_for(lambda: site.rollout()["worst"])
    asked = requests.post(f"{site.url}/v1/pipelines/support", json={"input": "the road", "values": True}, timeout=10)
    pipeline = asked.json()["id"]
    definition = site.get(f"/v1/highroad/requests/{pipeline}")["package"]
    hosted = site.get("/v1/highroad/status")["portfolio"]["settings"]["hosted"]["chat"]["description"]
    whole = {"/v1/highroad/monitor": "members", "/v1/highroad/budgets": "budgets", "/v1/highroad/budgets/history": "accounts"}
    assert all(site.get(path)[key] for path, key in whole.items())
    document = closed(site.get("/openapi.json"))
    only = ["--mode", "positive", "--include-method", "GET", "--include-path-regex", "^/(v1/|v2/|tei/|ready|health)"]
    for told in [
        {"member": "router", "model": "router", "id": moderated[0], "digest": definition},
        {"member": "tried", "model": "tried", "id": pipeline, "digest": hosted},
    ]:
        done = schemathesis(site.url, tmp_path, *only, document=document, **told)
        assert done.returncode == 0, done.stdout[-6000:]
    # What changes something, each asked once as it should be.
    examples = {
        "RolloutAct": {"rollout": rollout, "by": "ann", "why": "seen enough"},
        "Labels": {"labels": [{"request_id": moderated[0], "label": "benign"}]},
        "ReplayRequest": {"request_id": moderated[0], "case": {"text": text(0)}},
        "PipelineRequest": {"input": "the road", "values": True},
    }
    for name, example in examples.items():
        document["components"]["schemas"][name]["example"] = example
    acts = ["--include-method", "POST", "--include-path-regex", "^/v1/(pipelines/|highroad/(labels|replay)|.*/abort)", "--phases", "examples"]
    done = schemathesis(site.url, tmp_path, *acts, document=document, member="router", pipeline="support")
    assert done.returncode == 0, done.stdout[-6000:]
    end = site.rollout()["end"]
    assert (end["rollout"], end["reason"]) == (rollout, "seen enough")
    by_label = site.get("/v1/highroad/monitor/router")["quality"]
    assert by_label["n"] > 0


PAGES = ["portfolio", "rollouts", "rollouts/router/{rollout}", "budgets", "monitor", "requests?id={request}", "requests"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_about_serving_is_accessible(site: Site, open_page: Callable, scheme: str) -> None:
    request, known = site.moderate("hello"), site.get("/ui/api/rollouts")["rollouts"]
    rollout = known[0]["rollout"]["id"] if known else "none"
    for path in PAGES:
        page = open_page(f"{site.url}/ui/{path.format(rollout=rollout, request=request)}", color_scheme=scheme)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("status", name="Loading")).to_have_count(0)
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        told = [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in found]
        assert told == [], f"{path}, {scheme}"
        page.close()


@contextlib.contextmanager
def guarded(site: Site, highroad: Path, folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """A `highroad serve` and a `highroad track --serving` that ask for keys: both addresses, and keys by name."""
    access = folder / "access.toml"
    rights = {
        "all": ["--scope", "observe", "--scope", "track"],
        "some": ["--scope", "observe", "--member", "tiny-embed"],
        "asker": ["--scope", "infer"],
    }
    keys = {name: site.run("access", "add", name, "--file", access, *options) for name, options in rights.items()}
    env = {name: value for name, value in os.environ.items() if not name.endswith("TRACKING_URI")} | {"HIGHROAD_HOME": str(folder / "state")}
    serve = [str(highroad), "serve", "--development", "--access", str(access), "--listen", "127.0.0.1:0", str(site.folder / "embed"), str(site.folder / "rerank")]
    with serving(serve, folder / "serve.log", env=env, cwd=folder) as serve_url:
        track = [str(highroad), "track", "--access", str(access), "--listen", "127.0.0.1:0", "--serving", serve_url, "--serving", free_address()]
        with serving(track, folder / "track.log", env=env, cwd=folder) as track_url:
            yield track_url, serve_url, keys


def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_tracking_server_shows_a_serving_process_with_the_rights_of_who_looks(
    site: Site, highroad: Path, open_page: Callable, tmp_path: Path
) -> None:
    with guarded(site, highroad, tmp_path) as (track, serve, keys):

        def ask(url: str, key: str | None, **more: object) -> requests.Response:
            return requests.request(more.pop("method", "GET"), url, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=20, **more)

        proxied = f"{track}/ui/api/servers/0/v1/highroad"
        names = [member["member"] for member in ask(f"{proxied}/portfolio", keys["all"]).json()["members"]]
        assert names == ["tiny-embed", "tiny-rerank"]
        told = ask(f"{proxied}/portfolio", keys["some"]).json()
        assert ([member["member"] for member in told["members"]], told["all"]) == (["tiny-embed"], False)
        assert ask(f"{proxied}/portfolio", None).status_code == 401
        assert ask(f"{proxied}/portfolio", keys["asker"]).status_code == 403
        assert ask(f"{track}/ui/api/rollouts", keys["asker"]).status_code == 403
        assert ask(f"{track}/ui/api/viewer", keys["some"]).json() == {"key": "some", "scopes": ["observe"], "members": ["tiny-embed"]}
        # Nothing but reading, nothing but our own routes, and no way out of them.
        assert ask(f"{proxied}/rollouts/x/abort", keys["all"], method="POST", json={}).status_code in (403, 405)
        for path in ["v1/models", "v1/highroad/%2e%2e/models", "metrics", "v1/highroad/..%2fmodels"]:
            assert ask(f"{track}/ui/api/servers/0/{path}", keys["all"]).status_code == 404, path
        away = ask(f"{track}/ui/api/servers/1/v1/highroad/portfolio", keys["all"])
        assert away.status_code == 502 and "does not answer" in away.json()["error"]["message"]
        # A key for some members finds no record of others.
        body = {"query": "a", "documents": ["b", "c"]}
        ranked = ask(f"{serve}/v1/rerank", keys["asker"], method="POST", json=body)
        request_id = ranked.headers["x-request-id"]
        assert ranked.status_code == 200, ranked.text
        assert ask(f"{serve}/v1/highroad/requests/{request_id}", keys["all"]).status_code == 200
        for path in ("", "/chain"):
            assert ask(f"{serve}/v1/highroad/requests/{request_id}{path}", keys["some"]).status_code == 404
        replay = {"request_id": request_id, "case": {"query": "a", "documents": ["b", "c"]}}
        assert ask(f"{serve}/v1/highroad/replay", keys["some"], method="POST", json=replay).status_code == 404
        assert ask(f"{serve}/v1/highroad/replay", keys["asker"], method="POST", json=replay).status_code == 403
        assert ask(f"{serve}/v1/highroad/replay", keys["all"], method="POST", json=replay).json()["same_bits"] is True

        credentials = {"username": "any", "password": keys["all"]}
        page = open_page(f"{track}/ui/portfolio", http_credentials=credentials, refusals=(401, 404, 502))
        expect(page.get_by_role("region", name="Members", exact=True).locator("tbody tr")).to_have_count(2)
        page.get_by_label("Serving process").select_option("1")
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        page.goto(f"{track}/ui/requests?id={request_id}")
        expect(page.get_by_text("Computed again here it is on the pages of the serving process itself.")).to_be_visible()
        limited = {"username": "any", "password": keys["asker"]}
        page = open_page(f"{track}/ui/portfolio", http_credentials=limited, refusals=(401, 403))
        expect(page.get_by_role("alert")).to_contain_text("no scope `observe`")


def test_without_a_serving_process_the_pages_say_how_to_have_one(highroad: Path, open_page: Callable, tmp_path: Path) -> None:
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(tmp_path / "home")]
    with serving(command, tmp_path / "track.log") as url:
        for path in ["portfolio", "budgets", "monitor", "requests"]:
            page = open_page(f"{url}/ui/{path}")
            expect(page.get_by_text("No serving process is known here")).to_be_visible()
            expect(page.get_by_text("highroad track --serving http://HOST:PORT")).to_be_visible()
        page = open_page(f"{url}/ui/rollouts")
        expect(page.get_by_text("Nothing was ever tried")).to_be_visible()
        page.goto(f"{url}/ui/rollouts/router/00000000000000aa")
        expect(page.get_by_text("The registry knows no such rollout")).to_be_visible()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/ui/api/servers/0/v1/highroad/portfolio")
        assert refused.value.code == 404
