"""The dashboard in headless Chromium, over a real `highroad track` and data that the real `mlflow` client wrote."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, serving
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag
from playwright.sync_api import Browser, Page, expect, sync_playwright

AXE = REPO / "dashboard" / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script> \u202eمرحبا 👩‍🔬 " + "long" * 60
N_RUNS = 130
N_LONG = 6000
SPIKE_STEP = 4321


@dataclasses.dataclass
class Site:
    """A server, and the ids of what is in it."""

    url: str
    client: MlflowClient
    experiment: str
    runs: list[str]
    hostile: str
    hostile_run: str

    def api(self, path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/ui/api{path}", data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("dashboard")
    with serving([str(highroad), "track", "--listen", "127.0.0.1:0", "--home", str(home)], home / "server.log") as url:
        client = MlflowClient(url, registry_uri=url)
        experiment = client.create_experiment("tuning")
        runs = [log_run(client, experiment, n) for n in range(N_RUNS)]
        log_artifacts(client, runs[-1], tmp_path_factory.mktemp("files"))
        log_long(client, runs[-1])
        log_model(client, experiment, runs[-1], tmp_path_factory.mktemp("model"))
        hostile = client.create_experiment(HOSTILE)
        hostile_run = client.create_run(hostile, run_name=HOSTILE).info.run_id
        client.log_param(hostile_run, "p", HOSTILE)
        client.set_tag(hostile_run, "t", HOSTILE)
        client.log_metric(hostile_run, "loss", float("nan"))
        client.create_registered_model("router", description="Routes tickets. " + HOSTILE)
        client.create_model_version("router", "s3://elsewhere/model", runs[-1], {"note": HOSTILE})
        client.set_registered_model_alias("router", "champion", "1")
        yield Site(url, client, experiment, runs, hostile, hostile_run)


def log_run(client: MlflowClient, experiment: str, n: int) -> str:
    run_id = client.create_run(experiment, run_name=f"run-{n:03}", start_time=1_700_000_000_000 + n * 60_000).info.run_id
    metrics = [Metric("train/loss", 1 / (1 + step) + n / 1000, 1_700_000_000_000 + step * 1000, step) for step in range(20)]
    metrics.append(Metric("f1", ((n * 37) % N_RUNS) / N_RUNS, 1_700_000_000_000, 0))
    params = [Param("lr", ["0.1", "0.01"][n % 2]), Param("seed", "7"), Param("layers", str(n % 5))]
    client.log_batch(run_id, metrics, params, [RunTag("team", "search")])
    client.set_terminated(run_id)
    return run_id


def log_artifacts(client: MlflowClient, run_id: str, folder: Path) -> None:
    from PIL import Image

    client.log_text(run_id, f"# Report\n\nIt **works**.\n\n{HOSTILE}\n\n[click](javascript:window.hacked=1)\n", "report.md")
    client.log_dict(run_id, {"layers": [1, 2]}, "config/model.json")
    client.log_text(run_id, "step,loss\n" + "".join(f"{n},{1 / (n + 1)}\n" for n in range(700)), "history.csv")
    client.log_text(run_id, "x" * 600_000, "big.txt")
    Image.fromarray(np.zeros((20, 30), dtype="uint8")).save(folder / "plot.png")
    client.log_artifact(run_id, str(folder / "plot.png"))
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 100)
    client.log_artifact(run_id, str(folder / "weights.bin"))


def log_model(client: MlflowClient, experiment: str, run_id: str, folder: Path) -> None:
    model = client.create_logged_model(experiment, "network", source_run_id=run_id)
    (folder / "MLmodel").write_text("flavors: {}")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def log_long(client: MlflowClient, run_id: str) -> None:
    """More points than are drawn one by one, with one spike."""
    points = [
        Metric("long", 100.0 if step == SPIKE_STEP else 1.0, 1_700_000_000_000 + step, step) for step in range(N_LONG)
    ]
    points += [Metric("stepless", float(n % 7), 1_700_000_000_000 + n * 10, 0) for n in range(N_LONG)]
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, points[start : start + 1000])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed: run `scripts/debian-tools chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture()
def open_page(browser: Browser, site: Site) -> Iterator[Callable[..., Page]]:
    """Opens pages; afterwards none may have complained, broken its policy, or asked another host."""
    troubles: list[str] = []
    contexts = []

    def opened(path: str, **options: object) -> Page:
        context = browser.new_context(viewport={"width": 1360, "height": 860}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda told: told.type == "error" and troubles.append(told.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((site.url, "blob:", "data:")) or troubles.append(asked.url))
        page.goto(site.url + path)
        return page

    yield opened
    hacked = [page.url for context in contexts for page in context.pages if page.evaluate("window.hacked")]
    for context in contexts:
        context.close()
    assert (hacked, troubles) == ([], [])


def names(page: Page) -> list[str]:
    return page.locator(".row.body .pinned a").all_inner_texts()


def row_count(page: Page) -> int:
    return int(page.get_by_role("table", name="Runs").get_attribute("aria-rowcount") or 0) - 1


def wait_for(what: Callable[[], object], limit_s: float = 15) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.03)


def test_experiments_are_found_and_opened(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page("/")
    expect(page).to_have_url(re.compile("/ui/?$"))
    expect(page.get_by_role("link", name="tuning")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("tuni")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="tuning")).to_be_visible()
    expect(page).to_have_title("tuning · Highroad")
    wait_for(lambda: names(page)[:1] == [f"run-{N_RUNS - 1:03}"])
    assert row_count(page) == N_RUNS
    assert len(names(page)) < 60, "only the rows on screen are in the page"


def test_on_a_small_screen_the_page_is_named_and_words_stay_whole(site: Site, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 420, "height": 800})
    page = context.new_page()
    page.goto(f"{site.url}/ui/")
    expect(page).to_have_url(f"{site.url}/ui")
    page.goto(f"{site.url}/ui/budgets")
    expect(page.get_by_role("navigation", name="Main").get_by_role("link", name="Budgets")).to_be_in_viewport(ratio=1)
    page.goto(f"{site.url}/ui/compare?runs={','.join(site.runs[:3])}")
    expect(page.get_by_role("navigation", name="Main").get_by_role("link", name="Experiments")).to_have_class(re.compile(r"\bactive\b"))
    header = page.get_by_role("rowheader", name="Status")
    expect(header).to_be_visible()
    assert header.evaluate("cell => cell.offsetHeight") < 60, "one line"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def test_a_table_sorts_filters_and_searches_on_the_server(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page(f"/ui/experiments/{site.experiment}")
    f1 = page.get_by_role("columnheader", name="f1")
    f1.get_by_role("button").click()
    best = max(range(N_RUNS), key=lambda n: (n * 37) % N_RUNS)
    wait_for(lambda: names(page)[:1] == [f"run-{best:03}"])
    expect(f1).to_have_attribute("aria-sort", "descending")
    f1.get_by_role("button").click()
    worst = min(range(N_RUNS), key=lambda n: (n * 37) % N_RUNS)
    wait_for(lambda: names(page)[:1] == [f"run-{worst:03}"])
    assert "sort=metrics.f1" in page.url

    page.get_by_label("Filter").fill("params.lr = '0.1' AND metrics.f1 > 0.5")
    page.keyboard.press("Enter")
    wait_for(lambda: 0 < row_count(page) < N_RUNS / 2)
    page.get_by_label("Quick search").fill("RUN-01")
    wait_for(lambda: names(page) and all(name.startswith("run-01") for name in names(page)))
    linked = open_page(page.url.removeprefix(site.url))
    wait_for(lambda: names(linked) == names(page))

    page.get_by_label("Quick search").fill("")
    page.get_by_label("Filter").fill("")
    page.keyboard.press("Enter")
    wait_for(lambda: row_count(page) == N_RUNS)
    page.locator(".table-scroll").evaluate("box => box.scrollTo(0, 1e9)")
    wait_for(lambda: any(name == f"run-{best:03}" for name in names(page)))


def test_a_filter_that_is_not_understood_is_told(site: Site, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{site.url}/ui/experiments/{site.experiment}?filter=metrics.f1+%3E")
    expect(page.get_by_role("alert").first).to_contain_text("Invalid clause")
    page.close()


def test_columns_are_chosen_moved_linked_and_kept(site: Site, open_page: Callable[..., Page]) -> None:
    def headers() -> list[str]:
        return page.get_by_role("columnheader").all_inner_texts()[6:]

    page = open_page(f"/ui/experiments/{site.experiment}")
    wait_for(lambda: headers() == ["f1", "long", "stepless", "train/loss", "layers", "lr"])
    page.get_by_role("button", name="Columns").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Find columns").fill("se")
    dialog.get_by_role("checkbox", name="seed").check()
    dialog.get_by_role("button", name="Hide long").click()
    dialog.get_by_role("button", name="Hide stepless").click()
    dialog.get_by_role("button", name="Move seed up").click()
    page.keyboard.press("Escape")
    wait_for(lambda: headers() == ["f1", "train/loss", "layers", "seed", "lr"])
    page.get_by_role("columnheader", name="seed").get_by_role("button").focus()
    page.keyboard.press("Alt+ArrowLeft")
    wanted = ["f1", "train/loss", "seed", "layers", "lr"]
    wait_for(lambda: headers() == wanted)
    page.get_by_role("columnheader", name="lr").drag_to(page.get_by_role("columnheader", name="f1"))
    wanted = ["lr", "f1", "train/loss", "seed", "layers"]
    wait_for(lambda: headers() == wanted)
    page.goto(f"{site.url}/ui/experiments/{site.experiment}")
    wait_for(lambda: headers() == wanted)
    link = open_page(f"/ui/experiments/{site.experiment}?cols=params.seed")
    wait_for(lambda: link.get_by_role("columnheader").all_inner_texts()[6:] == ["seed"])
    with link.expect_request("**/runs/table") as asked:
        link.get_by_label("Quick search").fill("run")
    assert asked.value.post_data_json["columns"] == ["params.seed"], "only what is shown is fetched"


def hovered(page: Page, metric: str, part: float) -> str:
    """The text that the chart of `metric` shows at `part` of its width."""
    box = page.locator(f'[data-metric="{metric}"] .u-over').bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2)
    hover = page.locator(f'[data-metric="{metric}"] .hover')
    expect(hover).to_be_visible()
    return hover.inner_text()


def test_a_chart_zooms_smooths_and_goes_logarithmic(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page(f"/ui/runs/{site.runs[-1]}")
    plot = page.locator('[data-metric="train/loss"] .plot')
    expect(plot.locator("canvas")).to_be_visible()
    plain = hovered(page, "train/loss", 0.1)
    assert plain.startswith("Step 2\n"), plain
    page.get_by_label("Smoothing").fill("0.9")
    wait_for(lambda: hovered(page, "train/loss", 0.1) != plain)
    assert "smooth=0.9" in page.url
    page.get_by_label("Smoothing").fill("0")

    box = plot.locator(".u-over").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 50, steps=4)
    page.mouse.up()
    wait_for(lambda: plot.get_attribute("data-zoomed"))
    low, high = map(float, (plot.get_attribute("data-zoomed") or "").split())
    assert 8 < low < 11 and 16 < high < 19
    page.get_by_role("button", name="Whole range again").click()
    wait_for(lambda: not plot.get_attribute("data-zoomed"))
    plot.focus()
    page.keyboard.press("+")
    wait_for(lambda: plot.get_attribute("data-zoomed"))
    page.keyboard.press("0")
    wait_for(lambda: not plot.get_attribute("data-zoomed"))

    before = plot.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    page.get_by_label("Log scale").check()
    wait_for(lambda: plot.locator("canvas").evaluate("canvas => canvas.toDataURL()") != before)
    page.get_by_label("Along").select_option("relative")
    assert hovered(page, "train/loss", 0.5).startswith("After ")
    assert "log=1" in page.url and "x=relative" in page.url


def test_a_long_history_is_cut_without_losing_its_spike(site: Site, open_page: Callable[..., Page]) -> None:
    asked = {"run_ids": [site.runs[-1]], "keys": ["long"], "buckets": 400}
    [cut] = site.api("/series", asked)["series"]
    assert len(cut["values"]) <= 400 and cut["n_points"] == N_LONG
    assert (max(cut["highs"]), min(cut["lows"])) == (100.0, 1.0)
    window = {"by": "step", "from": SPIKE_STEP - 500, "to": SPIKE_STEP + 500}
    [near] = site.api("/series", {**asked, "window": window})["series"]
    assert near["lows"] == [] and near["values"][near["steps"].index(SPIKE_STEP)] == 100.0
    by_time = {"by": "time", "from": 1_700_000_000_000 + SPIKE_STEP, "to": 1_700_000_000_000 + SPIKE_STEP + 1}
    [two] = site.api("/series", {**asked, "window": by_time})["series"]
    assert two["steps"] == [SPIKE_STEP, SPIKE_STEP + 1]
    [timed] = site.api("/series", {**asked, "keys": ["stepless"]})["series"]
    assert set(timed["steps"]) == {0} and 300 < len(timed["times"]) <= 400 and timed["times"] == sorted(timed["times"])
    assert (timed["n_points"], min(timed["lows"]), max(timed["highs"])) == (N_LONG, 0.0, 6.0)

    page = open_page(f"/ui/runs/{site.runs[-1]}?metric=long")
    expect(page.locator(".chart-note")).to_contain_text("6k points")
    near_spike = [hovered(page, "long", (SPIKE_STEP + away) / N_LONG) for away in range(-40, 41, 10)]
    assert any("1 … 100" in told for told in near_spike), near_spike


def test_runs_are_compared(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page(f"/ui/experiments/{site.experiment}")
    wait_for(lambda: names(page))
    for _ in range(3):
        page.keyboard.press("j")
        page.keyboard.press("x")
    expect(page.get_by_text("3 selected")).to_be_visible()
    page.keyboard.press("c")
    expect(page.get_by_role("heading", name="Compare 3 runs")).to_be_visible()
    table = page.get_by_role("region", name="Differences")
    expect(table.get_by_role("rowheader", name="lr", exact=True)).to_be_visible()
    expect(table.get_by_role("rowheader", name="seed")).to_have_count(0)
    page.get_by_label("Show what is the same").check()
    expect(table.get_by_role("rowheader", name="seed")).to_be_visible()
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator('[data-metric="train/loss"] .plot')).to_have_attribute("aria-label", re.compile("3 runs"))
    assert hovered(page, "train/loss", 0.5).count("run-") == 3
    page.get_by_role("tab", name="Parallel").click()
    expect(page.locator(".run-line")).to_have_count(3)
    page.get_by_role("tab", name="Scatter").click()
    page.get_by_label("Across").select_option("params.layers")
    expect(page.locator(".dot")).to_have_count(3)
    assert "sx=params.layers" in page.url


def test_artifacts_are_shown_within_limits(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page(f"/ui/runs/{site.runs[-1]}?tab=artifacts&path=report.md")
    expect(page.locator(".markdown strong")).to_have_text("works")
    assert page.locator(".markdown script, .markdown [onerror], .markdown a[href^=javascript]").count() == 0
    page.get_by_role("button", name="config").click()
    page.get_by_role("button", name="model.json").click()
    expect(page.locator(".preview pre")).to_contain_text('"layers": [')
    page.get_by_role("button", name="history.csv").click()
    expect(page.locator(".preview tbody tr")).to_have_count(500)
    page.get_by_role("button", name="big.txt").click()
    expect(page.locator(".preview-note")).to_contain_text("The first 524.3 kB")
    page.get_by_role("button", name="weights.bin").click()
    expect(page.get_by_text("cannot be shown here")).to_be_visible()
    page.get_by_role("button", name="plot.png").click()
    wait_for(lambda: page.locator(".picture").evaluate("image => image.naturalWidth") == 30)
    assert "path=plot.png" in page.url
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "plot.png"
    page.get_by_role("combobox", name="Of").select_option("model network")
    page.get_by_role("button", name="MLmodel").click()
    expect(page.locator(".preview pre")).to_have_text("flavors: {}")
    page.get_by_role("tab", name="Data and models").click()
    expect(page.get_by_role("cell", name="network")).to_be_visible()


def test_the_registry_shows_versions_aliases_and_the_audit_trail(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page("/ui/models")
    expect(page.get_by_text("champion → 1")).to_be_visible()
    expect(page.get_by_role("region", name="Latest moves")).to_contain_text("through MLflow")
    page.get_by_role("link", name="router", exact=True).click()
    expect(page.get_by_role("heading", name="Version 1")).to_be_visible()
    expect(page.get_by_text("free: no Highroad package")).to_be_visible()
    page.get_by_role("tab", name="Audit trail").click()
    expect(page.get_by_role("region", name="Audit trail")).to_contain_text("none → 1")
    run = open_page(f"/ui/runs/{site.runs[-1]}")
    run.get_by_role("link", name="router:1").click()
    expect(run).to_have_url(re.compile("/ui/models/router$"))


def test_a_run_shows_live_while_it_trains(site: Site, open_page: Callable[..., Page]) -> None:
    experiment = site.client.create_experiment("live")
    table = open_page(f"/ui/experiments/{experiment}")
    expect(table.get_by_text("No run yet")).to_be_visible()
    run_id = site.client.create_run(experiment, run_name="training").info.run_id
    wait_for(lambda: names(table) == ["training"])
    page = open_page(f"/ui/runs/{run_id}")
    expect(page.get_by_text("No metric yet")).to_be_visible()
    for step in range(5):
        site.client.log_metric(run_id, "loss", 5 - step, step=step)
    plot = page.locator('[data-metric="loss"] .plot')
    expect(plot).to_have_attribute("aria-label", re.compile("last training 1$"), timeout=15_000)
    site.client.log_metric(run_id, "loss", 0.25, step=5)
    expect(plot).to_have_attribute("aria-label", re.compile("last training 0.25$"), timeout=15_000)
    site.client.set_terminated(run_id)
    expect(page.get_by_text("finished", exact=True)).to_be_visible(timeout=15_000)
    expect(table.get_by_text("finished", exact=True)).to_be_visible(timeout=15_000)


def test_hostile_names_are_only_text(site: Site, open_page: Callable[..., Page]) -> None:
    for path in ["/ui", f"/ui/experiments/{site.hostile}?cols=params.p,tags.t", f"/ui/runs/{site.hostile_run}?tab=overview", "/ui/models/router", f"/ui/compare?runs={site.hostile_run},{site.runs[0]}&all=1"]:  # fmt: skip
        page = open_page(path)
        expect(page.get_by_text("window.hacked=1").first).to_be_visible()
        assert page.locator("main script, main img").count() == 0, path
        assert page.evaluate("document.querySelector('main').scrollWidth <= innerWidth"), f"{path} is wider than the screen"


def test_themes_and_keys(site: Site, open_page: Callable[..., Page]) -> None:
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page = open_page("/ui", color_scheme="dark")
    expect(page.get_by_role("heading", name="Experiments")).to_be_visible()
    dark = ground()
    page.keyboard.press("t")
    light = ground()
    assert dark != light
    page.reload()
    assert ground() == light, "the choice is kept"
    page.get_by_role("button", name="Light or dark").click()
    assert ground() == dark
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_contain_text("Compare the selected runs")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("m")
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    page.goto(f"{site.url}/ui/experiments/{site.experiment}")
    wait_for(lambda: names(page))
    page.keyboard.press("j")
    page.keyboard.press("j")
    wait_for(lambda: page.evaluate("document.activeElement.textContent") == f"run-{N_RUNS - 2:03}")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=f"run-{N_RUNS - 2:03}")).to_be_visible()


def test_what_is_not_there_is_said(site: Site, browser: Browser) -> None:
    page = browser.new_page()
    for path, told in [("/ui/nope", "There is no such page"), ("/ui/runs/nope", "Run with id=nope not found"), ("/ui/models/nope", "nope"), ("/ui/experiments/77", "No Experiment with id=77 exists"), ("/ui/compare", "No run to compare")]:  # fmt: skip
        page.goto(site.url + path)
        expect(page.get_by_role("main")).to_contain_text(told)
    page.close()


PAGES = {
    "experiments": "/ui",
    "runs": "/ui/experiments/{experiment}",
    "charts of an experiment": "/ui/experiments/{experiment}?tab=charts",
    "charts of a run": "/ui/runs/{run}",
    "overview of a run": "/ui/runs/{run}?tab=overview",
    "data of a run": "/ui/runs/{run}?tab=data",
    "artifacts": "/ui/runs/{run}?tab=artifacts&path=history.csv",
    "comparison": "/ui/compare?runs={run},{other}",
    "parallel axes": "/ui/compare?runs={run},{other}&tab=parallel",
    "models": "/ui/models",
    "model": "/ui/models/router",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible(site: Site, open_page: Callable[..., Page], scheme: str) -> None:
    for name, path in PAGES.items():
        page = open_page(path.format(experiment=site.experiment, run=site.runs[-1], other=site.runs[0]), color_scheme=scheme)
        page.wait_for_load_state("networkidle")
        if name == "runs":
            page.get_by_role("button", name="Columns").click()
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        told = [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in found]
        assert told == [], f"{name}, {scheme}"
        page.close()


def test_assets_are_hashed_compressed_and_under_a_strict_policy(site: Site) -> None:
    with urllib.request.urlopen(f"{site.url}/ui/runs/any") as reply:
        page = reply.read().decode()
        policy = reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-cache"
        tag = reply.headers["etag"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=", page), "nothing inline"
    [script] = re.findall(r'src="(/ui/assets/[^"]+\.js)"', page)
    request = urllib.request.Request(site.url + script, headers={"accept-encoding": "gzip"})
    with urllib.request.urlopen(request) as reply:
        assert "immutable" in reply.headers["cache-control"] and reply.headers["content-encoding"] == "gzip"
        packed = reply.read()
    with urllib.request.urlopen(site.url + script) as reply:
        assert reply.read() == gzip.decompress(packed)
    with pytest.raises(urllib.error.HTTPError) as unchanged:
        urllib.request.urlopen(urllib.request.Request(f"{site.url}/ui", headers={"if-none-match": tag}))
    assert unchanged.value.code == 304
    with pytest.raises(urllib.error.HTTPError) as gone:
        urllib.request.urlopen(f"{site.url}/ui/assets/gone.js")
    assert gone.value.code == 404


def test_wrong_questions_are_refused(site: Site) -> None:
    table = {"experiment_ids": [site.experiment], "limit": 10}
    for path, body in [
        ("/runs/table", {**table, "limit": 501}),
        ("/runs/table", {**table, "columns": ["loss"]}),
        ("/runs/table", {**table, "offset": -1}),
        ("/runs/table", {**table, "columns": [f"tags.{n}" for n in range(101)]}),
        ("/series", {"run_ids": site.runs[:101], "keys": ["a", "b"]}),
        ("/series", {"run_ids": site.runs[:1], "keys": ["f1"], "buckets": 0}),
        ("/runs", {"run_ids": ["x"] * 101}),
        ("/nope", {}),
    ]:
        with pytest.raises(urllib.error.HTTPError) as refused:
            site.api(path, body)
        assert refused.value.code in (400, 404) and json.loads(refused.value.read())["message"], path
