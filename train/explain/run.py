"""Explains an image to its files: one network, or several beside one another."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config_dict import ConfigDict
from train.explain.network import ExplainedNetwork, Explanation
from train.explain.nodes import (
    Node,
    Position,
    RoI,
    check_node,
    choose_nodes,
    labelled,
)
from train.explain.pictures import save_nodes, save_offsets
from train.explain.record import explanation_record, network_record, node_record
from train.explain.resolutions import save_resolutions
from train.run_config import config_path, read_config
from train.task import Task
from train.whole_file import write_whole

_log = logging.getLogger("train")

# Of nodes: their class, and their sheet.
_KINDS: tuple[tuple[type, str], ...] = ((Position, "figure1"), (RoI, "figure2"))


def open_networks(
    config: ConfigDict,
    workdir: Path,
    beside: Sequence[Path],
    task: Task,
    image: np.ndarray,
) -> dict[str, tuple[Path, ExplainedNetwork]]:
    """Loads the newest checkpoints of runs.

    Args:
      config: The configuration of the first run.
      workdir: Its folder.
      beside: Folders of others, which have their configurations in them.
      task: Of all of them.
      image: [H, W, 3] uint8 RGB.

    Returns:
      Name -> folder and network, the first one first. Names are those of the
      configurations, or the folders where two have the same.

    Raises:
      OSError: There is no checkpoint or no configuration.
      ValueError: One is at fault, a run is of another task, or a folder is named twice.
    """
    runs = {workdir: config}
    for folder in beside:
        other = read_config(config_path(folder))
        if other.get("task") != config.task:
            raise ValueError(
                f"`--beside` is {folder}, whose `task` is {other.get('task')!r}; "
                f"expected a run of {config.task!r}, as that of `--config`."
            )
        if folder in runs:
            raise ValueError(f"`--beside` is {folder}, which is explained already.")
        task.check(other)
        runs[folder] = other
    names = [run.name for run in runs.values()]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in runs]
    return {
        name: (folder, ExplainedNetwork(run, folder, task, image))
        for name, (folder, run) in zip(names, runs.items(), strict=True)
    }


def explain_image(
    networks: Mapping[str, tuple[Path, ExplainedNetwork]],
    shown: Mapping[str, Any],
    given: Sequence[Node | None],
    output: Path,
    *,
    score: float,
    max_passes: int,
    viewer: bool,
    sides: Sequence[int] = (),
) -> None:
    """Writes pictures and explanation.json.

    Args:
      networks: As of `open_networks`.
      shown: What the record says of the image.
      given: Nodes; None stands for those that the first network finds.
      output: Folder for the results.
      score: Lowest score of an object that is found.
      max_passes: As of `saliency_region`, for each node and network.
      viewer: Whether to write viewer1.html and so on, which take longer.
      sides: Shorter sides of the image that receptive fields are measured at.

    Raises:
      OSError: A file cannot be written.
      ValueError: A node is not on the image, says nothing, or is a RoI of a network
        that has none.
    """
    explained = {name: network for name, (_, network) in networks.items()}
    first = next(iter(explained.values()))
    for node in filter(None, given):
        check_node(node, first.geometry.original)
    # Where a run beside the first cannot follow, it is told before the long work.
    rois = all(network.sees_rois for network in explained.values())
    nodes: list[Node] = []
    for node in given:
        nodes += [node] if node is not None else _found(first, score, rois)
    output.mkdir(parents=True, exist_ok=True)
    names = [f"node{number}" for number in range(1, len(nodes) + 1)]
    records: list[dict[str, Any]] = [
        {**node_record(node), "pictures": name}
        for node, name in zip(nodes, names, strict=True)
    ]
    for kind, sheet_name in _KINDS:
        chosen = [i for i, node in enumerate(nodes) if isinstance(node, kind)]
        if not chosen:
            continue
        found = {
            name: network.explain([nodes[i] for i in chosen], max_passes)
            for name, network in explained.items()
        }
        save_nodes(output, explained, found, [names[i] for i in chosen], sheet_name)
        for row, i in enumerate(chosen):
            records[i]["explanations"] = {
                name: explanation_record(seen[row], explained[name].geometry)
                for name, seen in found.items()
            }
            _say(nodes[i], {name: seen[row] for name, seen in found.items()})
    about = []
    for number, (folder, network) in enumerate(networks.values(), 1):
        offsets = save_offsets(output, number, network)
        if viewer:
            network.write_viewer(output / f"viewer{number}.html", score)
        about.append({**network_record(network, str(folder)), "offsets": offsets})
    height, width = first.geometry.original
    record: dict[str, Any] = {
        "image": {**shown, "size": [width, height]},
        "networks": about,
        "nodes": records,
    }
    if sides:
        record["resolutions"] = save_resolutions(output, networks, nodes, sides)
    write_whole(output / "explanation.json", json.dumps(record) + "\n")
    _log.info("%d nodes explained: see %s", len(nodes), output)


def _found(network: ExplainedNetwork, score: float, rois: bool) -> list[Node]:
    boxes = network.boxes(score)
    if not len(boxes):
        _log.info(
            "%s finds no object with a score of at least %g: the middle of the image "
            "is explained",
            network.name,
            score,
        )
    nodes = choose_nodes(boxes, network.geometry.original, network.pixels, rois=rois)
    _log.info("nodes: %s", labelled(nodes))
    return nodes


def _say(node: Node, seen: Mapping[str, Explanation]) -> None:
    for name, found in seen.items():
        region = found.saliency
        _log.info(
            "%s, %s: saliency region of %.1f %% of the image, error %.3f%s",
            node.label,
            name,
            100 * region.region.mean(),
            region.error,
            "" if region.complete else " (--max_passes ended its search)",
        )
