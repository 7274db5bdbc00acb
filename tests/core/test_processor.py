"""The name of the processor."""

import platform

import pytest
from rnn_lab.system import processor
from rnn_lab.train.rundir import environment

TWO = "processor\t: 0\nmodel name\t: Chip: 9 X\n\nprocessor\t: 1\nmodel name\t: Chip: 9 Y\n"


@pytest.mark.parametrize(("told", "asked", "name"), [
    (TWO, "x86_64", "Chip: 9 X"),
    ("processor\t: 0\nBogoMIPS\t: 50\n", "arm", "arm"),
    ("model name\t:\n", "", None),
    (None, "i386", "i386"),
    (None, "", None),
])  # fmt: skip
def test_the_name_is_the_systems(monkeypatch, tmp_path, told, asked, name):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: asked)
    if told is not None:
        processor.CPUINFO.write_text(told)
    assert processor.cpu_name() == name
    assert environment()["cpu"] == name
