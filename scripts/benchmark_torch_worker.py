"""torch and torchvision, answering `scripts.benchmark_torch` over a pipe.

    PYTHON -m scripts.benchmark_torch_worker THREADS

PYTHON is an interpreter that has torch, torchvision and numpy, and needs nothing else.
Each line of standard input is a command in JSON, each line of standard output its
answer:

    {"do": "load", "name", "operator", "settings", "path"}   keeps arrays of an npz file
    {"do": "results", "name", "path"}          writes output and gradients to a npz file
    {"do": "time", "name", "part"}             seconds
    {"do": "memory", "name"}                   bytes of peak growth beyond the results

The npz file holds arguments as input0, input1, ..., the further ones that never have
gradients as constant0, ..., and the cotangent where the inputs have gradients.
"""

# pyright: reportMissingImports=false

import json
import sys
import time

import numpy as np
import torch
import torchvision.ops

from scripts.benchmark_peak_rss import peak_growth


def _deform_conv2d(x, offset, kernel, mask, **settings):
    return torchvision.ops.deform_conv2d(x, offset, kernel, mask=mask, **settings)


OPERATORS = {
    "batched_nms": torchvision.ops.batched_nms,
    "conv2d": torch.nn.functional.conv2d,
    "deform_conv2d": _deform_conv2d,
    "nms": torchvision.ops.nms,
    "ps_roi_align": torchvision.ops.ps_roi_align,
    "ps_roi_pool": torchvision.ops.ps_roi_pool,
    "roi_align": torchvision.ops.roi_align,
    "roi_pool": torchvision.ops.roi_pool,
}


class Problem:
    """An operator with its arguments."""

    def __init__(self, operator: str, settings: dict, path: str):
        arrays = np.load(path)

        def tensors(kind):
            count = sum(name.startswith(kind) for name in arrays)
            return [torch.from_numpy(arrays[f"{kind}{i}"]) for i in range(count)]

        self.operator = OPERATORS[operator]
        self.settings = settings
        self.inputs, self.constants = tensors("input"), tensors("constant")
        self.cotangent = None
        if "cotangent" in arrays:
            self.cotangent = torch.from_numpy(arrays["cotangent"])
            for tensor in self.inputs:
                tensor.requires_grad_()

    def forward(self):
        """The output alone."""
        with torch.no_grad():
            return self._call()

    def backward(self):
        """The output and the gradients of all inputs."""
        y = self._call()
        return y.detach(), *torch.autograd.grad(y, self.inputs, self.cotangent)

    def _call(self):
        return self.operator(*self.inputs, *self.constants, **self.settings)


def main() -> None:
    """Answers until standard input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    problems = {}

    def answer(do, name, **given):
        if do == "load":
            problems[name] = Problem(**given)
            return None
        problem = problems[name]
        if do == "time":
            run = problem.forward if given["part"] == "fwd" else problem.backward
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        if do == "memory":
            growth, results = peak_growth(problem.backward)
            return growth - sum(tensor.nbytes for tensor in results)
        if problem.cotangent is None:
            results = (problem.forward(),)
        else:
            results = problem.backward()
        np.savez(given["path"], *(tensor.numpy() for tensor in results))
        return None

    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
