"""The report, opened in a browser: a file of its own, without network or errors."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import icosphere
from hydra.core.global_hydra import GlobalHydra

from geodl.cli.main import run
from geodl.errors import UserError
from geodl.results import report
from geodl.runs.compose import compose
from geodl.viz import tables as viz_tables

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "google-chrome")) if p), None)
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two finished runs, a table, and the report of them."""
    here = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        GlobalHydra.instance().clear()
        small = ["data.size=tiny", "epochs=2", "task=segmentation", "batch_size=8"]
        run(compose([*small, "encoder.points=null", "test=[clean,cloud]"]))
        run(compose([*small, "encoder=point_mlp"]))
        results = Path("outputs/tables")
        results.mkdir(parents=True)
        row = {
            "name": "a </script> b",
            "epochs": 2,
            "cells": {"acc": {"mean": 1.0, "std": None, "n": 1}},
        }
        row["cells"]["acc"] |= {"published": 2.0, "verified": False, "unit": "%"}
        table = {"title": "T", "columns": ["acc"], "rows": [row], "budget": "x", "overrides": []}
        bars = table | {"file": "bars", "picture": "bars"}
        (results / "bars.json").write_text(json.dumps(bars))
        viz_tables.bars(bars, results / "bars.png")
        cell = {"mean": 1.0, "std": None, "n": 1, "unit": "%", "change": "-40.0", "worse": 0.8}
        heat = {"acc": {"mean": 1.0, "std": None, "n": 1, "unit": "%"}, "turned": cell}
        heat = table | {"columns": ["acc", "turned"], "rows": [row | {"cells": heat}]}
        (results / "heat.json").write_text(
            json.dumps(heat | {"file": "heat", "picture": "heatmap"})
        )
        (results / "other.json").write_text("[1, 2]")
        text = report.report(compose(["mode=report", "paths.reference=none"]))
        assert "2 runs, 2 tables" in text
    return here / "outputs" / "report.html"


def test_what_is_in_it(page):
    text = page.read_text()
    assert page.stat().st_size < 15_000_000
    found = re.search(r'id="data">(.*?)</script>', text, re.S)
    data = json.loads(found.group(1))
    assert {g["test"] for g in data["groups"]} == {"clean", "cloud"}
    assert len(data["groups"]) == 3 and len(data["curves"]) == 2 and len(data["confusions"]) == 3
    worst = data["worst"][0]
    assert len(data["worst"]) == 3 and worst["metric"] == "acc, %" and worst["of"] == 8
    shares = [value for _, value in worst["rows"]]
    assert shares == sorted(shares) and 0 <= shares[0] < worst["median"] <= 100
    first = data["scenes"][0]["shapes"][0]["name"]
    assert first == f"worst: {worst['rows'][0][0].replace('/', '-')}"
    assert all(
        set(s["layers"]) == {"prediction", "truth", "error"} for s in data["scenes"][0]["shapes"]
    )
    clouds = [s for s in data["scenes"] if s["name"].endswith("cloud")]
    assert clouds and all(s["layers"]["prediction"]["face"] == "" for s in clouds[0]["shapes"])
    body = text[text.index("<body>") : text.index("<script", text.index("<body>"))]
    assert not re.search(r'(src|href)="https?:', body)


def test_meshes_are_quantised_and_large_ones_decimated():
    pos, face = icosphere(5)
    color = np.round((pos + 1) / 2 * 255).astype(np.uint8)
    layer = report.packed(pos, face, color)
    assert layer["of"] == len(pos) == 10242 and 2500 < layer["shown"] < 3500
    raw = np.frombuffer(base64.b64decode(layer["pos"]), "<u2").reshape(-1, 3)
    back = np.array(layer["low"]) + raw / 65535 * layer["size"]
    assert np.abs(np.linalg.norm(back, axis=1) - 1).max() < 0.01
    shown = np.frombuffer(base64.b64decode(layer["color"]), np.uint8).reshape(-1, 3) / 255 * 2 - 1
    assert np.abs(shown - back).max() < 0.1


def test_a_diverged_run_and_a_selected_epoch_are_told():
    config = {"task": {"_target_": "x.Task"}, "encoder": {"_target_": "x.Net"}, "select": "test"}
    result = {
        "hash": "a",
        "seed": 0,
        "protocol": "p",
        "epochs": 1,
        "parameters": 1,
        "seconds_per_epoch": 1.0,
        "metrics": {"error": {"unit": "mm", "better": "less", "headline": True}},
        "config": config | {"features": {"_target_": "x.XYZ"}},
        "eval": {"clean": {"scores": {"l1": 0.5, "error": float("nan")}}},
    }
    (row,) = report.groups([(Path("a"), result)])
    assert row["metric"] == "error" and np.isnan(row["value"])
    assert row["model"] == "Net, XYZ, select=test"


def test_results_of_an_older_form_are_left_out(tmp_path, caplog):
    for name, form in (("old", 1), ("new", 2)):
        (tmp_path / name).mkdir()
        bare = {"eval": {}, "metrics": {}, "config": {}, "finished": "2026"}
        text = json.dumps({"status": "done", "format": form, **bare})
        (tmp_path / name / "result.json").write_text(text)
    (tmp_path / "new" / "x").mkdir()
    (tmp_path / "new" / "x" / "result.json").write_text("{")
    assert [folder.name for folder, _ in report.finished(tmp_path)] == ["new"]


def test_nothing_to_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no finished run in outputs and no table"):
        report.report(compose(["mode=report", "paths.reference=none"]))


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        *("headless=new", "no-sandbox", "disable-background-networking", "disable-sync"),
        *("disable-component-update", "no-first-run", "disable-quic", "window-size=1200,1000"),
        *("enable-unsafe-swiftshader", "use-angle=swiftshader"),
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
def test_the_page_works_from_a_file(page, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"file://{page}")
    wait = WebDriverWait(browser, 60)
    wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "#viewer canvas"))

    def pixels():
        image = browser.find_element(By.ID, "viewer").screenshot_as_png
        import io

        from matplotlib.image import imread

        return imread(io.BytesIO(image))[..., :3]

    # The table sorts, both ways.
    head = browser.find_elements(By.CSS_SELECTOR, "#comparison th")[4]
    seen = []
    for _ in range(2):
        head.click()
        cells = browser.find_elements(By.CSS_SELECTOR, "#comparison td:nth-child(5)")
        seen.append([float(c.text.split(" ")[0]) for c in cells])
    assert seen[0] == sorted(seen[0]) and seen[1] == sorted(seen[0], reverse=True)

    # The worst shapes, of the test set that is chosen.
    assert len(browser.find_elements(By.CSS_SELECTOR, "#worst tbody tr")) == 8

    # Tables: the heat map is a coloured table, others have their picture.
    heat = browser.find_elements(By.CSS_SELECTOR, "#table-heat td")
    assert [c.text.split() for c in heat[1:3]] == [["1.0"], ["1.0", "-40.0"]]
    assert heat[2].value_of_css_property("background-color") != heat[1].value_of_css_property(
        "background-color"
    )
    assert browser.execute_script("return document.querySelector('img').naturalWidth") > 100

    # The viewer shows a shape, and toggling changes it.
    browser.execute_script("document.getElementById('viewer').scrollIntoView()")
    wait.until(lambda d: pixels().std() > 0.02)
    views = []
    for button in range(3):
        browser.find_elements(By.CSS_SELECTOR, "#layers button")[button].click()
        browser.execute_async_script("setTimeout(arguments[0], 800)")
        views.append(pixels())
    assert np.abs(views[0] - views[1]).max() > 0.1 and np.abs(views[1] - views[2]).max() > 0.1

    # Readable on a phone: nothing but the tables is wider than the screen.
    browser.set_window_size(420, 900)
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.execute_script("return window.innerWidth")
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe, severe


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
def test_ways_are_played(here, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    tiny = ["data.vertices=150", "data.train=1", "data.test=1", "data.poses=2"]
    run(compose(["experiment=deform/way", "task.form=straight", *tiny]))
    report.report(compose(["mode=report", "paths.reference=none"]))
    browser.set_window_size(1200, 1000)
    browser.get(f"file://{here / 'outputs' / 'report.html'}")
    wait = WebDriverWait(browser, 60)
    wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "#viewer canvas"))

    def shown():
        pressed = "document.querySelector('#layers [aria-pressed=true]').textContent"
        return browser.execute_script(f"return {pressed}")

    assert shown() == "0 %"
    browser.find_element(By.ID, "play").click()
    seen = set()
    wait.until(lambda d: seen.add(shown()) or len(seen) > 3)
    browser.find_element(By.ID, "play").click()
    stopped = shown()
    browser.execute_async_script("setTimeout(arguments[0], 600)")
    assert shown() == stopped
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe, severe
