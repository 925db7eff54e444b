"""A detector for a small data set of one's own, from somebody's weights, on a CPU.

    python -m train.main --config=train/configs/finetune.py[:mask] --workdir=runs/own \
        --config.data.options.folder=FOLDER --config.init_from=WEIGHTS

FOLDER holds train/, val/ and annotations/instances_{train,val}.json, as COCO's;
`data.train_split`, `data.eval_split`, `data.options.images` and `.annotations` name
other layouts. WEIGHTS is a Faster R-CNN with ResNet-50 and a feature pyramid of
torchvision, detectron2 or mmdetection, a `detector.safetensors` of a run like this one,
or torchvision's ResNet-50 alone; ":mask" is Mask R-CNN, which learns masks too.

The last two stages deform. Their offsets and masks start so that the network computes
what that of the weights does. What is before them stays as it is. Weights that deform
in three stages, mmdetection's "mdconv_c3-c5" say, want
--config.model.backbone.deform_blocks=(0,-1,-1,-1), quoted, and
--config.model.backbone.mask_scale=1. Images are small, and shown on one canvas, which
makes one program to compile.
"""

from train.config_dict import ConfigDict
from train.configs import dcnv2

_NETWORKS = {"": "faster_rcnn_fpn", "mask": "mask_rcnn_fpn"}
_LAYERS = dcnv2.Layers((0, 0, -1, -1), modulated=True)


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration of Faster R-CNN, or of Mask R-CNN.

    Raises:
      ValueError: `arg` is neither "" nor "mask".
    """
    if arg not in _NETWORKS:
        raise ValueError(f"finetune.py:{arg}: expected no argument or 'mask'.")
    config = dcnv2.make_config(_NETWORKS[arg], _LAYERS, 800)
    config.name = f"finetune_{arg}" if arg else "finetune"
    config.steps = 480
    config.batch_size = 2

    data = config.data
    data.train_split, data.eval_split = "train", "val"
    data.canvases = ((416, 416),)
    data.short_sides = (256, 288, 320)
    data.eval_short_side = 320
    data.max_side = 416

    model = config.model
    # Times 2 a mask of the start is 1: nothing of the weights is halved.
    model.backbone.mask_scale = 2
    model.backbone.frozen_stages = 3
    model.rpn.train.update({"pre_nms_top_n": 1000, "post_nms_top_n": 500})
    model.rpn.test.update({"pre_nms_top_n": 500, "post_nms_top_n": 300})
    model.sampling.samples = 128

    optim = config.optim
    optim.lr = 0.0025
    optim.warmup_steps = 30
    optim.decay_at = (0.7, 0.9)

    config.log.every = 10
    config.log.offset_health_every = 0
    config.checkpoint.every = 120
    config.checkpoint.keep = 1
    config.eval.every = 20
    config.eval.batch_size = 4
    return config
