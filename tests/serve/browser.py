"""A Chromium without a window, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium(profile: Path, *, dark: bool = False, size: str = "1400,1000") -> Iterator[Any]:
    """A driver with an empty profile that talks to nobody but the page; skips where the browser is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    quiet = [
        "quic",
        "first-run",
        "background-networking",
        "component-update",
        "sync",
        "extensions",
        "default-apps",
        "gpu",
    ]
    for flag in ("--headless=new", "--no-sandbox", "--no-first-run", f"--window-size={size}"):
        options.add_argument(flag)
    for name in quiet:
        options.add_argument(f"--disable-{name}")
    if dark:
        options.add_argument("--force-dark-mode")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()
