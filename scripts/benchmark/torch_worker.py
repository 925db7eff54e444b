"""Processes that compute with torch: our end of `scripts.benchmark.torch_process`."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from scripts.benchmark.case import Candidate, Peer

_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process of torch's interpreter, to be used in a `with` statement.

    Args:
      python: The interpreter.
      program: Module that it runs, which answers by `scripts.benchmark.torch_answers`.
      *arguments: Of the program.
    """

    def __init__(self, python: str, program: str, *arguments: str):
        self._process = subprocess.Popen(
            [python, "-m", program, *arguments],
            cwd=_ROOT,
            # OpenMP's threads would go on spinning in the next candidate's turn.
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._folder = tempfile.TemporaryDirectory()
        # Holds arguments on their way there, results on their way back.
        self._path = str(Path(self._folder.name) / "arrays.npz")
        self._versions = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # Closes its input, which ends it.
        self._folder.cleanup()

    def versions(self) -> dict[str, str]:
        """Of torch and torchvision.

        Raises:
          ConnectionError: The process has died.
        """
        if self._versions is None:
            # The first line that the worker writes, once all is imported.
            self._versions = self._read()
        return self._versions

    def _ask(self, do: str, name: str, **given: Any) -> Any:
        self.versions()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "name": name, **given}) + "\n")
        self._process.stdin.flush()
        said = self._read()
        if "error" in said:
            raise RuntimeError(f"{name}: {said['error']}")
        return said["answer"]

    def _save(self, arrays: Mapping[str, Any]) -> None:
        """Writes arrays for the process to read."""
        contiguous = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        np.savez(self._path, **contiguous)  # pyright: ignore[reportArgumentType]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConnectionError("torch's process died; see its message above")
        return json.loads(line)


class TorchWorker(Worker):
    """A process that computes operators.

    Args:
      python: The interpreter.
      threads: That torch may use.
      device: "cpu" or "cuda".
    """

    def __init__(self, python: str, threads: int, device: str = "cpu"):
        program = "scripts.benchmark.torch_process"
        super().__init__(python, program, str(threads), device)

    def load(self, peer: Peer, candidate: Candidate, cotangent: Any) -> None:
        """Hands the peer its arrays."""
        arrays = {
            f"input{i}": layout(np.asarray(array))
            for i, (layout, array) in enumerate(
                zip(peer.layouts, candidate.arguments, strict=True)
            )
        }
        arrays |= {f"constant{i}": array for i, array in enumerate(peer.constants)}
        if candidate.differentiable:
            arrays["cotangent"] = peer.output(np.asarray(cotangent))
        self._save(arrays)
        settings = peer.settings or {}
        self._ask(
            "load",
            peer.name,
            operator=peer.operator,
            settings=settings,
            precision=peer.precision,
            path=self._path,
        )

    def time(self, peer: Peer, part: str, calls: int = 1) -> float:
        """Seconds of one call, of so many in a row."""
        return self._ask("time", peer.name, part=part, calls=calls)

    def scratch(self, peer: Peer) -> int:
        """Bytes beyond its results by which forward and backward raise the peak."""
        return self._ask("memory", peer.name)

    def check(self, peer: Peer, results: Sequence[Any]) -> None:
        """Asserts that the peer's output and gradients are ours.

        Both sides sum float32 products in an order of their own, which the tolerance
        allows for; lists of indices must be the same.
        """
        self._ask("results", peer.name, path=self._path)
        theirs = np.load(self._path).values()
        layouts = (peer.output, *peer.layouts)[: len(results)]
        triples = zip(layouts, results, theirs, strict=True)
        for number, (layout, our, their) in enumerate(triples):
            our = layout(jax.tree.map(np.asarray, our))
            what = f"{peer.name}: " + (f"gradient {number}" if number else "output")
            if np.issubdtype(their.dtype, np.integer):
                np.testing.assert_array_equal(our, their, what)
            else:
                atol = 1e-4 * np.abs(their).max()
                np.testing.assert_allclose(our, their, rtol=0, atol=atol, err_msg=what)
