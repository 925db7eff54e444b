import json
import resource

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event

from train.draw import encoded, figure_png
from train.metrics import Clock, MetricWriter, read_metrics


def test_records_after_the_restored_step_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [
        {"step": 10, "loss": 1.0},
        {"step": 10, "eval/bbox/AP": 0.5},
        {"step": 20, "loss": 0.5},
        {"step": 20, "eval/bbox/AP": 0.6},
        {"step": 30, "loss": 0.4},
    ]
    # The last line was being written when the run was killed.
    text = "".join(json.dumps(r) + "\n" for r in records) + '{"step": 40, "lo'
    path.write_text(text)
    writer = MetricWriter(tmp_path, step=20, active=True)
    writer.write(30, {"loss": 0.3})
    writer.close()
    assert read_metrics(path) == [*records[:3], {"step": 30, "loss": 0.3}]


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    MetricWriter(tmp_path, step=0, active=True).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_what_is_not_finite_becomes_null(tmp_path):
    writer = MetricWriter(tmp_path, step=0, active=True)
    writer.write(1, {"loss": float("nan"), "lr": 0.5})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "lr": 0.5}
    ]


def test_only_the_first_process_writes(tmp_path):
    writer = MetricWriter(tmp_path, step=0, active=False)
    writer.write(1, {"loss": 1.0})
    writer.show(1, {"loss": 1.0}, {"picture": b""})
    writer.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(tmp_path):
    """Here no file may grow beyond some bytes, which the system refuses alike."""
    writer = MetricWriter(tmp_path, step=0, active=True)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError, match=rf"the metrics in {tmp_path}: File too"):
            for step in range(1, 1000):
                # TensorBoard's file grows faster than ours.
                writer.write(step, {name: 1.0 for name in "abcdefgh"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert step < 100 and len(read_metrics(tmp_path / "metrics.jsonl")) == step
    writer.close()


def test_tensorboard_reads_the_scalars(tmp_path):
    for step in (0, 1):
        (tmp_path / str(step)).mkdir()
        writer = MetricWriter(tmp_path / str(step), step=step, active=True)
        writer.write(step + 1, {"loss/a": 0.5, "lr": float("nan")})
        writer.close()
        events = events_in(tmp_path / str(step))
        assert events[0].file_version == "brain.Event:2"
        assert [e.step for e in events if e.HasField("session_log")] == [2] * step
        values = {e.summary.value[0].tag: e for e in events if e.HasField("summary")}
        assert values.keys() == {"loss/a", "lr"}
        assert values["loss/a"].summary.value[0].simple_value == 0.5
        assert values["loss/a"].step == step + 1


def events_in(folder):
    (path,) = (folder / "tensorboard").iterdir()
    events, text = [], path.read_bytes()
    while text:
        # Length, its checksum, event, its checksum.
        length = int.from_bytes(text[:8], "little")
        events.append(Event.FromString(text[12 : 12 + length]))
        text = text[16 + length :]
    return events


def test_tensorboard_shows_pictures_and_what_the_file_does_not_hold(tmp_path):
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    figure = Figure((2, 1))
    pictures = {"eval/pictures": encoded(picture), "eval/confusion": figure_png(figure)}
    writer = MetricWriter(tmp_path, step=0, active=True)
    writer.show(3, {"eval/bbox_per_class/cat": 0.25}, pictures)
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    _, *shown = events_in(tmp_path)
    assert {event.step for event in shown} == {3}
    values = {v.tag: v for event in shown for v in event.summary.value}
    assert values.pop("eval/bbox_per_class/cat").simple_value == 0.25
    assert values.keys() == pictures.keys()
    for name, size in (("eval/pictures", (5, 7, 3)), ("eval/confusion", (100, 200, 4))):
        image = values[name].image
        assert (image.height, image.width, image.colorspace) == size
        assert image.encoded_image_string == pictures[name]
    read = cv2.imdecode(np.frombuffer(pictures["eval/pictures"], np.uint8), 1)
    np.testing.assert_array_equal(read[..., ::-1], picture)


def test_clock_leaves_compilation_and_saving_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(batch_size=4, steps=100)
    now[0] += 60.0  # compiling, in step 1
    clock.skip()
    for _ in range(9):
        now[0] += 1.0
        clock.step()
    speed, left = clock.tick(10)
    assert speed == pytest.approx(4.0)
    assert left == pytest.approx(90.0)
    now[0] += 30.0  # saving
    clock.skip()
    for _ in range(9):
        now[0] += 3.0
        clock.step()
    speed, left = clock.tick(20)
    assert speed == pytest.approx(4 / 3)
    assert left == pytest.approx(80 * 2.0)


ODD = (
    b"7",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe\x00\x81",
    b'{"step": "10", "loss": 1.0}',
    b'{"step": true}',
    b'{"step": -3}',
    b'{"step": 10, "loss": "low"}',
    b'{"step": 10, "loss": 1' + b"0" * 400 + b"}",
    b"[" * 100_000,
    b"9" * 5000,
    b'{"step": 10, "lo',
)


def test_odd_lines_are_dropped_and_said(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    kept = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": None}]
    first, second = (json.dumps(record).encode() for record in kept)
    path.write_bytes(b"\n".join([first, *ODD, second]))
    with caplog.at_level("WARNING", logger="train"):
        MetricWriter(tmp_path, step=20, active=True).close()
    assert read_metrics(path) == kept
    assert f"dropped {len(ODD)} lines of {path}" in caplog.text
    assert "the first was line 2" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="train"):
        MetricWriter(tmp_path, step=20, active=True).close()
    assert not caplog.text
