"""Images a second that the training loader reads, with 0, 1 and 2 worker processes.

    python -m scripts.benchmark.loader [--images=200] [--rounds=3] [--write]

Of deformed_digits at the demo's settings, and of JPEGs of 640x480, as most of COCO's
are, at the paper's. Both are made on the spot, in a temporary folder. Nothing but the
loader runs; a loader is opened anew for each of its turns, and the first batches, which
wait for processes to start, do not count.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from absl import logging as absl_logging

from scripts.benchmark.markdown import replace_section, section
from scripts.benchmark.ops import DOCUMENT
from scripts.benchmark.timing import processor, thread_count
from train import inputs
from train.config_dict import ConfigDict
from train.configs import coco_faster_rcnn, digits
from train.data.source import Source
from train.tasks.detection import Detection

BEGIN = "<!-- benchmark loader: begin -->"
END = "<!-- benchmark loader: end -->"
TASK = Detection()
WORKERS = (0, 1, 2)

_HEIGHT, _WIDTH = 480, 640
_SPLIT = "train2017"
_BOXES = 7  # of an image: COCO's mean


def write_photographs(folder: Path, count: int) -> None:
    """Writes a folder like COCO's: smooth noise with a little grain, and boxes."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / _SPLIT).mkdir(parents=True)
    for number in range(1, count + 1):
        coarse = rng.integers(0, 256, (_HEIGHT // 16, _WIDTH // 16, 3), np.uint8)
        pixels = cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 8, pixels.shape)
        name = f"{number:012d}.jpg"
        shaded = np.clip(pixels + grain, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / _SPLIT / name), shaded)
        images.append(
            {"id": number, "file_name": name, "height": _HEIGHT, "width": _WIDTH}
        )
        for _ in range(_BOXES):
            x, y = int(rng.integers(0, _WIDTH - 96)), int(rng.integers(0, _HEIGHT - 96))
            width, height = (int(n) for n in rng.integers(16, 96, 2))
            right, below = x + width, y + height
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [[x, y, right, y, right, below, x, below]],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = folder / "annotations" / f"instances_{_SPLIT}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))


def configurations(folder: Path, images: int) -> dict[str, ConfigDict]:
    """Configurations by the title of their row; both read what lies in the folder."""
    demo = digits.get_config()
    demo.data.options.update({"train_images": images, "test_images": 1})
    coco = coco_faster_rcnn.get_config("dcnv2,800")
    coco.data.options.folder = str(folder / "coco")
    # One GPU's share, of the paper's eight.
    coco.batch_size = 2
    for config in (demo, coco):
        config.data.data_dir = str(folder / "prepared")
    write_photographs(folder / "coco", images)
    return {
        "deformed_digits, 256x256": demo,
        "JPEGs of 640x480, short side 800": coco,
    }


def images_a_second(config: ConfigDict, source: Source, images: int) -> float:
    """Of a loader that is opened, warmed up and closed."""
    with contextlib.closing(inputs.open_train_loader(config, TASK, source)) as loader:
        # More than lie ready in any buffer.
        for _ in range(8):
            next(loader)
        batches = max(1, images // config.batch_size)
        begin = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return batches * config.batch_size / (time.perf_counter() - begin)


def measure(
    config: ConfigDict, source: Source, images: int, rounds: int
) -> dict[int, float]:
    """Medians by the number of workers, which take turns."""
    found: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _, workers in itertools.product(range(rounds), WORKERS):
        config.data.workers = workers
        found[workers].append(images_a_second(config, source, images))
    return {workers: statistics.median(times) for workers, times in found.items()}


def table(found: dict[str, dict[int, float]], rounds: int) -> str:
    """The Markdown of what was measured."""
    headings = [
        "images a second",
        *(f"{n} worker{'s' * (n != 1)}" for n in WORKERS),
        "1 / 0",
        "2 / 0",
    ]
    rows = [
        [
            title,
            *(f"{speeds[n]:.0f}" for n in WORKERS),
            *(f"{speeds[n] / speeds[0]:.2f}" for n in WORKERS[1:]),
        ]
        for title, speeds in found.items()
    ]
    text = (
        f"{processor()}, {thread_count()} threads. Rounds: {rounds}, whose "
        f"medians these are; {datetime.date.today().isoformat()}."
    )
    return section("Images of the training loader", text, headings, rows)


def main() -> None:
    """Measures, and prints or writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help=f"into docs/{DOCUMENT.name}"
    )
    options = parser.parse_args()
    # As in a run: grain reads the flags, and libraries are quiet.
    flags.FLAGS.mark_as_parsed()
    absl_logging.set_verbosity(absl_logging.FATAL)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, config in configurations(Path(folder), options.images).items():
            source = inputs.open_source(config, TASK, config.data.train_split)
            found[title] = measure(config, source, options.images, options.rounds)
    text = table(found, options.rounds)
    if options.write:
        replace_section(DOCUMENT, text, BEGIN, END)
    else:
        print(text)


if __name__ == "__main__":
    main()
