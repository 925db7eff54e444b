"""Chromium without a window, where it and its driver are installed."""

import contextlib
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HOW = "needs selenium, and of apt-get chromium and chromium-driver"


def is_installed() -> bool:
    """Whether `opened` can work."""
    programs = (shutil.which("chromium"), shutil.which("chromedriver"))
    return find_spec("selenium") is not None and None not in programs


@contextlib.contextmanager
def opened(page: Path, profile: Path) -> Iterator[Any]:
    """Opens a page; it keeps the logs `browser` and `performance`.

    Args:
      page: A file.
      profile: Folder for what the browser keeps.

    Yields:
      The driver, as Selenium has it.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"),
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()
