"""Nodes as they are given, and as they are chosen."""

import numpy as np
import pytest

from train.explain.nodes import (
    Position,
    RoI,
    check_node,
    choose_nodes,
    labelled,
    parse_node,
)

# (y, x) of a map at stride 16 of an image of 64 x 96 (height x width).
PIXELS = np.moveaxis(np.mgrid[:64:16, :96:16], 0, -1).astype(float)


def test_nodes_are_read():
    assert parse_node("auto") is None
    assert parse_node("12,3.5")[1:] == (12, 3.5)
    assert parse_node("roi=1,2,30,40").box == (1, 2, 30, 40)


@pytest.mark.parametrize(
    "text", ["", "1", "1,2,3", "roi=1,2", "1,2,3,4", "a,b", "roi=1,2,3,nan", "roi=roi="]
)
def test_what_is_no_node_is_refused(text):
    with pytest.raises(ValueError, match=r"^`--node` is '.*'; expected x,y, roi=x1,"):
        parse_node(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("96,10", r"is 96,10; expected a pixel of the image, which has 96 x 64"),
        ("10,-1", r"is 10,-1; expected a pixel"),
        ("roi=0,0,97,10", r"is roi=0,0,97,10; expected x1 < x2 and y1 < y2 on the im"),
        ("roi=5,5,5,10", r"is roi=5,5,5,10; expected x1 < x2"),
    ],
)
def test_a_node_outside_of_the_image_is_refused(given, said):
    node = parse_node(given)
    with pytest.raises(ValueError, match=said):
        check_node(node, (64, 96))


def test_the_last_pixel_and_the_whole_image_are_nodes():
    check_node(parse_node("95,63"), (64, 96))
    check_node(parse_node("roi=0,0,96,64"), (64, 96))


def test_a_small_a_large_object_and_background_are_chosen():
    boxes = np.array([[2, 2, 40, 60], [10, 10, 20, 20], [30, 0, 40, 20]], float)
    nodes = choose_nodes(boxes, (64, 96), PIXELS, rois=True)
    small, large, background = nodes[:3]
    assert small == Position("small object", 14.5, 14.5)
    assert large == Position("large object", 20.5, 30.5)
    # 64 is 24 from the box and 31.5 from the right; 80 is 15.5 from it.
    assert background == Position("background", 64, 32)
    assert [node.label for node in nodes[3:]] == [node.label for node in nodes[:3]]
    assert nodes[3].box == (10, 10, 20, 20) and nodes[4].box == (2, 2, 40, 60)
    side = (100 * 38 * 58) ** 0.25
    box = np.array([64.5, 32.5, 64.5, 32.5]) + side / 2 * np.array([-1, -1, 1, 1])
    np.testing.assert_allclose(nodes[5].box, box)
    assert choose_nodes(boxes, (64, 96), PIXELS, rois=False) == nodes[:3]
    assert labelled([nodes[2], nodes[3]]) == (
        "background at 64,32; small object roi=10,10,20,20"
    )


def test_one_object_that_fills_the_image_leaves_no_background():
    boxes = np.array([[0, 0, 96, 64]], float)
    (only,) = choose_nodes(boxes, (64, 96), PIXELS, rois=False)
    assert only == Position("object", 47.5, 31.5)


def test_without_objects_it_is_the_middle():
    nodes = choose_nodes(np.zeros((0, 4)), (64, 96), PIXELS, rois=True)
    box = (24.0, 16.0, 72.0, 48.0)
    assert nodes == [Position("the middle", 47.5, 31.5), RoI("the middle", box)]
