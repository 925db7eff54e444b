"""Shows what networks see of an image: pictures, and the numbers in them.

`python -m train.explain --workdir=DIR [--output=DIR] IMAGE` uses the
newest checkpoint of a run. `--example=N` takes the place of IMAGE: the image of that
number, from 0, of the evaluation's split, as in pictures/ of the run's folder.
`--node=x,y` explains a position of the network's last backbone map, the nearest to a
pixel of the image as it is shown (upright); `--node=roi=x1,y1,x2,y2` a region of it, by
what the detector's last fully connected layer says; `--node=auto` a small object, a
large one and the background, found by the network itself. It can be given again.
`--beside=WORKDIR`, too, adds another run, on the same nodes.

DIR, "explanation" by default, gets as PNG and SVG: a page for each node (node1, ...),
the papers' sheets (figure1 of positions, figure2 of RoIs), the offsets of each
deformable layer as arrows (offsets1_LAYER of the first run), and explanation.json.
With `--resolutions=SIDE,SIDE,...` it gets `resolutions` as well: receptive fields, and
scores of `eval.sweep`, by the image's shorter side.
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from train import cli, inputs, interrupt
from train.config_dict import ConfigDict
from train.evaluate import output_folder
from train.explain.nodes import AUTO, parse_node
from train.explain.resolutions import parse_sides
from train.explain.run import explain_image, open_networks
from train.predict import check_score, lowest_score, read_upright
from train.task import Task

_NODES = flags.DEFINE_multi_string(
    "node",
    [AUTO],
    "What is explained: x,y, roi=x1,y1,x2,y2 or auto; repeated for more.",
)
_BESIDE = flags.DEFINE_multi_string(
    "beside",
    [],
    "Folder of a run that is explained beside the first; repeated for more.",
)
_EXAMPLE = flags.DEFINE_integer(
    "example", None, "Number of an image of the evaluation's split, in place of IMAGE."
)
_MAX_PASSES = flags.DEFINE_integer(
    "max_passes",
    2000,
    "How many masked images the search of a saliency region may try.",
    lower_bound=33,
)
_VIEWER = flags.DEFINE_bool(
    "viewer", False, "Write a page, too, that explains any place that one points at."
)

_RESOLUTIONS = flags.DEFINE_string(
    "resolutions",
    "",
    "Shorter sides of the image, as 400,600,800, to compare receptive fields at.",
)


def read_image(
    config: ConfigDict, task: Task, files: Sequence[str], example: int | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Returns what the record says of the image, and the image.

    Args:
      config: Of the first run.
      task: Of it.
      files: What the command line names.
      example: Number of an image of `data.eval_split`, in place of a file.

    Raises:
      OSError: The file cannot be read.
      ValueError: There is not one image, or it is broken or too large.
    """
    if (example is not None) + len(files) != 1:
        both = [*files, *([] if example is None else [f"--example={example}"])]
        raise ValueError(
            f"Expected one image file, or --example; got {', '.join(both) or 'none'}."
        )
    if example is None:
        path = os.path.expanduser(files[0])
        return {"file_name": path}, read_upright(path, config.data.max_pixels)
    split = config.data.eval_split
    source = inputs.open_source(config, task, split)
    if not 0 <= example < len(source):
        raise ValueError(
            f"`--example` is {example}; expected a number from 0 to below "
            f"{len(source)}, the images of {split!r}."
        )
    return {"example": example, "split": split}, source[example].image


@interrupt.interruptible
def main(arguments: list[str], task: Task) -> None:
    """Explains the image that the arguments name."""
    # Before the model is loaded: mistakes show at once.
    nodes = [parse_node(text) for text in _NODES.value]
    sides = parse_sides(_RESOLUTIONS.value)
    check_score(lowest_score())
    config = cli.config()
    shown, image = read_image(config, task, arguments, _EXAMPLE.value)
    beside = [Path(os.path.expanduser(folder)) for folder in _BESIDE.value]
    networks = open_networks(config, cli.workdir(), beside, task, image)
    explain_image(
        *(networks, shown, nodes, output_folder() or Path("explanation")),
        score=lowest_score(),
        max_passes=_MAX_PASSES.value,
        viewer=_VIEWER.value,
        sides=sides,
    )


if __name__ == "__main__":
    cli.run(main)
