"""What a run writes about itself: log lines, metrics.jsonl, TensorBoard."""

import contextlib
import json
import logging
import math
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from train.whole_file import write_whole

_log = logging.getLogger("train")
# Channels of a PNG, by its colour type.
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


class MetricWriter:
    """Writes the scalars of a step to every place that follows the run.

    Only process 0 writes. A run that goes on from a checkpoint first cuts what was
    written after it, so that the files read as if it had never stopped.
    """

    def __init__(self, workdir: Path, *, step: int, active: bool, wandb: Any = None):
        self._file = None
        self._board: Any = None
        self._wandb = wandb
        self._workdir = workdir
        if not active:
            return
        # Slow to import, and of no use to the other processes.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        path = workdir / "metrics.jsonl"
        cut_after(path, step)
        self._file = path.open("a")
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Its SummaryWriter writes from a thread, which a full disk kills without a
        # word; whoever hands it the next scalars waits for ever.
        self._board = event_file_writer.EventsWriter(str(folder / "events"))
        # Made at import, where no type checker sees it.
        proto: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._scalar = proto.Event, summary.scalar
        self._summary = summaries.Summary
        if step:
            # TensorBoard hides what a former process wrote from this step on.
            start = proto.SessionLog(status=proto.SessionLog.START)
            self._board.write_event(self._event(step=step + 1, session_log=start))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Names the folder in an error of an open file, which Python does not."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"Cannot write the metrics in {self._workdir}: {error.strerror}."
            ) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of a step; non-finite numbers become null.

        Raises:
          OSError: The disk is full.
        """
        if self._file is None:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with self._named():
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
            self._show(step, map(self._scalar, scalars.keys(), scalars.values()))
        if self._wandb is not None:
            self._wandb.log(dict(scalars), step=step)

    def show(
        self, step: int, scalars: Mapping[str, float], pictures: Mapping[str, bytes]
    ) -> None:
        """Shows in TensorBoard what metrics.jsonl does not hold.

        Args:
          step: The step.
          scalars: By name; Weights & Biases has them too.
          pictures: PNG files, by name.

        Raises:
          OSError: The disk is full.
        """
        if self._file is None:
            return
        with self._named():
            self._show(step, map(self._scalar, scalars.keys(), scalars.values()))
            self._show(step, map(self._picture, pictures.keys(), pictures.values()))
        if self._wandb is not None:
            self._wandb.log(dict(scalars), step=step)

    def _picture(self, name: str, png: bytes) -> Any:
        # Behind the signature and the header's length and name (its specification).
        width, height, _, kind = struct.unpack(">IIBB", png[16:26])
        image = self._summary.Image(
            height=height,
            width=width,
            colorspace=_CHANNELS[kind],
            encoded_image_string=png,
        )
        return self._summary(value=[self._summary.Value(tag=name, image=image)])

    def _show(self, step: int, summaries: Iterable[Any]) -> None:
        """Writes into TensorBoard's file."""
        for summary in summaries:
            event = self._event(wall_time=time.time(), step=step, summary=summary)
            self._board.write_event(event)
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            with self._named():
                self._file.close()
                self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics.jsonl, without lines that are none."""
    return [r for r in map(_record, _lines(path)) if r is not None]


def _lines(path: Path) -> list[bytes]:
    """Returns the lines of a file, without a last one cut short; none without one."""
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return lines if _record(last) is None else [*lines, last]


def _record(line: bytes) -> dict[str, Any] | None:
    """Returns the record that `MetricWriter.write` wrote as this line, or None."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    # What is drawn as a curve must be a number; a bool is an int to Python.
    largest = sys.float_info.max
    numbers = [value for value in record.values() if value is not None]
    fine = all(type(n) in (int, float) and -largest <= n <= largest for n in numbers)
    return record if fine and record["step"] >= 0 else None


def cut_after(path: Path, step: int) -> None:
    """Drops what a metrics.jsonl says of steps after `step`, and of its evaluation.

    The evaluation of a step comes after its checkpoint, and is made again. Lines that
    are no records, as of an editor or a failing disk, are dropped, and this is logged.
    """
    records = [_record(line) for line in _lines(path)]
    odd = [number for number, record in enumerate(records, 1) if record is None]
    if odd:
        _log.warning(
            "WARNING: dropped %d lines of %s that are no records of a step; the first "
            "was line %d",
            len(odd),
            path,
            odd[0],
        )
    kept = [
        record
        for record in records
        if record is not None
        and (
            record["step"] < step
            or (
                record["step"] == step
                and not any(k.startswith("eval/") for k in record)
            )
        )
    ]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


class Clock:
    """Throughput and time left, without the time of compiling and saving."""

    def __init__(self, batch_size: int, steps: int):
        self._batch_size, self._steps = batch_size, steps
        # Since the last tick, and since the start.
        self._seconds = self._seconds_before = 0.0
        self._done = self._done_before = 0
        self._last = time.monotonic()

    def step(self) -> None:
        """Counts a step, and the time since the last call of any method."""
        now = time.monotonic()
        self._seconds += now - self._last
        self._done += 1
        self._last = now

    def skip(self) -> None:
        """Leaves the time since the last call out of the account."""
        self._last = time.monotonic()

    def tick(self, step: int) -> tuple[float, float]:
        """Returns (images a second since the last tick, seconds left of the run)."""
        seconds, done = self._seconds, self._done
        self._seconds_before += seconds
        self._done_before += done
        self._seconds, self._done = 0.0, 0
        left = (self._steps - step) * self._seconds_before / max(self._done_before, 1)
        return self._batch_size * done / max(seconds, 1e-9), left


def log_line(step: int, steps: int, scalars: Mapping[str, float], left: float) -> None:
    """Logs one short line: loss, rate, throughput, time left.

    The terms of the loss stand in metrics.jsonl and TensorBoard.
    """
    hours, rest = divmod(round(left), 3600)
    minutes, seconds = divmod(rest, 60)
    skipped = scalars["skipped"]
    _log.info(
        "step %d/%d  loss %.3f  lr %.2g  grad %.2f  %.1f images/s  %d:%02d:%02d left%s",
        *(step, steps, scalars["loss"], scalars["lr"], scalars["grad_norm"]),
        *(scalars["images/s"], hours, minutes, seconds),
        f"  {skipped:.0f} skipped" if skipped else "",
    )
