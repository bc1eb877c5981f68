"""The site that ``make docs`` builds: its links, and every page in a browser without a network."""

import fcntl
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import fused_elbo
import fused_elbo.compat
import fused_elbo.distributions
import fused_elbo.warm_up

ROOT = Path(__file__).resolve().parents[1]
NAMES = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
DRIVER = shutil.which("chromedriver")
WIDTHS = 1280, 400
# Markup that was not rendered: LaTeX commands, roles and directives, doubled back-quotes, fences.
MARKUP = re.compile(
    r"\\[a-zA-Z]{2,}|\$\$|:\w+(?::\w+)?:`|^\s*\.\. [\w:-]+::|``|^\s*:::|\]\(|<!--", re.MULTILINE
)
TEXT = """
    const page = document.body.cloneNode(true);
    page.querySelectorAll("pre, code, script, style, svg").forEach(e => e.remove());
    return page.textContent;
"""
BROKEN = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
OUTSIDE = """
    const all = performance.getEntriesByType("resource").map(e => e.name);
    return all.filter(name => !name.startsWith("file:") && !name.startsWith("data:"));
"""
WIDTH = "return document.documentElement.scrollWidth"


@pytest.fixture(scope="session")
def site(request, tmp_path_factory):
    """The folder with the pages, built once per run: by whichever worker comes first."""
    run = tmp_path_factory.getbasetemp()  # of this worker, if there are workers
    shared = (run.parent if hasattr(request.config, "workerinput") else run) / "site"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            command = [sys.executable, "docs/site/build.py", "--out", str(shared)]
            build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert build.returncode == 0, build.stderr
            last = build.stdout.strip().splitlines()[-1]
            assert str(shared / "html" / "index.html") in last
            (shared / "done").touch()
    return shared / "html"


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def faults(browser, page):
    """The faults of a page, in words."""
    browser.get(page.as_uri())
    yield from (f"console: {entry['message']}" for entry in browser.get_log("browser"))
    yield from (f"no image: {source}" for source in browser.execute_script(BROKEN))
    yield from (f"from outside: {name}" for name in browser.execute_script(OUTSIDE))
    text = browser.execute_script(TEXT)
    if "_modules" not in page.parts:
        around = [text[max(0, m.start() - 30) : m.end() + 30] for m in MARKUP.finditer(text)]
        yield from (f"raw markup: {words!r}" for words in around)
    for width in WIDTHS:
        resize(browser, width)
        if (wide := browser.execute_script(WIDTH)) > width:
            yield f"{wide} pixels wide in a window of {width}"


def test_every_page_in_a_browser(site, browser):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 80
    found = [f"{p.relative_to(site)}: {fault}" for p in pages for fault in faults(browser, p)]
    assert found == []


def test_the_browser_sees_what_is_broken(browser, tmp_path):
    """A page with every fault, so that no check above is blind."""
    page = tmp_path / "page.html"
    page.write_text(
        "<body><p>\\frac12 :func:`f`</p><img src='absent.png'>"
        "<div style='width: 2000px'>wide</div><script>throw new Error('thrown')</script></body>"
    )
    found = list(faults(browser, page))
    for fault in ("thrown", "absent.png", "\\\\frac12", ":func:`f`", "window of 400", "of 1280"):
        assert any(fault in line for line in found), (fault, found)


def test_search_without_a_server(site, browser):
    browser.get((site / "search.html").as_uri() + "?q=balanced_kl")
    results = WebDriverWait(browser, 20).until(
        lambda b: b.find_elements(By.CSS_SELECTOR, "#search-results li a")
    )
    assert any(r.get_attribute("href").endswith("#fused_elbo.balanced_kl") for r in results)


def test_links_lead_somewhere(site):
    """Every link within the site: its page is there, and the place on it."""
    texts = {path: path.read_text() for path in sorted(site.rglob("*.html"))}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    lost = []
    for page, text in texts.items():
        for href in set(re.findall(r'<a [^>]*?href="([^"]+)"', text)):
            link = urlsplit(unescape(href))
            if link.scheme or link.netloc:
                continue
            target = (page.parent / unquote(link.path)).resolve() if link.path else page
            place = unquote(link.fragment)
            if not target.exists() or (place and place not in places.get(target, {place})):
                lost.append((str(page.relative_to(site)), href))
    assert lost == []


MODULES = fused_elbo, fused_elbo.compat, fused_elbo.distributions, fused_elbo.warm_up


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_has_a_page(site, module):
    """A page of its own, with a link to its source."""
    folder = site / "api" / module.__name__.removeprefix("fused_elbo").strip(".")
    for name in module.__all__:
        soup = BeautifulSoup((folder / f"{name}.html").read_text(), "html.parser")
        assert soup.find(id=f"{module.__name__}.{name}"), name
        assert soup.select_one("a[href*='_modules/']"), name


def test_docstrings_mathematics_is_drawn(site):
    """As many pictures as the docstring has formulas."""
    for name in fused_elbo.__all__:
        formulas = (getattr(fused_elbo, name).__doc__ or "").count(".. math::")
        soup = BeautifulSoup((site / "api" / f"{name}.html").read_text(), "html.parser")
        assert len(soup.select("div.math svg[role=img]")) == formulas, name


def test_gallery_shows_every_example(site):
    soup = BeautifulSoup((site / "examples" / "index.html").read_text(), "html.parser")
    pictures = {Path(image["src"]).name for image in soup.select(".sd-card img")}
    links = {Path(tag["href"]).stem for tag in soup.select(".sd-card a")}
    programs = {path.stem for path in ROOT.glob("examples/*.py")}
    assert programs <= links
    assert {f"{p}.png" for p in programs if (ROOT / "examples" / f"{p}.png").exists()} <= {
        *pictures,
        "bayesian_linear_regression.png",  # its card has the other one of its two
    }
