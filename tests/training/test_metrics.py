import json
import struct
from pathlib import Path

import pytest

from robustjax import InputError
from robustjax.training.metrics import MetricsLog, ProgressBar


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def test_rows_are_written_at_once_with_sorted_values(tmp_path):
    log = MetricsLog(tmp_path / "run", after=0)
    log.write(3, {"stage": "train"}, {"b": 1 / 3, "a": 2.0})
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert line == '{"step": 3, "stage": "train", "a": 2.0, "b": 0.3333333333333333}\n'
    log.speed(3, {"time/images_per_second": 1.0})
    log.close()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == line
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_opening_drops_later_rows_and_what_is_no_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n7\n\xff\n{"step": 2}\n{"step": 3}\n{"step": 2, "a"')
    MetricsLog(tmp_path, after=2).close()
    assert rows(tmp_path) == [{"step": 1}, {"step": 2}]
    assert path.read_text().endswith("\n")


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"Cannot write to .*file/run"):
        MetricsLog(tmp_path / "file" / "run", after=0)


def test_the_bar_shows_losses_accuracies_speed_and_time_left(capsys):
    bar = ProgressBar("train", total=10, done=2, batch_size=32, shown=True)
    metrics = {"loss/total": 0.5, "accuracy/clean": 0.9, "accuracy/robust": 0.4}
    speed = bar.update(6, {**metrics, "grad/norm": 1.0})
    bar.show({"validation/clean_accuracy": 0.8, "validation/robust_accuracy": 0.3})
    bar.update(10, {})
    bar.close()
    shown = capsys.readouterr().err
    for text in ("loss=0.500", "clean=0.900", "robust=0.400", "img/s=", " 6/10 "):
        assert text in shown
    assert "val clean=0.800" in shown
    assert "<" in shown  # the time left
    assert "grad" not in shown
    assert speed > 0


def test_a_hidden_bar_prints_nothing(capsys):
    bar = ProgressBar("train", total=10, done=0, batch_size=32, shown=False)
    bar.update(5, {"loss/total": 1.0})
    bar.close()
    assert capsys.readouterr().err == ""


def events(directory):
    """All events of a directory, read from the TFRecord frames."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def test_tensorboard_gets_the_same_numbers_and_voids_later_ones(tmp_path):
    log = MetricsLog(tmp_path, after=4)
    log.write(6, {"stage": "train"}, {"loss/total": 0.25})
    log.speed(6, {"time/images_per_second": 32.0})
    found = events(tmp_path / "tensorboard")  # before closing: a kill loses nothing
    log.close()
    scalars = {
        value.tag: (event.step, value.simple_value)
        for event in found
        for value in event.summary.value
    }
    assert scalars == {"loss/total": (6, 0.25), "time/images_per_second": (6, 32.0)}
    (start,) = (e for e in found if e.HasField("session_log"))
    assert start.step == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_line_and_does_not_hang(tmp_path):
    log = MetricsLog(tmp_path, after=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"Cannot write .*jsonl: No space left"):
        log.write(1, {}, {"a": 1.0})
    log.close()
