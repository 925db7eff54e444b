"""The page of the viewer in a browser: Chromium, where it is installed."""

import json

import numpy as np
import pytest

from scripts.benchmark import chromium
from tests.support.viewer_page import HOSTILE, make_atlas, make_detected, make_image
from train.explain.viewer import viewer_page
from train.explain.viewer.columns import in_levels

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.skipif(not chromium.is_installed(), reason=chromium.HOW)

# Says when a pick is drawn: Bokeh draws in the next frame.
WATCH = """
addEventListener("pick", () => requestAnimationFrame(() => requestAnimationFrame(() => {
  window.drawn = true;
})));
"""
SHOWN = """
const page = Bokeh.documents[0];
const data = (name) => Object.entries(page.get_model_by_name(name).data).map(
  ([key, values]) => [key, key === "image" ? Array.from(values[0]) : Array.from(values)]
);
return Object.fromEntries(arguments[0].map((n) => [n, Object.fromEntries(data(n))]));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewer")
    path = folder / "viewer.html"
    path.write_text(
        viewer_page(
            make_image(), make_atlas(), title=HOSTILE[0], detected=make_detected()
        )
    )
    with chromium.opened(path, folder / "profile") as driver:
        WebDriverWait(driver, 120).until(lambda d: text(d, "count"))
        driver.execute_script(WATCH)
        yield driver


def text(browser, name):
    return browser.find_element(By.ID, name).text


def shown(browser, *names):
    found = browser.execute_script(SHOWN, names)
    return {n: {k: np.asarray(v) for k, v in d.items()} for n, d in found.items()}


def click(browser, picture, x, y):
    """Points at a place of the image, and waits until what it shows is drawn."""
    picture = browser.find_element(By.ID, f"{picture}-picture")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    # The margin is 6 % of the longer side, 64 pixels.
    margin = 0.06 * 64
    left = (x + margin) / (64 + 2 * margin) - 0.5
    top = (y + margin) / (40 + 2 * margin) - 0.5
    size = picture.size
    browser.execute_script("window.drawn = false")
    webdriver.ActionChains(browser).move_to_element_with_offset(
        picture, round(left * size["width"]), round(top * size["height"])
    ).click().perform()
    WebDriverWait(browser, 60).until(lambda d: d.execute_script("return window.drawn"))


def choose(browser, stack):
    select = browser.find_element(By.ID, "stack")
    select.find_elements(By.TAG_NAME, "option")[stack].click()


def check_node(browser, stack, node):
    """Compares what is drawn with what the atlas says of a node."""
    atlas, (y, x) = make_atlas(), make_atlas().nodes[node]
    points = atlas.points[stack]
    assert text(browser, "node") == f"x {x}, y {y} of a map of 4 × 3"
    assert text(browser, "pixel") == f"x {16 * x}, y {16 * y} (stride 16)"
    count = f"{points.count}, of which {points.outside[node]} outside of the map"
    assert text(browser, "count") == count
    assert text(browser, "area") == f"{20 + node} pixels"
    assert text(browser, "square") == f"{40 + node} pixels"
    found = shown(
        browser, "shown points", "shown points outside", "shown field", "shown node"
    )
    assert found["shown node"] == {"x": [16 * x + 0.5], "y": [16 * y + 0.5]}
    for name, wanted in (
        ("shown points", points.inside[node]),
        ("shown points outside", ~points.inside[node]),
    ):
        order = np.argsort(points.strength[node])
        order = order[wanted[order]]
        got = np.stack([found[name]["y"], found[name]["x"]], -1)
        # Pixel i is from i to i + 1.
        expected = points.position[node, order] + 0.5
        np.testing.assert_allclose(got.reshape(-1, 2), expected, atol=1 / 16)
    np.testing.assert_array_equal(
        found["shown field"]["image"].reshape(40, 64), in_levels(atlas.field)[node]
    )


def test_a_click_shows_the_node_next_to_it(browser):
    for picture, node, stack in (
        *(("points", 6, 1), ("field", 0, 0), ("detections", 11, 2), ("points", 5, 1)),
    ):
        y, x = 16 * make_atlas().nodes[node]
        choose(browser, stack)
        # A little off its centre.
        click(browser, picture, x + 3, y + 2)
        check_node(browser, stack, node)


def test_detections_at_a_place_are_listed_and_show_their_bins(browser):
    click(browser, "detections", 20, 20)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#list button")
    # The better one first; names are shown as they are.
    names = [f"{HOSTILE[1]} 0.75", f"{HOSTILE[0]} 0.50"]
    assert [button.text for button in buttons] == names
    bins = make_detected().bins

    def check_bins(detection):
        found = shown(browser, "shown bins")["shown bins"]
        centre = np.stack([found["y"], found["x"]], -1)
        np.testing.assert_array_equal(centre, bins.centre[detection].reshape(-1, 2))
        size = np.stack([found["height"], found["width"]], -1)
        np.testing.assert_array_equal(size, np.tile(bins.size[detection], (6, 1)))
        level = 255 * np.sqrt(bins.mask[detection].reshape(-1))
        np.testing.assert_allclose(found["level"], level, rtol=1e-5)

    check_bins(1)
    buttons[1].send_keys(Keys.ENTER)
    check_bins(0)
    click(browser, "points", 40, 35)
    assert text(browser, "here") == "None of 3 here."
    assert shown(browser, "shown bins")["shown bins"]["x"].size == 0


def test_arrow_keys_move_the_node(browser):
    choose(browser, 1)
    click(browser, "points", 1, 1)
    check_node(browser, 1, 0)
    panels = browser.find_element(By.ID, "panels")
    panels.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    check_node(browser, 1, 5)
    panels.send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    check_node(browser, 1, 1)


def test_no_errors_and_no_requests(browser):
    click(browser, "points", 20, 20)
    assert browser.title == HOSTILE[0]
    logged = [e["message"] for e in browser.get_log("browser") if e["level"] != "INFO"]
    assert logged == []
    messages = [json.loads(e["message"]) for e in browser.get_log("performance")]
    # Not those of the browser itself.
    requests = [
        m["message"]["params"]["request"]["url"].split(":")[0]
        for m in messages
        if m["message"]["method"] == "Network.requestWillBeSent"
        and m["message"]["params"]["documentURL"] == browser.current_url
    ]
    assert requests.count("file") == 1
    assert set(requests) <= {"file", "data", "blob"}
