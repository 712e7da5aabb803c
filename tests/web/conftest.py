"""A real browser for the report's page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from equipment import missing
from servers import gpu_server, repeated

from vfiokit.host.source import open_host
from vfiokit.pci.topology import Topology
from vfiokit.web.report import describe, render

PROGRAMS = ("chromium", "chromedriver")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, one for all tests."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            missing(program)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_window_size(1400, 900)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def demo() -> Topology:
    """The packaged capture of a server: 226 functions."""
    return open_host("demo").topology()


@pytest.fixture(scope="session")
def hosts(demo: Topology) -> dict[str, Callable[[], str]]:
    """Pages by name of the host."""
    return {
        "demo": lambda: render("html", describe(demo, host="demo", tree=open_host("demo").files())),
        "gpu": lambda: render("html", describe(gpu_server(), host="gpu-server")),
        "big": lambda: render("html", describe(repeated(demo, 9), host="big")),
    }


@pytest.fixture(scope="session")
def written(
    hosts: dict[str, Callable[[], str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Write a host's page once; returns the file."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            path.write_text(hosts[name](), encoding="utf-8")
        return path

    return write


@pytest.fixture
def visit(browser: Any, written: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Open a host's page; after the test there must be nothing on the console."""

    def go(name: str, size: tuple[int, int] = (1400, 900)) -> Any:
        browser.set_window_size(*size)
        browser.get(written(name).as_uri())
        return browser

    yield go
    problems = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert not problems
