"""What is compiled for which machine."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from scripts.aot.machines import Machine
from scripts.aot.operators import lower_nms, operators
from scripts.benchmark.train_step import abstract_batch, make_detection, make_step
from train import sharding
from train.config_dict import ConfigDict
from train.configs import coco_faster_rcnn, dcnv1, dcnv2, digits

_CLASSES = {"coco_instances": 80, "deformed_digits": 10, "cityscapes": 19}
_CONVOLUTION = ("list", "gather", "visit", "columns")
# Forms of the operators in the short form.
_SHORT = ("bfloat16", "float32, vmap")
# Of a small step, which compiles in a minute: the same network, shallow and narrow.
_SMALL = {
    "model.backbone.depths": (1, 1, 1, 1),
    "model.backbone.stem_features": 16,
    "model.backbone.frozen_stages": 0,
    "model.neck.features": 64,
    "model.rpn.features": 64,
    "model.rpn.train.pre_nms_top_n": 1000,
    "model.rpn.train.post_nms_top_n": 200,
    "model.pool.hidden_features": 64,
    "model.box.features": 64,
    "model.sampling.samples": 64,
    "model.mimic.count": 4,
    "model.mimic.crop_size": 64,
}


class Program(NamedTuple):
    """What is compiled.

    Attributes:
      title: In tables.
      lower: From the mesh, whose axis "data" splits a batch, to what jit lowered.
      targets: Our calls that must be in it on CUDA.
      short: Whether it is part of the short form.
    """

    title: str
    lower: Callable[[Mesh], Any]
    targets: frozenset[str]
    short: bool = False


def programs(machine: Machine) -> Iterator[Program]:
    """Those for a machine."""
    yield from _operator_programs(machine)
    small = coco_faster_rcnn.get_config("dcnv2_mimic,800")
    small.update_from_flattened_dict(_SMALL)
    if machine.name == "H100":
        yield _step("train step, small", small, (128, 160), short=True)
    for row, size, canvas in _rows(machine):
        config = coco_faster_rcnn.get_config(f"{row},{size}")
        title = f"{row}, {canvas[0]}x{canvas[1]}"
        yield _step(f"train step, {title}", config, canvas)
    if machine.name.endswith("H100"):
        masks = dcnv2.get_config("table3/mask/dcnv2/fg")
        yield _step("train step, mask_dcnv2_mimic, 1008x1344", masks, (1008, 1344))
        yield _detection("detection, mask_dcnv2, 1008x1344", masks, (1008, 1344))
        yield from _first_paper()
    config = coco_faster_rcnn.get_config("dcnv2,800")
    yield _detection("detection, dcnv2, 800x1344", config, (800, 1344))
    if machine.name == "H100":
        config = digits.get_config()
        yield _step("train step, digits, 256x256", config, (256, 256))
        yield _detection("detection, digits, 256x256", config, (256, 256))


def _first_paper() -> Iterator[Program]:
    """Its deformable rows, on COCO's usual photograph and on Cityscapes.

    There crops are trained on, and whole images labelled.
    """
    canvas = (608, 800)
    for network, row in (
        ("r_fcn", "table5/rfcn/deformable"),
        ("class_aware_rpn", "table5/rpn/deformable"),
    ):
        config = dcnv1.get_config(row)
        yield _step(f"train step, {network}, 608x800", config, canvas)
        yield _detection(f"detection, {network}, 608x800", config, canvas)
    config = dcnv1.get_config("table1/deeplab_cityscapes/3")
    yield _step("train step, deeplab, 768x1024", config, config.data.crop)
    yield _detection("labels, deeplab, 1024x2048", config, (1024, 2048))


def _rows(machine: Machine) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Rows of the paper's tables, short sides and canvases."""
    yield "dcnv2_mimic", 800, (800, 1344)
    if machine.name == "H100":
        yield "dcnv2", 800, (800, 1344)
        yield "regular", 800, (800, 1344)
        yield "dcnv2_mimic", 1000, (1008, 1680)


def _operator_programs(machine: Machine) -> Iterator[Program]:
    forms: dict[str, dict[str, Any]] = {
        "bfloat16": dict(dtype=jnp.bfloat16),
        "float32": dict(dtype=jnp.float32),
        "float32, vmap": dict(dtype=jnp.float32, mapped=True),
    }
    if machine.name == "A100" or machine.platform == "tpu":
        del forms["float32, vmap"]
    for operator in operators():
        for form, options in forms.items():
            half = options["dtype"] == jnp.bfloat16
            if half and "float32" in operator.name:
                continue
            yield Program(
                f"{operator.name}; {form}",
                functools.partial(operator.lower, **options),
                operator.targets,
                form in _SHORT,
            )
    nms = frozenset({"dcn_jax.nms"})
    for form, options in forms.items():
        if options["dtype"] == jnp.float32:
            lower = functools.partial(lower_nms, **options)
            yield Program(f"nms; {form}", lower, nms, form in _SHORT)


def _step(
    title: str, config: ConfigDict, canvas: tuple[int, int], *, short: bool = False
) -> Program:
    def lower(mesh: Mesh) -> Any:
        train = make_step(config, _CLASSES[config.data.name], mesh)
        batch = _batch(config, canvas, mesh)
        return train.step.lower(train.state, batch)

    _to_bfloat16(config)
    return Program(title, lower, _targets(config, ("fwd", "bwd")), short)


def _detection(title: str, config: ConfigDict, canvas: tuple[int, int]) -> Program:
    def lower(mesh: Mesh) -> Any:
        detect, variables = make_detection(config, _CLASSES[config.data.name], mesh)
        batch = _batch(config, canvas, mesh)
        return detect.lower(variables, images=batch.images, sizes=batch.sizes)

    _to_bfloat16(config)
    return Program(title, lower, _targets(config, ("fwd",)))


def _to_bfloat16(config: ConfigDict) -> None:
    # As one trains on a GPU. The demo's configuration stays as it is.
    if config.data.name != "deformed_digits":
        config.dtype = "bfloat16"


def _batch(config: ConfigDict, canvas: tuple[int, int], mesh: Mesh) -> Any:
    """The paper's 2 images of each device; the demo's batch."""
    each = config.batch_size if config.data.name == "deformed_digits" else 2
    images = each * mesh.shape["data"]
    return abstract_batch(config, images, canvas, sharding.divided(mesh))


# Network -> its calls beside those of the backbone, without their parts.
_POOLING = {"r_fcn": "ps_roi_pool", "class_aware_rpn": None, "deeplab": None}


def _targets(config: ConfigDict, parts: tuple[str, ...]) -> frozenset[str]:
    names = set()
    if pooling := _POOLING.get(config.network, "roi_pool"):
        names |= {f"{pooling}.{part}" for part in parts}
    # In training the class-aware RPN proposes nothing.
    if pooling or (config.task == "detection" and "bwd" not in parts):
        names.add("nms")
    if any(config.model.backbone.deform_blocks):
        backward = "bwd" in parts
        names |= {
            f"deform_conv2d.{kernel}"
            for kernel in _CONVOLUTION
            if backward or kernel == "columns"
        }
    return frozenset(f"dcn_jax.{name}" for name in names)


def mesh_of(machine: Machine) -> Mesh:
    """The machine's devices, which are not there."""
    topology = topologies.get_topology_desc(**machine.topology())
    return sharding.make_mesh(devices=topology.devices[: machine.devices])
