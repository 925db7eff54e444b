"""Curves of precision over recall, and their figures."""

import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import precision_recall_curve

from train import draw
from train.evaluation.coco import average_precision
from train.evaluation.figures import confusion_figure, precision_recall_figure
from train.evaluation.precision_recall import RECALLS, PrecisionRecall
from train.evaluation.voc import match, voc_average_precision, voc_curve

CATEGORIES = [
    {"id": 2, "name": "cat"},
    {"id": 4, "name": "dog"},
    {"id": 9, "name": "eel"},
]
BOX, WRONG = [10.0, 10.0, 40.0, 20.0], [200.0, 100.0, 30.0, 30.0]


def generated(seed, *, images=41):
    """Images with a cat each; of every detection it is known whether it is right.

    Of 41 cats no share is a whole percentage, which rounding would decide about.

    Returns:
      Ground truth, detections; and of the cats, whether detections are right, their
      scores, and which share of the cats is found.
    """
    rng = np.random.default_rng(seed)
    annotations = [
        {
            "id": i,
            "image_id": i,
            "category_id": 2,
            "bbox": BOX,
            "area": 800,
            "iscrowd": 0,
        }
        for i in range(images)
    ]
    annotations.append({**annotations[0], "id": images, "category_id": 4})
    detections, right = [], []
    for image in range(images):
        places = [WRONG, WRONG] if rng.random() < 0.2 else [BOX, WRONG]
        for box in places[: rng.integers(1, 3)]:
            score = float(rng.random() * (1 if box is WRONG else 1.3))
            detections.append(
                {"image_id": image, "category_id": 2, "bbox": box, "score": score}
            )
            right.append(box is BOX)
    truth = {
        "images": [{"id": i, "height": 400, "width": 400} for i in range(images)],
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    scores = [d["score"] for d in detections]
    return truth, detections, np.array(right), np.array(scores), sum(right) / images


def by_scikit_learn(right, scores, found):
    precision, recall, _ = precision_recall_curve(right, scores)
    # It knows of no cat that was missed, and ends at a point that it adds.
    precision, recall = precision[:-1], found * recall[:-1]
    return np.array([max(precision[recall >= r - 1e-12], default=0.0) for r in RECALLS])


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_curve_of_scikit_learn(seed):
    truth, detections, right, scores, found = generated(seed)
    expected = by_scikit_learn(right, scores, found)
    assert 0.3 < expected.mean() < 0.99 and expected[-1] == 0
    judged = average_precision(truth, detections)
    curves = judged.curves
    assert list(curves.names) == ["cat", "dog", "eel"]
    for curve in curves.precision.values():
        np.testing.assert_allclose(curve[0], expected, atol=1e-12)
        # Dogs are there and not found, and of eels nothing is known.
        np.testing.assert_array_equal(curve[1], 0.0)
        assert np.isnan(curve[2]).all()
    assert judged.per_class["cat"] == pytest.approx(expected.mean())
    assert judged.per_class_50 == {
        "cat": pytest.approx(expected.mean()),
        "dog": 0.0,
        "eel": None,
    }
    matches = match(truth, detections)
    for threshold in (0.5, 0.7):
        curve = voc_curve(matches["cat"], threshold)
        np.testing.assert_allclose(curve, expected, atol=1e-12)
        ap = voc_average_precision(matches["cat"], threshold, "11point")
        assert ap == pytest.approx(curve[::10].mean())
        np.testing.assert_array_equal(voc_curve(matches["dog"], threshold), 0.0)
        assert np.isnan(voc_curve(matches["eel"], threshold)).all()


def test_thresholds_differ():
    """Boxes that are half wide are right at 0.5 alone."""
    truth, detections, *_ = generated(0)
    for detection in detections:
        detection["bbox"] = [10.0, 10.0, 20.0, 20.0]
    low, mean = average_precision(truth, detections).curves.precision.values()
    assert low[0].mean() > 0.5
    np.testing.assert_allclose(mean[0], low[0] / 10)
    cats = match(truth, detections)["cat"]
    # VOC wants more than a half.
    assert voc_curve(cats, 0.49).mean() > 0.5 and not voc_curve(cats, 0.5).any()


def curves_of(*rows, names=("a", "b", "c")):
    rows = [np.full(len(RECALLS), row) for row in rows]
    return PrecisionRecall(names, {"IoU 0.50": np.array(rows)})


def test_the_mean_leaves_out_what_is_not_there():
    curves = curves_of(0.5, np.nan, 0.25)
    np.testing.assert_array_equal(curves.mean("IoU 0.50"), np.full(101, 0.375))
    told = json.loads(json.dumps(curves.as_json()))
    assert told["IoU 0.50"]["mean"] == [0.375] * 101
    by_class = told["IoU 0.50"]["by_class"]
    assert by_class["a"] == [0.5] * 101 and by_class["b"] is None
    nothing = curves_of(np.nan, np.nan, np.nan)
    assert np.isnan(nothing.mean("IoU 0.50")).all()
    assert nothing.as_json()["IoU 0.50"]["mean"] is None


def texts_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_figure_of_few_classes_names_them_all():
    curves = curves_of(0.5, np.nan, 0.75)
    figure = precision_recall_figure({"bbox": curves, "segm": curves})
    first, second = figure.axes
    assert first.get_title() == "bbox, IoU 0.50" and second.get_title().startswith("se")
    assert texts_of(first) == ["0.75  c", "0.50  a", "0.62  mean of 2"]
    heights = [set(line.get_ydata()) for line in first.get_lines()]
    assert heights == [{0.75}, {0.5}, {0.625}]
    styles = [line.get_linestyle() for line in first.get_lines()]
    # Those that are next to one another differ in grey too.
    assert styles[0] != styles[1]


def test_a_figure_of_many_classes_names_the_best_and_the_worst():
    names = [f"class {i}" for i in range(80)]
    curves = curves_of(*np.linspace(0, 1, 80), names=names)
    (axes,) = precision_recall_figure({"bbox": curves}).axes
    assert len(axes.get_lines()) == 81
    shown = texts_of(axes)
    assert len(shown) == 9 and shown[0] == "1.00  class 79"
    assert shown[-2:] == ["0.00  class 0", "0.50  mean of 80"]


def test_a_figure_of_nothing():
    (axes,) = precision_recall_figure({"bbox": curves_of(np.nan, names=["a"])}).axes
    assert axes.get_legend() is None and not axes.get_lines()


def test_a_matrix_shows_shares_of_its_rows():
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 999]])
    figure = confusion_figure(["a", "b", "c"], counts, "boxes")
    axes = figure.axes[0]
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0.001, 0, 0.999]]
    )
    assert [t.get_text() for t in axes.texts] == ["75", "25", "<1", "100"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "a (4)",
        "b (0)",
        "c (1,000)",
    ]
    many = confusion_figure(
        [f"class {i}" for i in range(81)], np.eye(81, dtype=int), ""
    )
    # Names do not overlap: points of a line of text, and what there is for it.
    size = many.axes[0].get_yticklabels()[0].get_fontsize()
    many.canvas.draw()
    height = many.axes[0].get_window_extent().height / many.dpi * 72
    assert not many.axes[0].texts and size < height / 81


@pytest.mark.parametrize(
    "name", ["$x$", "_hidden", "$", "日本", "a\nb" * 99, "\x1b[31m"]
)
def test_names_may_be_anything(name):
    """Warnings are errors here."""
    curves = curves_of(0.5, 0.25, names=[name, "b"])
    for figure in (
        precision_recall_figure({"bbox": curves}),
        confusion_figure([name, "b"], np.eye(2, dtype=int), "boxes"),
    ):
        assert draw.figure_png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("count", "name"), [(2, "{}"), (11, "{}"), (25, "long name {}")]
)
def test_no_label_of_a_matrix_is_cut_off(count, name):
    names = [name.format(i) for i in range(count)]
    figure = confusion_figure(names, 12 * np.eye(count, dtype=int), "boxes")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height
