"""Every field of a run, commented once; a task's sections stand beside this file."""

from train.config_dict import ConfigDict
from train.rules import (
    BATCH,
    COUNT,
    NONNEGATIVE,
    SHARE,
    SIDE,
    WHOLE,
    EmptyOr,
    Integer,
    Number,
    OneOf,
    Pattern,
    Row,
    Rule,
    Several,
    Text,
)


def get_config() -> ConfigDict:
    """Returns the defaults, with the paper's recipe."""
    config = ConfigDict()
    # What is trained: a key of train.tasks.TASKS.
    config.task = ""
    # Name of the experiment: without --workdir the run goes to runs/<name>.
    config.name = "base"
    # Seed of the initial parameters, the order of the images and all sampling.
    config.seed = 0
    # Type of the computation, "float32" or "bfloat16"; parameters stay float32.
    config.dtype = "float32"
    # File of weights to start from, of a ResNet or of a whole network, or "": see
    # dcn_jax.weights.init_from.
    config.init_from = ""
    # Length of the run: passes over the training images ...
    config.epochs = 16.0
    # ... or optimiser steps, where this is not 0.
    config.steps = 0
    # Images of one optimiser step, over all devices and processes.
    config.batch_size = 16
    # Folder that keeps compiled programs, so that a restart compiles nothing, or "".
    config.compile_cache = ""

    config.data = data = ConfigDict()
    # Data set: a name that train.data.source.make_source knows.
    data.name = "coco_instances"
    # Where prepared data sets are kept.
    data.data_dir = "data"
    # Options of the data set's builder: fields of its BuilderConfig.
    data.options = ConfigDict()
    # Split that is trained on ...
    data.train_split = "train"
    # ... and the one that evaluations judge.
    data.eval_split = "val"
    # (height, width) of the arrays that images are fitted into; each is compiled once.
    data.canvases = ((800, 1344), (1344, 800), (1088, 1088))
    # Training draws the short side of an image from these; none exceeds max_side.
    data.short_sides = (800,)
    # Short side in evaluation and prediction.
    data.eval_short_side = 800
    # Cap of the long side.
    data.max_side = 1333
    # (height, width) of the window, at a random place of each resized image, that
    # training shows in its place, padded where the image is smaller; `canvases` are of
    # evaluation alone then. (): whole images.
    data.crop = ()
    # Mirror every other training image, by chance.
    data.flip = True
    # Leave images without usable ground truth out of training.
    data.skip_empty = True
    # Turn photographs as their orientation tag (Exif) says, because the annotations
    # mean them as they are shown; COCO's mean the stored pixels.
    data.upright = False
    # Larger image files are refused before they are decoded: width * height.
    data.max_pixels = 64_000_000
    # Processes that read images for each of the run's; 0: the run's own threads do.
    # Batches are the same.
    data.workers = 0

    config.optim = optim = ConfigDict()
    # "sgd" (with momentum) or "adamw".
    optim.name = "sgd"
    # Peak rate, for batch_size images a step: scale both together.
    optim.lr = 0.02
    # Of "sgd".
    optim.momentum = 0.9
    # Not applied to biases and norms.
    optim.weight_decay = 1e-4
    # The rate rises linearly from warmup_factor * lr during the first warmup_steps.
    optim.warmup_steps = 500
    # Share of the peak rate that the first step has.
    optim.warmup_factor = 1 / 3
    # At these fractions of the run the rate is multiplied by decay_factor ...
    optim.decay_at = (10 / 16, 14 / 16)
    # ... which is this.
    optim.decay_factor = 0.1
    # (regular expression, factor): multiplies the rate of the parameters whose path
    # it matches, the first match wins; 0 freezes them.
    optim.lr_multipliers = ((r"\.offset_conv\.", 0.1),)
    # Gradients are scaled down to this global norm; 0: never.
    optim.clip_norm = 35.0

    config.mesh = mesh = ConfigDict()
    # Devices that share each wide fully connected layer; the rest divide the batch.
    mesh.model = 1

    config.log = log = ConfigDict()
    # Steps between log lines.
    log.every = 50
    # Steps between measurements of the offsets (a multiple of `every`); 0: never.
    log.offset_health_every = 500
    # Report to Weights & Biases as well.
    log.wandb = False

    config.checkpoint = checkpoint = ConfigDict()
    # Steps between checkpoints; the last step is always saved.
    checkpoint.every = 2000
    # How many of the newest are kept.
    checkpoint.keep = 2

    config.eval = evaluation = ConfigDict()
    # Steps between evaluations, or below 1 the share of the run between them; the end
    # has one too. 0: only the end. By default they are eight, two epochs apart.
    evaluation.every = 0.125
    # Images of one call of the network, over all devices.
    evaluation.batch_size = 8
    # How many of the images are drawn with what is predicted of them.
    evaluation.pictures = 8
    # What has a lower score is not drawn (all of it counts in the metric).
    evaluation.picture_score = 0.5
    # Short sides at which train.evaluate evaluates too, with the canvases and the cap
    # of the long side in proportion.
    evaluation.sweep = ()
    return config


# What the fields above may hold, where the type of the default does not say it.
RULES: dict[str, Rule] = {
    "task": Text(empty=False),
    "name": Text(empty=False),
    "seed": WHOLE,
    "epochs": NONNEGATIVE,
    "steps": WHOLE,
    "batch_size": BATCH,
    "data.name": Text(empty=False),
    "data.data_dir": Text(empty=False),
    "data.train_split": Text(empty=False),
    "data.eval_split": Text(empty=False),
    "data.canvases": Several(Row((SIDE, SIDE))),
    "data.short_sides": Several(SIDE),
    "data.eval_short_side": SIDE,
    "eval.sweep": Several(SIDE, empty=True, rising=True),
    "data.max_side": SIDE,
    "data.crop": EmptyOr(Row((SIDE, SIDE))),
    "data.max_pixels": COUNT,
    "data.workers": Integer(0, 256),
    "optim.name": OneOf(("sgd", "adamw")),
    "optim.lr": NONNEGATIVE,
    "optim.momentum": SHARE,
    "optim.weight_decay": NONNEGATIVE,
    "optim.warmup_steps": WHOLE,
    "optim.warmup_factor": SHARE,
    "optim.decay_at": Several(Number(0, 1, above=True), empty=True, rising=True),
    "optim.decay_factor": NONNEGATIVE,
    "optim.lr_multipliers": Several(Row((Pattern(), NONNEGATIVE)), empty=True),
    "optim.clip_norm": NONNEGATIVE,
    "mesh.model": COUNT,
    "log.every": COUNT,
    "log.offset_health_every": WHOLE,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
    "eval.every": NONNEGATIVE,
    "eval.batch_size": BATCH,
    "eval.pictures": WHOLE,
    "eval.picture_score": SHARE,
}
