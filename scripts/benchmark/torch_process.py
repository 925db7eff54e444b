"""torch and torchvision, answering `scripts.benchmark.torch_worker` over a pipe.

    PYTHON -m scripts.benchmark.torch_process THREADS cpu|cuda

PYTHON is an interpreter that has torch, torchvision and numpy, and needs nothing else.
Commands, see `scripts.benchmark.torch_answers`:

    {"do": "load", "name", "operator", "settings", "precision", "path"}
                                               keeps arrays of a npz file
    {"do": "results", "name", "path"}          writes output and gradients to a npz file
    {"do": "time", "name", "part", "calls"}    seconds of a call, of so many in a row
    {"do": "memory", "name"}                   bytes of peak growth beyond the results

The npz file holds arguments as input0, input1, ..., the further ones that never have
gradients as constant0, ..., and the cotangent where the inputs have gradients. A part
is "fwd", "fwd+bwd", or "bwd", which keeps the result of a forward pass.
"""

# pyright: reportMissingImports=false

import sys
import time

import numpy as np
import torch
import torchvision.ops

from scripts.benchmark.peak_rss import peak_growth
from scripts.benchmark.torch_answers import serve


def _deform_conv2d(x, offset, kernel, mask, **settings):
    return torchvision.ops.deform_conv2d(x, offset, kernel, mask=mask, **settings)


OPERATORS = {
    "batched_nms": torchvision.ops.batched_nms,
    "conv2d": torch.nn.functional.conv2d,
    "deform_conv2d": _deform_conv2d,
    "nms": torchvision.ops.nms,
    "ps_roi_align": torchvision.ops.ps_roi_align,
    "roi_align": torchvision.ops.roi_align,
    "roi_pool": torchvision.ops.roi_pool,
}


class Problem:
    """An operator with its arguments."""

    def __init__(
        self, operator: str, settings: dict, precision: str, path: str, device: str
    ):
        arrays = np.load(path)

        def tensors(kind):
            count = sum(name.startswith(kind) for name in arrays)
            return [
                torch.from_numpy(arrays[f"{kind}{i}"]).to(device) for i in range(count)
            ]

        self.operator = OPERATORS[operator]
        self.settings = settings
        self.device = device
        self.rounds = precision.endswith("tf32")
        self.casts = precision.startswith("autocast")
        self.inputs, self.constants = tensors("input"), tensors("constant")
        if self.casts:
            self.inputs[0] = self.inputs[0].bfloat16()
        self.cotangent = self.kept = None
        if "cotangent" in arrays:
            self.cotangent = torch.from_numpy(arrays["cotangent"]).to(device)
            for tensor in self.inputs:
                tensor.requires_grad_()

    def forward(self):
        """The output alone."""
        self._choose_products()
        with torch.no_grad():
            return self._call()

    def both(self):
        """The output and the gradients of all inputs."""
        self._choose_products()
        assert self.cotangent is not None
        y = self._call()
        cotangent = self.cotangent.to(y.dtype)
        return y.detach(), *torch.autograd.grad(y, self.inputs, cotangent)

    def backward(self):
        """The gradients of all inputs."""
        self._choose_products()
        assert self.cotangent is not None
        if self.kept is None:
            self.kept = self._call()
            self.cotangent = self.cotangent.to(self.kept.dtype)
        return torch.autograd.grad(
            self.kept, self.inputs, self.cotangent, retain_graph=True
        )

    def seconds(self, part: str, calls: int) -> float:
        """Of one call, of so many in a row."""
        run = {"fwd": self.forward, "fwd+bwd": self.both, "bwd": self.backward}[part]
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        self._wait()
        return (time.perf_counter() - start) / calls

    def _choose_products(self):
        torch.backends.cuda.matmul.allow_tf32 = self.rounds
        torch.backends.cudnn.allow_tf32 = self.rounds

    def _call(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.casts):
            return self.operator(*self.inputs, *self.constants, **self.settings)

    def _wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Answers until standard input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    device = sys.argv[2]
    problems = {}

    def answer(do, name, **given):
        if do == "load":
            problems[name] = Problem(**given, device=device)
            return None
        problem = problems[name]
        if do == "time":
            return problem.seconds(**given)
        if do == "memory":
            growth, results = peak_growth(problem.both)
            return growth - sum(tensor.nbytes for tensor in results)
        differentiable = problem.cotangent is not None
        results = problem.both() if differentiable else (problem.forward(),)
        np.savez(given["path"], *(tensor.cpu().numpy() for tensor in results))
        return None

    serve(answer)


if __name__ == "__main__":
    main()
