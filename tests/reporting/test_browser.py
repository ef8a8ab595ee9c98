"""The page in a real browser."""

import json
from dataclasses import replace

import pytest

from exitwise.reporting.render import render
from hostile_runs import HOSTILE


@pytest.fixture
def page(browser, html, tmp_path):
    """The browser with the report open, and its address."""
    return opened(browser, html, tmp_path)


def opened(browser, html, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    for kind in ("performance", "browser"):
        browser.get_log(kind)  # forget what was before
    browser.get(path.as_uri())
    return browser, path.as_uri()


def element(browser, id):
    return browser.find_element("id", id)


def shown(browser, run, exits=4):
    """The figures beside the slider."""
    figures = {name: element(browser, f"{name}-{run}").text for name in ("accuracy", "macs", "share", "seconds")}
    figures["lost"] = element(browser, f"lost-{run}").text
    figures["command"] = element(browser, f"command-{run}").text
    figures["leave"] = [element(browser, f"leave-{run}-{k}").text for k in range(exits)]
    figures["thresholds"] = [element(browser, f"threshold-{run}-{k}").text for k in range(exits - 1)]
    return figures


def expected(run, position):
    """The same from the recorded budgets."""
    budget = run.budgets[position]
    macs, full = budget.point.macs, run.exits[-1].macs
    return {
        "accuracy": f"{100 * budget.point.accuracy:.1f} %",
        "macs": f"{macs / 1000:.3g}k",
        "share": f"{100 * macs / full:.1f} %",
        "seconds": f"{1000 * budget.seconds:.3g} ms",
        "lost": str(budget.paired),
        "command": budget.command,
        "leave": [f"{100 * share:.1f} %" for share in budget.point.shares],
        "thresholds": ["none leaves" if t is None else f"{t:.4f}" for t in budget.thresholds],
    }


def ring(browser, chart):
    """Where the slider's point is drawn."""
    trace = browser.execute_script(f"return document.getElementById({chart!r}).data.at(-1)")
    return trace["x"][0], trace["y"][0]


def test_the_slider_moves_all_figures_together(page, report):
    from selenium.webdriver import Keys

    browser, _ = page
    run = report.runs[0]
    slider = element(browser, "budget-0")
    position = int(slider.get_attribute("value"))
    assert shown(browser, 0) == expected(run, position)
    for key, moved in ((Keys.LEFT, position - 1), (Keys.HOME, 0), (Keys.RIGHT, 1), (Keys.END, len(run.budgets) - 1)):
        slider.send_keys(key)
        assert int(slider.get_attribute("value")) == moved
        figures = expected(run, moved)
        assert shown(browser, 0) == figures
        assert slider.get_attribute("aria-valuetext") == f"{figures['share']} of the full network’s MACs"
        live = element(browser, "live-0").get_attribute("textContent")
        assert figures["accuracy"] in live
        assert f"{figures['lost']} against {run.yardstick}" in live
        accuracy = 100 * run.budgets[moved].point.accuracy
        assert ring(browser, "macs") == pytest.approx((run.budgets[moved].point.macs / 1000, accuracy))
        assert ring(browser, "seconds") == pytest.approx((1000 * run.budgets[moved].seconds, accuracy))
    assert expected(run, 0) != expected(run, len(run.budgets) - 1)


def test_another_run_is_shown_when_chosen(page, report):
    browser, _ = page
    element(browser, "run").send_keys("<")
    assert not element(browser, "run-0").is_displayed()
    assert element(browser, "run-1").is_displayed()
    position = int(element(browser, "budget-1").get_attribute("value"))
    assert shown(browser, 1) == expected(report.runs[1], position)
    drawn = "return document.querySelectorAll('#run-1 .plot .main-svg').length"
    assert browser.execute_script(drawn) >= 8  # reliability and weights of four exits
    assert [each.is_displayed() for each in browser.find_elements("css selector", ".answer")] == [False, True]
    marked = browser.execute_script("return document.getElementById('macs').data.at(-3)")
    point = report.runs[1].calibrated.point
    assert (marked["x"][0], marked["y"][0]) == pytest.approx((point.macs / 1000, 100 * point.accuracy))


def test_the_slider_and_its_chart_are_in_one_view_and_cost_is_chosen(page):
    browser, _ = page
    for width, height in ((390, 844), (1280, 800)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        top, bottom = browser.execute_script("""
            document.getElementById("cost-macs").scrollIntoView({ behavior: 'instant' });
            const box = (id) => document.getElementById(id).getBoundingClientRect();
            return [box("macs").top, box("budget-0").bottom];
        """)
        assert 0 <= top < bottom <= height
    assert not element(browser, "seconds").is_displayed()
    element(browser, "cost-seconds").click()
    assert element(browser, "seconds").is_displayed()
    assert not element(browser, "macs").is_displayed()
    assert element(browser, "seconds").find_element("class name", "main-svg").size["width"] > 300
    first, last = browser.execute_script("return document.getElementById('macs').layout.xaxis.range")
    costs = browser.execute_script(
        "return document.getElementById('macs').data.find((each) => each.mode === 'markers').x"
    )
    assert first < min(costs) < max(costs) < last < 1.1 * max(costs)


def test_many_classes_are_searched_and_commands_are_copied(browser, report, tmp_path):
    run = report.runs[0]
    classes = [each._replace(name=f"{each.name} kind{number:02}") for number in range(30) for each in run.classes]
    alone = replace(report, runs=[replace(run, classes=classes)], comparisons=report.comparisons[:1])
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, render(alone), tmp_path)
    field = element(browser, "search-0")
    for width in (1280, 390):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert 844 < browser.execute_script("return document.documentElement.scrollHeight") <= 6000
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    field.send_keys(" KIND02")
    shown = [row.text for row in browser.find_elements("css selector", "tr[data-class] th") if row.is_displayed()]
    assert sorted(shown) == sorted(each.name for each in classes if each.name.endswith("kind02"))
    assert element(browser, "found-0").text == "10 of 300 classes"
    button = browser.find_element("css selector", "button[data-copy='command-0']")
    button.send_keys(Keys.ENTER)
    WebDriverWait(browser, 5).until(lambda _: button.text in ("Copied", "Selected"))


def test_hostile_names_are_text(page):
    from selenium.common.exceptions import NoAlertPresentException

    browser, _ = page
    names = [each.get_attribute("textContent") for each in browser.find_elements("css selector", "#run-0 h5.name")]
    assert HOSTILE in names
    assert not browser.find_elements("css selector", "img[src='x'], [onerror], h1 b")
    assert "<b>weighted" in browser.find_element("tag name", "h1").text
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert


def test_nothing_is_requested_and_nothing_complains(page):
    browser, address = page
    element(browser, "run").send_keys("<")  # draws the other run's charts too
    assert browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url for url in sent if not url.startswith("data:image/")} == {address}
    assert browser.get_log("browser") == []


COLOURS = """
    const style = getComputedStyle(document.body);
    const chart = getComputedStyle(document.querySelector("#macs .xtick text"));
    return [style.backgroundColor, style.color, chart.fill];
"""


def test_it_fits_the_screen_and_follows_light_and_dark(page):
    browser, _ = page
    for width, scheme in ((390, "light"), (390, "dark"), (1280, "dark"), (1280, "light")):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        available, widest = browser.execute_async_script("""
            const { documentElement: root } = document, done = arguments[0];
            setTimeout(() => done([root.clientWidth, root.scrollWidth]), 300);  // charts follow a changed width
        """)
        assert widest == available <= width
        paper, ink, chart = (brightness(colour) for colour in browser.execute_script(COLOURS))
        if scheme == "light":
            assert (paper > 200, ink < 60, chart < 60) == (True, True, True)
        else:
            assert (paper < 60, ink > 200, chart > 200) == (True, True, True)


def brightness(colour):
    """Of ``rgb(r, g, b)``."""
    return sum(map(int, colour[4:-1].split(","))) / 3
