"""How long a click in the viewer's page takes, until what it shows is drawn.

The page is one of the largest: 256 nodes of an image of 800x1216, random points of one,
two and three layers, and receptive fields of 64 cells a side.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from dcn_jax.explain import Atlas, PointSet
from scripts.benchmark import chromium
from scripts.benchmark.layers import CANVAS
from train.explain.viewer import viewer_page

_STRIDE, _STEP = 16, 4  # pixels to a position of the map, positions to a node
_CELL = 19
# Shares of the picture's width and height, from its middle.
_PLACES = [(-0.3, -0.3), (0.2, 0.1), (0.0, -0.2), (-0.1, 0.3), (0.3, 0.0), (0.1, 0.2)]
# Bokeh draws in the frame after a pick.
_WATCH = """
addEventListener("pointerdown", () => { window.begun = performance.now(); }, true);
addEventListener("pick", () => requestAnimationFrame(() => requestAnimationFrame(() => {
  window.took = performance.now() - window.begun;
})));
"""


def make_atlas() -> Atlas:
    """What a network could see."""
    rng = np.random.default_rng(0)
    size = tuple(-(-side // _STRIDE) for side in CANVAS)
    rows, columns = (np.arange(_STEP // 2, side, _STEP) for side in size)
    nodes = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    cells = [-(-side // _CELL) for side in CANVAS]

    def points(depth: int) -> PointSet:
        shape = len(nodes), 9**depth
        away = rng.normal(0, 24 * depth, (*shape, 2))
        position = _STRIDE * nodes[:, None] + away
        inside = np.asarray(((position >= 0) & (position < CANVAS)).all(-1))
        layers = tuple(f"layer4.{2 - i}.conv2" for i in range(depth))
        outside = (~inside).sum(1)
        return PointSet(layers, position, rng.random(shape), inside, 9**depth, outside)

    return Atlas(
        nodes=nodes,
        map_size=(size[0], size[1]),
        stride=_STRIDE,
        size=CANVAS,
        points=tuple(points(depth) for depth in (1, 2, 3)),
        gradient=False,
        field=rng.random((len(nodes), *cells)),
        cell=_CELL,
        area_side=rng.uniform(50, 500, len(nodes)),
        square_side=rng.uniform(50, 500, len(nodes)),
    )


def click_seconds(folder: Path) -> list[float]:
    """Returns seconds from a press of the button until the picture, of each click.

    Args:
      folder: For the page and the browser's profile.
    """
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*CANVAS, 3), np.uint8)
    page = folder / "viewer.html"
    page.write_text(viewer_page(image, make_atlas(), title="A click"))
    with chromium.opened(page, folder / "profile") as browser:
        _wait(lambda: browser.find_element("id", "count").text)
        browser.execute_script(_WATCH)
        picture = browser.find_element("id", "points-picture")
        browser.execute_script(
            "arguments[0].scrollIntoView({block: 'center'})", picture
        )
        return [_click(browser, picture, place) for place in _PLACES]


def _click(browser: Any, picture: Any, place: tuple[float, float]) -> float:
    from selenium.webdriver import ActionChains

    browser.execute_script("window.took = 0")
    x, y = place[0] * picture.size["width"], place[1] * picture.size["height"]
    chain = ActionChains(browser)
    chain.move_to_element_with_offset(picture, round(x), round(y)).click().perform()
    return _wait(lambda: browser.execute_script("return window.took")) / 1000


def _wait(found: Any, seconds: float = 120) -> Any:
    """What a function returns as soon as that is something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing was shown within {seconds:g} s")
        time.sleep(0.01)
    return value
