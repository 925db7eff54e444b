"""Receptive fields of one image at several sizes, and the scores of runs at them.

The DCNv2 paper has the AP by the shorter side of the images. `train.evaluate` measures
that, and leaves it in the folder of a run; here it is read. Receptive fields are
measured here, and may say why a score falls.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dcn_jax.explain import area_side
from dcn_jax.explain.figures import ResolutionPanel, resolution_page
from dcn_jax.quoting import quoted
from train.evaluate import sweep_folder
from train.explain.network import ExplainedNetwork
from train.explain.nodes import Node, Position, RoI
from train.explain.pictures import save_figure
from train.explain.record import length_scale
from train.rules import SIDE, Several

_log = logging.getLogger("train")

# As of `eval.sweep`.
_SIDES = Several(SIDE, rising=True)
_KINDS: tuple[tuple[type, str], ...] = ((Position, "position"), (RoI, "RoI"))


def parse_sides(text: str) -> tuple[int, ...]:
    """Returns what `--resolutions` says.

    Raises:
      ValueError: It is neither empty nor rising numbers of pixels.
    """
    if not text:
        return ()
    try:
        sides = tuple(int(part) for part in text.split(","))
    except ValueError:
        sides = ()
    if not _SIDES.accepts(sides):
        raise ValueError(
            f"`--resolutions` is {quoted(text)}; expected {_SIDES}, as 400,600,800."
        )
    return sides


def save_resolutions(
    folder: Path,
    networks: Mapping[str, tuple[Path, ExplainedNetwork]],
    nodes: Sequence[Node],
    sides: Sequence[int],
) -> dict[str, Any]:
    """Draws the sides of receptive fields, and scores where runs have some.

    Args:
      folder: For the figure, `resolutions`.
      networks: As of `train.explain.run.open_networks`.
      nodes: On the given image.
      sides: Shorter sides in pixels, rising.

    Returns:
      What explanation.json says of it: `area_sides` are, for each network, those of
      each node at each side, in pixels of the given image.

    Raises:
      OSError: A file cannot be read or written.
      ValueError: An evaluation of a run is damaged.
    """
    scores = {
        name: _scores(workdir, network.step, sides)
        for name, (workdir, network) in networks.items()
    }
    found = {
        name: _area_sides(network, nodes, sides)
        for name, (_, network) in networks.items()
    }
    panels = _score_panels(scores)
    for i, node in enumerate(nodes):
        curves = {name: (sides, of_nodes[i]) for name, of_nodes in found.items()}
        kind = next(word for kind, word in _KINDS if isinstance(node, kind))
        title = node.label if kind in node.label else f"{node.label}, {kind}"
        value = "side of receptive field, pixels"
        panels.append(ResolutionPanel(title, value, curves))
    save_figure(folder / "resolutions", resolution_page(panels))
    return {"short_sides": list(sides), "area_sides": found, "scores": scores}


def _area_sides(
    network: ExplainedNetwork, nodes: Sequence[Node], sides: Sequence[int]
) -> list[list[float]]:
    """Of each node, at each side."""
    found: list[list[float]] = [[] for _ in nodes]
    for side in sides:
        _log.info("%s: receptive fields at a shorter side of %d", network.name, side)
        resized = network.at_side(side)
        scale = length_scale(resized.geometry)
        for kind, _ in _KINDS:
            chosen = [i for i, node in enumerate(nodes) if isinstance(node, kind)]
            if not chosen:
                continue
            fields = jnp.asarray(resized.receptive_fields([nodes[i] for i in chosen]))
            for i, area in zip(chosen, area_side(fields).tolist(), strict=True):
                found[i].append(area / scale)
    return found


def _scores(
    workdir: Path, step: int, sides: Sequence[int]
) -> dict[str, dict[int, float]]:
    """GROUP/NAME of the first score of each group -> side -> the score."""
    scores: dict[str, dict[int, float]] = {}
    for side in sides:
        path = sweep_folder(workdir, side) / "evaluation.json"
        if not path.exists():
            continue
        try:
            record = json.loads(path.read_text())
            if record.pop("step") != step:
                _log.warning("WARNING: %s is of another step, and left out", path)
                continue
            del record["data"]
            record.pop("figures", None)  # which older ones have not
            for group, values in record.items():
                if group.endswith("_per_class"):
                    continue
                for name, value in list(values.items())[:1]:
                    if value is not None:
                        scores.setdefault(f"{group}/{name}", {})[side] = value
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    if not scores:
        _log.info(
            "no scores by resolution in %s: `train.evaluate` writes them, with "
            "--config.eval.sweep",
            workdir,
        )
    return scores


def _score_panels(
    scores: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> list[ResolutionPanel]:
    """One panel for each score that a network has."""
    names = dict.fromkeys(name for of_run in scores.values() for name in of_run)
    return [
        ResolutionPanel(
            "all images of the evaluation",
            name.replace("/", " "),
            {
                network: (list(of_run[name]), list(of_run[name].values()))
                for network, of_run in scores.items()
                if name in of_run
            },
        )
        for name in names
    ]
