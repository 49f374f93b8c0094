"""The report opens in a real browser: no network, no console errors, no sideways scrolling; keyboard, light, dark."""
import json
import shutil

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
    for plot in ("gain", *TRAITS, "reliability"):
        assert page.locator(f"[aria-label='Plot: {plot}'] img").evaluate("image => image.naturalWidth") > 1000, plot
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
    assert page.locator(".card-head img").count() == 0 and page.locator("#training").count() == 0
    white = "getComputedStyle(document.querySelector('.plot')).backgroundColor"
    assert page.evaluate(white) == "rgb(255, 255, 255)", "black axes on dark paper"
    assert EVIL in page.locator("#clips + p ~ .cards").last.inner_text()
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert faults == []


def test_report_of_an_experiment(browser, trained):
    folder = trained / "one"
    page, faults = open_page(browser, folder / "evaluation_test" / "report.html",
                             viewport={"width": 1280, "height": 900})
    metrics = json.loads((folder / "evaluation_test" / "metrics.json").read_text())
    text = page.locator("body").inner_text().lower()
    for expected in (f"{metrics['traits']['mean']['accuracy']:.4f}", metrics["data_fingerprint"], "evaluate.py one",
                     "train.py 2 one", "speakers in training", metrics["versions"]["torch"]):
        assert expected in text
    assert page.locator(".card-head img").count() == 12
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("h1").count() == page.locator("main").count() == 1

    table = pandas.read_csv(folder / "evaluation_test" / "predictions.csv")
    for trait in TRAITS:
        labels, predictions = table[f"label_{trait}"], table[trait]
        alt = page.locator(f"[aria-label='Plot: {trait}'] img").get_attribute("alt")
        for number in (labels.mean(), labels.std(ddof=0), predictions.mean(), predictions.std(ddof=0),
                       (labels - predictions).abs().mean()):
            assert f"{number:.3f}" in alt
    alt = page.locator("[aria-label='Plot: training'] img").get_attribute("alt")
    losses = pandas.read_csv(folder / "training.csv")["loss_train"]
    assert f"Loss over 2 epochs: train from {losses[0]:.4f} to {losses[1]:.4f}" in alt
    # By keyboard alone: tab to a plot that is too wide for a phone.
    page.set_viewport_size({"width": 375, "height": 800})
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Plot: conscientiousness":
            break
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert page.evaluate("document.activeElement.scrollLeft") > 0
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert faults == []


def test_damaged_training_files_cost_the_curves_alone(run, tmp_path, trained, chip_data):
    shutil.copytree(trained / "one", tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "training.csv").write_text("epoch,loss_train\n1,none\n")
    status, _, errors = run(evaluate, "one", "--data-dir", chip_data)
    assert status == 0, errors
    page = (tmp_path / "runs" / "one" / "evaluation_test" / "report.html").read_text()
    assert "the page does not show the training" in page and "Plot: training" not in page
