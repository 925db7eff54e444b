"""What a network that nobody thought of costs: its composition, and no other change."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.boxes import BoxCode, top_k
from dcn_jax.detection.box_head import DetectionSelection, RoISampling
from dcn_jax.detection.records import Detections
from dcn_jax.detection.roi_head import RoIOutput, pool_rois
from dcn_jax.detection.rpn import RPN, AnchorSampling, Selection
from dcn_jax.detection.two_stage import TwoStage
from dcn_jax.modules import RoIPool
from dcn_jax.necks import Levels
from dcn_jax.trunk import Trunk
from tests.support import launch
from tests.support.tiny_detector import tiny_batch
from train import loop
from train.configs import digits
from train.metrics import read_metrics
from train.tasks.detection import Detection


class TwoLevels(nnx.Module):
    """A neck: proposals and RoIs from conv4 and conv5, reduced to 8 channels."""

    rpn_features = roi_features = 8

    def __init__(self, channels, strides, rngs):
        self.rpn_strides = self.roi_strides = (strides["c4"], strides["c5"])
        self.c4 = nnx.Conv(channels["c4"], 8, (1, 1), rngs=rngs)
        self.c5 = nnx.Conv(channels["c5"], 8, (1, 1), rngs=rngs)

    def __call__(self, maps, sizes=None):
        levels = self.c4(maps["c4"]), self.c5(maps["c5"])
        return Levels(levels, levels)


class LinearHead(nnx.Module):
    """A head without hidden layers, which has no representation to mimic."""

    code, loss_beta = BoxCode(), 1.0

    def __init__(self, pool, features, num_classes, strides, rngs):
        self.pool, self.strides, self.num_classes = pool, strides, num_classes
        self.linear = nnx.Linear(4 * features, num_classes + 1 + 4, rngs=rngs)

    def __call__(self, features, rois):
        x = pool_rois(self.pool, features, rois, self.strides)
        x = self.linear(x.reshape(*rois.shape[:2], -1))
        return RoIOutput(x[..., :-4], x[..., None, -4:], None)


class OneStage(nnx.Module):
    """The class-aware RPN alone: what it proposes is what it detects."""

    frozen_paths = ()

    def __init__(self, trunk, rpn):
        self.trunk, self.rpn = trunk, rpn

    def features(self, images, sizes):
        return self.trunk(images, sizes)

    def losses(self, batch, key):
        output = self.rpn(self.features(batch.images, batch.sizes))
        truth = batch.boxes, batch.labels, batch.valid
        return self.rpn.losses(output, self.rpn.targets(key, output, *truth))

    def predict(self, images, sizes):
        proposals = self.rpn.propose(self.rpn(self.features(images, sizes)), sizes)
        scores, index = top_k(jax.nn.sigmoid(proposals.logits), 5)
        boxes = jax.vmap(lambda b, i: b[i])(proposals.boxes, index)
        return Detections(boxes, scores, jnp.ones_like(index), scores > 0)


def trunk(rngs):
    body = ResNet((1, 1, 1, 1), stem_features=8, norm="group_norm", rngs=rngs)
    return Trunk(body, TwoLevels(body.channels, body.strides, rngs))


def proposals(neck, rngs, **options):
    sizes = dict(features=8, anchor_sizes=(16,), sampling=AnchorSampling(samples=16))
    few = dict(train=Selection(30, 10), test=Selection(30, 10))
    return RPN(
        neck.rpn_features, neck.rpn_strides, **sizes, **few, **options, rngs=rngs
    )


def two_stages(num_classes, rngs):
    base = trunk(rngs)
    strides = base.neck.roi_strides
    pool = RoIPool(2, spatial_scale=tuple(1 / s for s in strides))
    head = LinearHead(pool, 8, num_classes, strides, rngs)
    sampling, selection = RoISampling(8), DetectionSelection(max_detections=5)
    rpn = proposals(base.neck, rngs)
    return TwoStage(base, rpn, head, sampling=sampling, selection=selection)


def one_stage(num_classes, rngs):
    base = trunk(rngs)
    return OneStage(base, proposals(base.neck, rngs, num_classes=num_classes))


COMPOSED = {
    two_stages: (TwoLevels, LinearHead, trunk, proposals, two_stages),
    one_stage: (TwoLevels, OneStage, trunk, proposals, one_stage),
}


def lines_of_code(item):
    """Lines that are neither blank nor a docstring's."""
    text = inspect.getsource(item).splitlines()
    return len([t for t in text if t.strip() and not t.strip().startswith('"""')])


@pytest.mark.parametrize("make", COMPOSED)
def test_it_is_composed_in_under_40_lines(make):
    assert sum(map(lines_of_code, COMPOSED[make])) < 40


class NewNetwork(Detection):
    """Detection by one of the networks of this file."""

    def __init__(self, make):
        self._make = make

    def build(self, config, num_classes, rngs):
        return self._make(num_classes, rngs)


@pytest.mark.parametrize("make", COMPOSED)
def test_it_has_losses_and_predicts(make):
    model = nnx.eval_shape(lambda: make(3, nnx.Rngs(0)))
    batch = tiny_batch()
    losses = nnx.eval_shape(lambda m: m.losses(batch, jax.random.key(0)), model)
    assert losses and all(loss.shape == () for loss in losses.values())
    found = nnx.eval_shape(lambda m: m.predict(batch.images, batch.sizes), model)
    assert found.boxes.shape == (len(batch.images), 5, 4)


def test_no_file_says_that_it_is_another(tmp_path):
    task = NewNetwork(next(iter(COMPOSED)))
    with pytest.raises(ValueError, match="NewNetwork builds a network of its own"):
        task.write_network(tmp_path, digits.get_config(), [], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("make", COMPOSED)
def test_it_trains_and_is_evaluated(make, tmp_path):
    config = digits.get_config()
    for flag in launch.FLAGS[1:]:
        name, _, value = flag.removeprefix("--config.").partition("=")
        config.update_from_flattened_dict({name: eval(value)})
    config.data.data_dir = str(tmp_path / "data")
    config.update({"steps": 10, "batch_size": 8, "log": {"every": 1}})
    config.eval.update({"batch_size": 8, "every": 0})
    # optax's Adam mixes types, which the tests forbid.
    config.optim.update({"name": "sgd", "lr": 0.02, "warmup_steps": 0})
    loop.train(config, tmp_path / "run", NewNetwork(make))
    *steps, evaluation = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in steps] == list(range(1, 11))
    assert steps[-1]["skipped"] == 0
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert "eval/bbox/AP" in evaluation
