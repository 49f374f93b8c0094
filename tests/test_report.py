"""The report opens in a real browser: no network, no console errors, no sideways scrolling; keyboard, light, dark."""
import json

import numpy as np
import pandas
import pytest

import evaluate
from first_impressions.common.constants import TRAITS

EVIL = "<img src=x onerror=alert(1)>'\"<b>&{{7*7}}"  # a clip's name; a slash would end it
EVIL_GROUP = EVIL + "</script>"


def open_page(browser, path, **options):
    """Return (page, list that collects console errors, exceptions and requests to anything but the file itself)."""
    page = browser.new_page(**options)
    faults = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request",
            lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_selector(".plot[data-figure=gain] .main-svg")
    return page, faults


@pytest.fixture
def foreign_report(tmp_path, run):
    """report.html of predictions in a CSV file, one clip with a hostile name; and a group of a hostile name."""
    generator = np.random.default_rng(0)
    labels = pandas.DataFrame(generator.uniform(0.2, 0.8, (30, 5)), columns=list(TRAITS))
    labels.insert(0, "clip", [f"speaker{number:03d}.000.mp4" for number in range(29)] + [EVIL])
    predictions = labels.copy()
    predictions[list(TRAITS)] = (predictions[list(TRAITS)] + generator.normal(0, 0.1, (30, 5))).clip(0, 1)
    predictions.loc[29, list(TRAITS)] = 1 - predictions.loc[29, list(TRAITS)].round()  # among the worst: shown by name
    labels.to_csv(tmp_path / "labels.csv", index=False)
    predictions.to_csv(tmp_path / "mine.csv", index=False)
    groups = pandas.DataFrame({"clip": labels["clip"], "group": [EVIL_GROUP, "other"] * 15})
    groups.to_csv(tmp_path / "groups.csv", index=False)
    _, output, errors = run(evaluate, "--predictions", "mine.csv", "--labels", "labels.csv", "--group-by", "groups.csv")
    assert "report.html" in output, errors
    return tmp_path / "mine_evaluation" / "report.html"


def test_foreign_predictions_and_hostile_names(browser, foreign_report):
    page, faults = open_page(browser, foreign_report, viewport={"width": 375, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways on a phone"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    ink = page.evaluate("getComputedStyle(document.querySelector('.plot .gtitle')).fill")
    assert page.locator("main img").count() == 0
    assert EVIL in page.locator("#clips + p ~ .cards").last.inner_text()
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(200)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    title_ink = page.evaluate("getComputedStyle(document.querySelector('.plot .gtitle')).fill")
    assert title_ink != ink, "plots keep the dark ink"
    assert faults == []


def test_report_of_an_experiment(browser, trained):
    folder = trained / "one"
    page, faults = open_page(browser, folder / "evaluation_test" / "report.html",
                             viewport={"width": 1280, "height": 900})
    page.wait_for_selector(".plot[data-figure=training] .main-svg")
    metrics = json.loads((folder / "evaluation_test" / "metrics.json").read_text())
    text = page.locator("body").inner_text().lower()
    for expected in (f"{metrics['traits']['mean']['accuracy']:.4f}", metrics["data_fingerprint"], "evaluate.py one",
                     "train.py 2 one", "speakers in training", metrics["versions"]["torch"]):
        assert expected in text
    assert page.locator(".card-head img").count() == 12
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("h1").count() == page.locator("main").count() == 1

    # By keyboard alone: tab to the choice of the trait, arrow down to the next.
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "trait":
            break
    before = page.locator(".plot[data-figure=traits]").first.get_attribute("aria-label")
    page.keyboard.press("ArrowDown")
    assert page.locator("#trait-shown").inner_text() == "Conscientiousness"
    after = page.locator(".plot[data-figure=traits]").first.get_attribute("aria-label")
    assert before != after and "conscientiousness" in after
    page.emulate_media(media="print")
    page.wait_for_timeout(200)
    assert not page.locator("fieldset").is_visible()
    assert faults == []
