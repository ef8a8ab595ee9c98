"""A real browser for the tests of pages: Debian's Chromium, headless, driven by its chromedriver.

Without them those tests are skipped, unless ``EXITWISE_BROWSER_REQUIRED=1`` says that they must be there.
"""

import os
import shutil
from importlib.util import find_spec

import pytest


def find(*names):
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary, driver = find("chromium", "chromium-browser", "google-chrome"), find("chromedriver")
    if not (binary and driver and find_spec("selenium")):
        reason = "no selenium, chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("EXITWISE_BROWSER_REQUIRED") == "1":
            pytest.fail(f"EXITWISE_BROWSER_REQUIRED=1, but {reason}")
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
