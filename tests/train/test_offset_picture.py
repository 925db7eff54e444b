"""Offsets of a network on an image, as a picture."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from dcn_jax.explain import figures
from dcn_jax.images.geometry import Geometry
from dcn_jax.modules import DeformConv
from train import sharding
from train.offset_picture import OffsetPicture
from train.skeleton import Skeleton

GEOMETRY = Geometry((48, 60), (24, 30), (32, 32))


class Network(nnx.Module):
    """So many deformable layers, the first of which has a stride."""

    def __init__(self, layers, rngs, *, stride=2):
        strides = [stride, *[1] * (layers - 1)][:layers]
        self.convs = nnx.List(
            [DeformConv(3, 3, (3, 3), strides=s, padding=1, rngs=rngs) for s in strides]
        )

    def features(self, images, sizes):
        x = images.astype(jnp.float32) / 255
        for conv in self.convs:
            x = conv(x)
        return x


class Vanishing(Network):
    """Its layers leave no record."""

    def features(self, images, sizes):
        x = images.astype(jnp.float32)
        return jax.vmap(lambda image: self.convs[0](image[None])[0])(x)


def fields_of(build, seed=0):
    skeleton, mesh = Skeleton(build), sharding.make_mesh()
    variables = skeleton.init(0)
    rng = np.random.default_rng(seed)
    for name, value in variables.items():
        if name.endswith("offset_conv.bias"):
            variables[name] = jnp.asarray(rng.standard_normal(value.shape), jnp.float32)
    arrays = {
        "images": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
        "sizes": np.full((8, 2), (24, 30), np.int32),
    }
    offsets = OffsetPicture(skeleton, mesh)
    found = offsets.fields(variables, sharding.to_devices(arrays, mesh))
    image = arrays["images"][0, :24, :30]
    return variables, found, offsets.png(found, image, GEOMETRY)


def test_the_last_layers_are_drawn():
    variables, found, png = fields_of(lambda rngs: Network(6, rngs))
    assert list(found) == [f"convs.{i}" for i in range(6)]
    # Of nine taps (dy, dx), and masks, what the branch adds everywhere.
    bias = variables["convs.5.offset_conv.bias"]
    field = found["convs.5"]
    assert field.offset.shape == (1, 16, 16, 1, 2) and field.mask is not None
    assert jnp.isfinite(bias).all() and np.ptp(field.offset) > 0
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    # Four of them, in a row.
    assert 1600 < picture.shape[1] < 1700 and 350 < picture.shape[0] < 500


def test_layers_are_counted_as_numbers(monkeypatch):
    _, found, _ = fields_of(lambda rngs: Network(1, rngs))
    (field,) = found.values()
    # As jit orders them.
    names = ("layer3.22", "layer3.7", "layer3.8", "layer3.9", "layer4.0")
    shown = []

    def row(image, title, fields):
        shown.extend(fields)
        return Figure()

    monkeypatch.setattr(figures, "offset_row", row)
    offsets = OffsetPicture(
        Skeleton(lambda rngs: Network(1, rngs)), sharding.make_mesh()
    )
    image = np.zeros((24, 30, 3), np.uint8)
    offsets.png(dict.fromkeys(names, field), image, GEOMETRY)
    assert shown == ["layer3.8", "layer3.9", "layer3.22", "layer4.0"]
    # A picture without room for one filter.
    assert offsets.png({"a": field}, image, GEOMETRY._replace(size=(0, 30))) is None


def test_networks_without_such_layers_have_none():
    _, found, png = fields_of(lambda rngs: Network(0, rngs))
    assert found == {} and png is None


def test_what_cannot_be_drawn_is_said(caplog):
    with caplog.at_level("INFO", logger="train"):
        _, found, png = fields_of(lambda rngs: Network(2, rngs, stride=3))
        assert len(found) == 2
        assert "offsets of convs.1: `coarse` is (11, 11); expected" in caplog.text
        # The other is drawn.
        picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert 400 < picture.shape[1] < 500
        _, found, png = fields_of(lambda rngs: Vanishing(1, rngs))
    assert found == {} and png is None
    assert "no picture of the offsets: `call`: convs.0 runs inside" in caplog.text
