# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that reports what a page did: console messages, network requests, screenshots at any width.

`make browser` installs it; find() gives the reason when there is none.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def find() -> tuple[str, str] | str:
    """(browser, driver), or why not."""
    paths = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if None in paths:
        missing = " and ".join(n for n, p in zip(("chromium", "chromedriver"), paths, strict=True) if p is None)
        return f"{missing} is not installed; `make browser` installs Debian's chromium and chromium-driver (as root)"
    return paths  # type: ignore[return-value]


class Page:
    """One file opened in the browser."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver = driver
        self.requests: list[str] = []
        self.errors: list[str] = []
        driver.get("about:blank")
        self.collect()  # what the browser's own start page did is not this file's doing
        self.requests.clear()
        self.errors.clear()
        driver.get(file.resolve().as_uri())

    def run(self, script: str, *args: object) -> Any:
        """The value of a script's `return`."""
        return self.driver.execute_script(script, *args)

    def width(self, width: int, height: int = 900) -> None:
        """Gives the viewport a width, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.05).until(lambda driver: driver.execute_script(f"return {condition}"))

    def collect(self) -> None:
        """Takes over what was logged since the last time."""
        self.errors += [f"{e['level']}: {e['message']}" for e in self.driver.get_log("browser") if e["level"] != "INFO"]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])

    def screenshot(self, path: Path) -> None:
        """The whole page, not only the window."""
        wanted = {"captureBeyondViewport": True, "format": "png"}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", wanted)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A driver with a fresh profile folder; closed at the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = find()
    assert not isinstance(found, str), found
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        yield driver
    finally:
        driver.quit()
