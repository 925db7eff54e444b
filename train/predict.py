"""Finds objects in image files.

`python -m train.predict --config=... [--workdir=...] [--output=DIR] IMAGES...` uses the
newest checkpoint of a run. DIR gets every image with its detections drawn, and
predictions.json: a list of {"file_name", "label", "category_id", "bbox", "score"} with
boxes as x, y, width, height in pixels of the image as it is shown (upright).
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import json
import logging
from pathlib import Path
from typing import Any

import jax
from absl import flags

from train import cli, draw, interrupt, sharding
from train.data import transforms
from train.evaluate import load_variables, make_detect, original_boxes

_log = logging.getLogger("train")

_OUTPUT = flags.DEFINE_string("output", "predictions", "Folder for what is found.")
_SCORE = flags.DEFINE_float("score", 0.5, "Lowest score of what is drawn and listed.")


@interrupt.interruptible
def main(arguments: list[str]) -> None:
    """Writes pictures and predictions.json for the images named as arguments."""
    if not arguments:
        raise ValueError("Expected image files as arguments.")
    config, output = cli.config(), Path(_OUTPUT.value).expanduser()
    data = config.data
    # Before the model is loaded: mistakes show at once.
    for path in arguments:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such image file")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    _, skeleton, variables, description = load_variables(config, cli.workdir(), mesh)
    categories = description["categories"]
    names = [category["name"] for category in categories]
    detect = make_detect(skeleton, mesh)
    records: list[dict[str, Any]] = []
    for number, path in enumerate(arguments):
        image = transforms.read_image(path, data.max_pixels, upright=True)
        canvas, size, scale = transforms.fit_image(
            image,
            canvases=data.canvases,
            short_side=data.eval_short_side,
            max_side=data.max_side,
        )
        found = jax.device_get(detect(variables, canvas[None], size[None]))
        best = found.valid[0] & (found.scores[0] >= _SCORE.value)
        boxes, scores, labels, _ = (field[0][best] for field in found)
        boxes = original_boxes(boxes, scale)
        picture = draw.draw_detections(image, boxes, scores, labels.tolist(), names)
        draw.save_picture(output / f"{number:03}_{Path(path).stem}.png", picture)
        for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True):
            category = categories[label - 1]
            records.append(
                {
                    "file_name": path,
                    "label": category["name"],
                    "category_id": category["id"],
                    "bbox": [float(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "score": float(score),
                }
            )
    path = output / "predictions.json"
    path.write_text(json.dumps(records, indent=2) + "\n")
    _log.info("%d objects in %d images: see %s", len(records), len(arguments), output)


if __name__ == "__main__":
    cli.run(main)
