import numpy as np
import pytest

from dcn_jax.images import drawing


def test_boxes_and_labels_are_drawn_on_a_copy():
    image = np.zeros((512, 768, 3), np.uint8)
    boxes = np.float32([[102, 154, 614, 461], [-26, -26, 2048, 1536]])
    picture = drawing.draw_boxes(
        image, boxes, np.float32([0.9, 0.6]), [1, 12], [f"class {i}" for i in range(12)]
    )
    assert picture.shape == image.shape
    assert not image.any()
    # The left edge of the first box, in the first colour.
    assert tuple(picture[300, 102]) == (31, 119, 180)


@pytest.mark.parametrize(
    ("shape", "larger"),
    [
        *[((1, 10000), (1, 10000)), ((10, 1000), (20, 2048)), ((64, 64), (512, 512))],
        *[((100, 150), (512, 768)), ((600, 700), (600, 700))],
    ],
)
def test_enlargement_is_bounded(shape, larger):
    image = np.zeros((*shape, 3), np.uint8)
    picture = drawing.enlarged(image)
    assert picture.shape == (*larger, 3)
    box = np.float32([[0, 0, larger[1], larger[0]]])
    drawn = drawing.draw_boxes(picture, box, np.float32([0.9]), [1], ["a"])
    assert drawn.shape == picture.shape


def test_no_detections_leave_the_image():
    image = np.full((600, 700, 3), 7, np.uint8)
    none = np.zeros((0, 4), np.float32)
    picture = drawing.draw_boxes(image, none, np.zeros(0, np.float32), [], ["a"])
    np.testing.assert_array_equal(picture, image)


def test_a_mask_is_tinted_and_outlined_on_a_copy():
    image = np.full((200, 300, 3), 100, np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[50:150, 100:220] = True
    mask[90:110, 140:160] = False
    picture = drawing.draw_mask(image, mask, 2)
    assert (image == 100).all()
    # The second colour on gray, its outline, also of a hole, and what lies outside.
    assert picture[70, 120].tolist() == pytest.approx([162, 111, 66], abs=1)
    assert picture[100, 100].tolist() == picture[89, 150].tolist() == [255, 127, 14]
    assert (picture[:40] == 100).all() and (picture[100, 150] == 100).all()
    # Column by column, as masks are pasted.
    again = drawing.draw_mask(image, np.asfortranarray(mask), 2)
    np.testing.assert_array_equal(again, picture)
    nothing = drawing.draw_mask(image, np.zeros_like(mask), 2)
    np.testing.assert_array_equal(nothing, image)


def test_labels_do_not_hide_each_other():
    """Boxes in one place, as of an object that is taken for several."""
    taken = []
    for _ in range(12):
        place = drawing._free_place([100, 60, 300, 200], (50, 14), (300, 400), taken)
        left, top, right, bottom = place
        assert (right - left, bottom - top) == (50, 14)
        assert left >= 0 and top >= 0 and right <= 400 and bottom <= 300
        taken.append(place)
    # Above the box, at its top, at its bottom, below it.
    assert [top for _, top, _, _ in taken[:4]] == [46, 60, 186, 200]
    pixels = np.zeros((300, 400), int)
    for left, top, right, bottom in taken:
        pixels[top:bottom, left:right] += 1
    assert pixels.max() == 1


@pytest.mark.parametrize("box", [(-9, -9, 20, 20), (390, 295, 500, 400), (0, 0, 1, 1)])
def test_a_label_stays_in_the_picture(box):
    image = np.zeros((300, 400, 3), np.uint8)
    picture = drawing.draw_boxes(
        image, np.float32([box]), np.float32([0.5]), [1], ["name"]
    )
    # Its text is the only thing that is white.
    assert (picture.min(-1) > 120).sum() > 20


def test_boxes_may_be_anywhere():
    image = np.zeros((30, 40, 3), np.uint8)
    boxes = np.float32([[-1e30, -5, 1e30, 8], [3e9, 3e9, 4e9, 4e9]])
    picture = drawing.draw_boxes(image, boxes, np.float32([0.5, 0.4]), [1, 1], ["name"])
    # The lower side of the first goes through the picture.
    assert picture.shape == image.shape and (picture[8] == (31, 119, 180)).all()


def test_ground_truth_has_no_scores():
    image = np.zeros((300, 400, 3), np.uint8)
    boxes = np.float32([[50, 60, 200, 200], [210, 60, 390, 200]])
    named = drawing.draw_boxes(image, boxes, None, [1, 2], ["cat", "dog"])
    scored = drawing.draw_boxes(image, boxes, np.ones(2), [1, 2], ["cat", "dog"])
    assert (named[100, 50] == (31, 119, 180)).all()
    assert (named[100, 210] == (255, 127, 14)).all()
    # Labels are shorter; nothing else differs.
    differing = (named != scored).any(-1)
    assert differing.any() and not differing[62:].any()
    width = [(p[40:60, :200] == (31, 119, 180)).all(-1).sum() for p in (named, scored)]
    assert width[0] < width[1]


def test_thin_boxes():
    image = np.zeros((600, 800, 3), np.uint8)
    box, score = np.float32([[100, 100, 300, 300]]), np.ones(1)
    widths = [
        int(
            drawing.draw_boxes(image, box, score, [1], ["a"], thin=thin)[200]
            .any(-1)
            .sum()
        )
        for thin in (False, True)
    ]
    assert widths[1] == 2 < widths[0]


def test_a_note_is_in_the_lower_left_corner():
    image = np.full((300, 400, 3), 90, np.uint8)
    picture = drawing.draw_note(image, "none reaches 0.50; best 3 shown")
    assert (image == 90).all() and picture.shape == image.shape
    changed = (picture != 90).any(-1)
    assert changed[-1, 0] and not changed[:280].any()
    assert (picture[-1, 0] == 0).all() and (picture.min(-1) > 200).any()


def test_names_stand_in_the_midst_of_their_regions():
    image = np.full((400, 600, 3), 90, np.uint8)
    labels = np.zeros((400, 600), np.uint8)
    labels[:, 300:], labels[100:110, 10:20] = 1, 2
    labels[390:] = 255
    colours = np.zeros((256, 3), np.uint8)
    colours[1], colours[2], colours[255] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    picture = drawing.draw_region_names(image, labels, ["", "left", "small"], colours)
    assert (image == 90).all()
    rows, columns = np.nonzero((picture == (200, 0, 0)).all(-1))
    assert abs(rows.mean() - 195) < 12 and abs(columns.mean() - 450) < 12
    assert (picture == (0, 200, 0)).all(-1).any()
    # Neither the label without a name nor the one beyond the names.
    others = (picture == (0, 0, 0)).all(-1) | (picture == (0, 0, 200)).all(-1)
    assert not others.any()
    # Black letters on a light colour.
    colours[1] = (240, 240, 240)
    light = drawing.draw_region_names(image, labels, ["", "left", "small"], colours)
    place = light[rows.min() : rows.max(), columns.min() : columns.max()]
    assert (place.max(-1) < 30).any() and (place.max(-1) <= 240).all()
