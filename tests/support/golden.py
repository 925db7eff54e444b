"""Where the golden vectors lie; see tests/golden/README.md."""

from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
