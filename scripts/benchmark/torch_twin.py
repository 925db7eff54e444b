"""Trains and detects with torchvision's parts, for `scripts.benchmark.step`.

    PYTHON -m scripts.benchmark.torch_twin THREADS

PYTHON is an interpreter that has torch, torchvision and numpy, and needs nothing else.
Commands, see `scripts.benchmark.torch_answers`:

    {"do": "load", "name", "model", "optim", "num_classes", "path"}
                                           makes a network, of the sections of a
                                           configuration, with the tensors of a npz file
    {"do": "time", "name", "part"}         seconds of a "train step" or a "detection"
    {"do": "losses", "name"}               losses of the last train step, by name
    {"do": "detections", "name", "path"}   writes those of a detection to a npz file

Beside the network's tensors, the npz file holds the image [3, H, W], 0 to 255, and the
ground truth, as "image", "boxes" and "labels".
"""

# pyright: reportMissingImports=false

import re
import sys
import time

import numpy as np
import torch
from torch import nn

from scripts.benchmark.torch_answers import serve
from scripts.benchmark.torch_network import FasterRCNN

# torchvision's name of what is to be minimised: ours.
_LOSSES = {
    "loss_objectness": "rpn_class",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
}


class Twin:
    """A network with its optimiser, an image and its ground truth."""

    def __init__(self, model: dict, optim: dict, num_classes: int, path: str):
        tensors = {name: torch.from_numpy(a) for name, a in np.load(path).items()}
        self.image = tensors.pop("image")[None]
        labels = tensors.pop("labels").long()
        self.targets = [{"boxes": tensors.pop("boxes"), "labels": labels}]
        self.network = FasterRCNN(model, num_classes)
        self.network.load_state_dict(tensors)
        trained = {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = torch.optim.SGD(
            [
                {
                    "params": [parameter],
                    "lr": optim["lr"] * _factor(name, optim["lr_multipliers"]),
                    "weight_decay": optim["weight_decay"] * (parameter.ndim > 1),
                }
                for name, parameter in trained.items()
            ],
            momentum=optim["momentum"],
        )
        self.trained, self.clip_norm = list(trained.values()), optim["clip_norm"]
        self.losses: dict[str, float] = {}

    def train_step(self):
        """Losses, gradients, update."""
        self.network.train()
        losses = self.network(self.image, self.targets)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimizer.step()
        self.losses = {_LOSSES[name]: loss.item() for name, loss in losses.items()}

    def detection(self):
        """Boxes, scores and labels, without gradients."""
        self.network.eval()
        with torch.inference_mode():
            return self.network(self.image)

    def seconds(self, part: str) -> float:
        """Of one run."""
        run = {"train step": self.train_step, "detection": self.detection}[part]
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def _factor(name, multipliers):
    """Of the rate; the patterns are of our names."""
    ours = name.replace(".conv_offset.", ".offset_conv.")
    return next((factor for p, factor in multipliers if re.search(p, ours)), 1.0)


def main() -> None:
    """Answers until standard input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    twins = {}

    def answer(do, name, **given):
        if do == "load":
            twins[name] = Twin(**given)
            return None
        twin = twins[name]
        if do == "time":
            return twin.seconds(**given)
        if do == "losses":
            return twin.losses
        np.savez(given["path"], **{k: v.numpy() for k, v in twin.detection().items()})
        return None

    serve(answer)


if __name__ == "__main__":
    main()
