"""The page of a run: what it shows, and how a browser takes it."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts.benchmark import chromium
from train import draw
from train.configs import digits
from train.run_page import write_page

HOSTILE = "<script>alert(1)</script>"


class Texts(HTMLParser):
    """Texts and tags of a page."""

    def __init__(self):
        super().__init__()
        self.texts, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


@pytest.fixture
def workdir(tmp_path):
    """What a run leaves, by hand."""
    config = digits.get_config()
    config.name = HOSTILE
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    records = [{"step": step, "loss": 3 / step, "loss/box": 1.0} for step in (1, 2, 3)]
    records.append({"step": 3, "eval/bbox/AP": 0.25})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines)
    draw.save_curves(tmp_path / "curves.png", records)
    evaluation = {
        "step": 3,
        "data": {"name": "digits", "split": "test", "options": {}, "images": 7},
        "bbox": {"AP": 0.25, "AP_small": None},
        "bbox_per_class": {"cat": 0.5, HOSTILE: None},
        "bbox_AP50_per_class": {"cat": 0.75, HOSTILE: None},
        "figures": ["precision_recall.png", "confusion.png", "offsets.png", "gone.png"],
    }
    figure = draw.encoded(np.full((40, 300, 3), 9, np.uint8))
    for name in evaluation["figures"][:-1]:
        (tmp_path / name).write_bytes(figure)
    log = "".join(f"12:00:00 step {i}\n" for i in range(500))
    (tmp_path / "log.txt").write_text(f"{log}the end of {HOSTILE}\n")
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    for number in range(2):
        picture = np.full((64, 64, 3), 90 * number, np.uint8)
        draw.save_picture(tmp_path / "pictures" / f"{number:03}.png", picture)
    return tmp_path


def read(workdir):
    write_page(workdir)
    page = Texts()
    page.feed((workdir / "index.html").read_text())
    return page


def test_it_tells_of_the_run(workdir):
    page = read(workdir)
    assert "Step 3, loss 1.000. Evaluated at step 3 on 7 images of digits, test." in (
        page.texts
    )
    shown = list(zip(page.texts, page.texts[1:], strict=False))
    assert {
        ("AP", "0.250"),
        ("AP_small", "-"),
        ("cat", "0.500"),
        ("0.500", "0.750"),
    } <= set(shown)
    assert {("optim.lr", "0.001"), ("data.canvases", "[[256, 256]]")} <= set(shown)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images == [
        *("curves.png", "pictures/000.png", "pictures/001.png"),
        *("precision_recall.png", "confusion.png", "offsets.png"),
    ]
    head = page.texts.index("class")
    assert page.texts[head + 1 : head + 3] == ["bbox", "bbox AP50"]
    bars = [attributes["value"] for tag, attributes in page.tags if tag == "meter"]
    assert bars == ["0.5", "0"]
    (log,) = (text for text in page.texts if "step 499" in text)
    assert log.endswith(f"the end of {HOSTILE}") and "step 400" not in log
    assert all((workdir / image).exists() for image in images)
    # Names are texts, whatever they hold.
    assert "script" not in {tag for tag, _ in page.tags} and HOSTILE in page.texts


def test_a_run_that_has_only_begun(workdir):
    for name in ("evaluation.json", "metrics.jsonl", "curves.png", "log.txt"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "pictures")
    page = read(workdir)
    assert "Nothing was logged yet." in page.texts
    assert "img" not in {tag for tag, _ in page.tags}
    (workdir / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        write_page(workdir)


@pytest.mark.skipif(not chromium.is_installed(), reason=chromium.HOW)
def test_a_browser_shows_it(workdir):
    write_page(workdir)
    with chromium.opened(workdir / "index.html", workdir / "profile") as driver:
        sizes = driver.execute_script(
            "return [...document.images].map(i => { i.loading = 'eager'; "
            "return i.decode().then(() => i.naturalWidth); }).reduce((all, one) => "
            "all.then(a => one.then(b => [...a, b])), Promise.resolve([]))"
        )
        assert sizes == [1500, 64, 64, 300, 300, 300]
        width = driver.execute_script(
            "return document.documentElement.scrollWidth - innerWidth"
        )
        assert width <= 0
        assert not [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
