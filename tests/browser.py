"""A page in headless Chromium through chromedriver's HTTP interface, which needs no Python package."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tinyzero_trl.config import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")


class Browser:
    """Use as a context manager; one window, one page at a time."""

    def __enter__(self) -> Browser:
        port = free_port()
        assert CHROMEDRIVER is not None
        command = [CHROMEDRIVER, f"--port={port}", "--silent"]
        self._driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._url = f"http://127.0.0.1:{port}/session"
        # No sandbox: the tests may run as root in a container. No shared memory: /dev/shm may be tiny there.
        switches = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]
        options = {"args": switches, "binary": CHROMIUM}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        for _ in range(100):
            try:
                session = self._call("", {"capabilities": {"alwaysMatch": wanted}})
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            raise RuntimeError("chromedriver did not start")
        self._url += "/" + session["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(self._url, method="DELETE"), timeout=20).close()
        finally:
            self._driver.terminate()
            self._driver.wait(timeout=20)

    def open(self, path: Path, *, width: int, height: int = 900, is_dark: bool = False) -> None:
        """Show a local file on a screen of that size and colour scheme, with the network off."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._cdp("Emulation.setDeviceMetricsOverride", **screen)
        self.set_dark(is_dark)
        self._cdp("Network.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self._cdp("Network.emulateNetworkConditions", **offline)
        self._call("/url", {"url": path.resolve().as_uri()})

    def set_dark(self, is_dark: bool) -> None:
        """Change the reader's colour scheme, also of an open page."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", features=[feature])

    def run(self, script: str) -> Any:
        """The value that the body of a JavaScript function returns."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """Messages of the console since the last call, errors and warnings alone."""
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"}) if entry["level"] != "INFO"]

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self._cdp("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _cdp(self, command: str, **params: Any) -> Any:
        return self._call("/goog/cdp/execute", {"cmd": command, "params": params})

    def _call(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]
