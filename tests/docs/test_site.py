"""The site of the documentation: pages, links, the reference, and a browser."""

import fcntl
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import dcn_jax
import xla_ops
from dcn_jax.networks import NETWORKS
from scripts.benchmark import chromium

pytest.importorskip("sphinx")

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "xla_ops").exists(), reason="needs the whole checkout"
)
DOCS = ROOT / "docs"
# Modules whose public names must all stand in the reference.
MODULES = (
    *("xla_ops", "dcn_jax.modules", "dcn_jax.boxes", "dcn_jax.weights"),
    *("dcn_jax.inference", "dcn_jax.explain", "dcn_jax.explain.figures"),
)
# What Python says of objects that have no better name, and where types are from.
NOISE = ("jaxtyping.", "jaxlib.", "<class ", "<function ", " object at", "_Kind")
# Attributes by which a page loads something with itself.
LOADED = {
    *(("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")),
    *(("embed", "src"), ("object", "data"), ("video", "src"), ("audio", "src")),
}


class Page(HTMLParser):
    """What a page links to, loads and can be linked to, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.ids, self.text = [], [], set(), ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and "search" not in given.get("rel", ""):
            self.loaded.append(given.get("href"))
        self.loaded += [v for k, v in attrs if (tag, k) in LOADED]

    def handle_data(self, data):
        self.text += data


def build(docs: Path, site: Path) -> subprocess.CompletedProcess:
    """Builds as `scripts/docs.sh` does, but for the notebooks, which are not run."""
    command = (ROOT / "scripts" / "docs.sh").read_text()
    (flags,) = re.findall(r'-m sphinx (.*) "\$@" docs build/site', command)
    assert "-W" in flags.split()
    return subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", *flags.split()),
            *("-D", "nb_execution_mode=off", docs, site),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built once, by the first of the processes that test."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, built = shared / "documentation", shared / "documentation.built"
    with open(shared / "documentation.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            done = build(DOCS, folder)
            assert done.returncode == 0, done.stderr
            built.touch()
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    """By path in the site."""
    return {
        str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))
    }


def test_every_document_is_a_page(pages):
    written = {
        str(path.relative_to(DOCS).with_suffix(".html")) for path in DOCS.rglob("*.md")
    }
    assert len(written) > 20 and written <= pages.keys()
    # That of a file of the repository has its text.
    assert "Deformable ConvNets for JAX" in pages["index.html"].text
    assert "Rules of the house" in pages["contributing.html"].text


def broken_links(site: Path, pages: dict[str, Page]) -> Iterator[str]:
    ids = {name: page.ids for name, page in pages.items()}
    for name, page in pages.items():
        for link in {*page.links, *filter(None, page.loaded)}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / name).parent / unquote(parts.path)
            target = (target if parts.path else site / name).resolve()
            file = str(target.relative_to(site.resolve()))
            known = {"", *ids.get(file, ())}
            if not target.is_file() or unquote(parts.fragment) not in known:
                yield f"{name}: {link}"


def test_links_lead_somewhere(site, pages):
    assert sum(len(page.links) for page in pages.values()) > 500
    assert list(broken_links(site, pages)) == []


def test_nothing_is_loaded_from_elsewhere(site, pages):
    loaded = {link for page in pages.values() for link in page.loaded if link}
    assert any(link.endswith(".css") for link in loaded)
    assert [link for link in loaded if urlsplit(link).netloc] == []
    for sheet in site.rglob("*.css"):
        text = sheet.read_text()
        found = re.findall(r"url\(\s*['\"]?((?!data:)[^)'\"]*)|@import\s+(\S+)", text)
        assert [u for pair in found for u in pair if urlsplit(u).netloc] == [], sheet


def public_names(module: str) -> list[str]:
    package = importlib.import_module(module)
    names = getattr(package, "__all__", None) or [
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    return [f"{module}.{name}" for name in names]


def test_the_reference_has_every_public_name(pages):
    ids = {i for name, page in pages.items() if name[:4] == "api/" for i in page.ids}
    wanted = [name for module in MODULES for name in public_names(module)]
    wanted += [f"dcn_jax.networks.{name}" for name in NETWORKS]
    wanted += [f"dcn_jax.modules.linen.{n}" for n in ("DeformConv", "DeformRoIPool")]
    assert len(wanted) > 80
    assert [name for name in wanted if name not in ids] == []
    # What stands in `dcn_jax` itself is shown where it is from.
    last = {name.rpartition(".")[2] for name in ids if name}
    assert {*dcn_jax.__all__} - last == {"__version__"}


def test_signatures_can_be_read(pages):
    operators = pages["api/operators.html"].text
    assert "x: Float[Array, 'N H W C']" in operators
    assert "Float[Array, 'N P Q K']" in operators
    layers = pages["api/layers.html"].text
    # Flax hides the arguments of its classes.
    assert "in_features: int" in layers and "**kwargs: Any" not in layers
    assert "centre (Float[Array, 'P Q 2'])" in pages["api/explain.html"].text
    for name, page in pages.items():
        if name.startswith("api/"):
            assert [noise for noise in NOISE if noise in page.text] == [], name


@pytest.fixture
def small(tmp_path):
    """A repository with a page and a file beside it; takes the README's text."""

    def write(readme: str) -> subprocess.CompletedProcess:
        docs = tmp_path / "docs"
        ignored = shutil.ignore_patterns("*.md", "__pycache__")
        shutil.copytree(DOCS, docs, ignore=ignored, dirs_exist_ok=True)
        (docs / "index.md").write_text("```{toctree}\nguide\n```\n")
        (docs / "guide.md").write_text("# Guide\n\n## Its part\n")
        (tmp_path / "setting.py").write_text("")
        (tmp_path / "README.md").write_text(f"# Title\n\n{readme}\n")
        return build(docs, tmp_path / "site")

    return write


def test_links_of_the_repository_lead_to_pages_and_files(small, tmp_path):
    done = small("[a](docs/guide.md#its-part) and [b](setting.py)")
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "site" / "index.html")
    assert "guide.html#its-part" in page.links
    assert any(re.fullmatch(r"_downloads/\w+/setting.py", link) for link in page.links)


@pytest.mark.parametrize(
    "readme", ["[a](docs/none.md)", "[a](docs/guide.md#none)", "![a](docs/none.png)"]
)
def test_a_broken_link_fails_the_build(small, readme):
    done = small(readme)
    assert done.returncode != 0 and "none" in done.stderr


@pytest.mark.skipif(not chromium.is_installed(), reason=chromium.HOW)
def test_the_site_in_a_browser(site, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    with chromium.opened(site / "index.html", tmp_path / "profile") as driver:
        assert "dcn-jax" in driver.title
        width = "return document.images[0].naturalWidth"
        assert driver.execute_script(width) > 0
        driver.find_element(By.LINK_TEXT, "Coming from torch").click()
        heading = driver.find_element(By.TAG_NAME, "h1").text
        assert heading.startswith("Coming from torch")
        box = driver.find_element(By.NAME, "q")
        box.send_keys("deform_conv2d", Keys.ENTER)
        found = "#search-results li a[href*='api/operators.html']"
        links = WebDriverWait(driver, 60).until(
            lambda d: d.find_elements(By.CSS_SELECTOR, found)
        )
        links[0].click()
        assert "deform_conv2d" in driver.find_element(By.TAG_NAME, "article").text
        logged = [e["message"] for e in driver.get_log("browser")]
        assert [m for m in logged if "file:" not in m or "rror" in m] == []
        requests = [
            message["params"]["request"]["url"]
            for entry in driver.get_log("performance")
            if (message := json.loads(entry["message"])["message"])["method"]
            == "Network.requestWillBeSent"
        ]
    assert len(requests) > 10
    ours = ("file:", "data:", "blob:", "chrome:", "chrome-extension:")
    assert [url for url in requests if not url.startswith(ours)] == []


def test_the_operators_of_the_front_page_exist():
    """The list of operators in the README is that of `xla_ops`."""
    text = (ROOT / "README.md").read_text()
    for name in xla_ops.__all__:
        if name not in ("backends", "custom_call_targets"):
            assert f"`{name}`" in text, name
