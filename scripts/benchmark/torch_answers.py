"""What programs of torch's interpreter share: they answer commands over a pipe.

The first line of standard output holds the versions of torch and torchvision. Then each
line of standard input is a command in JSON, each line of standard output
{"answer": ...}, or {"error": what went wrong}.
"""

# pyright: reportMissingImports=false

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torchvision


def serve(answer: Callable[..., Any]) -> None:
    """Answers until standard input ends.

    Args:
      answer: Takes the fields of a command, and returns what JSON can hold.
    """
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        try:
            said = {"answer": answer(**json.loads(line))}
        except RuntimeError as error:
            # Such as an operator that has no kernel for a type, or too little memory.
            said = {"error": str(error)}
        print(json.dumps(said), flush=True)
