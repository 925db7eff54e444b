import logging

from train.resume import say_changes

WAS = {"steps": 4, "data": {"canvases": [[64, 64]], "folder": "coco"}, "old": None}


def said(caplog, now, steps=4):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="train"):
        say_changes(WAS, now, steps_were=4, steps=steps)
    return caplog.messages


def test_nothing_is_said_of_the_same_configuration(caplog):
    same = {**WAS, "data": {"canvases": ((64, 64),), "folder": "coco"}}
    assert said(caplog, same) == []


def test_every_change_is_said_in_one_line(caplog):
    now = {"steps": 0, "data": {"canvases": ((64, 64), (8, 8))}, "new": {"field": 1}}
    assert said(caplog, now, steps=9) == [
        "WARNING: not as in the checkpoint: the run had 4 steps, has 9; "
        "`data.canvases` was [[64, 64]], is [[64, 64], [8, 8]]; "
        "`data.folder` was 'coco', is absent; `new.field` was absent, is 1; "
        "`old` was None, is absent; `steps` was 4, is 0"
    ]


def test_nothing_is_said_of_what_changes_no_result(caplog):
    data = {**WAS["data"], "workers": 2}
    assert said(caplog, {**WAS, "data": data}) == []


def test_the_line_is_bounded(caplog):
    now = {**WAS, **{f"field_{i}": "x" * 10_000 for i in range(100)}}
    (line,) = said(caplog, now)
    assert len(line) < 1000 and line.endswith("; and 90 more")
