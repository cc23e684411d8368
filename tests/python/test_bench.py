"""The benchmark: that it runs, writes what it measured, and counts what it says."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHES = pathlib.Path(__file__).resolve().parents[2] / "benches"


@pytest.fixture(scope="module")
def timing():
    spec = importlib.util.spec_from_file_location("timing", BENCHES / "timing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Fake:
    granularity = 1

    def microseconds(self, repeats):
        return 10.0


def test_rounds_go_on_until_the_time_is_up(timing):
    assert len(timing.alternate({"a": Fake()}, 5, 10)["a"]) == 5
    assert len(timing.alternate({"a": Fake()}, 5, 10, seconds=0.02)["a"]) > 5


def test_a_tenth_is_below(timing):
    assert timing.tenth([float(i) for i in range(11)]) == 1.0
    assert timing.tenth([3.0, 1.0, *[9.0] * 18]) == pytest.approx(8.4)


def test_the_fastest_tenth_of_short_rounds(tmp_path):
    file = tmp_path / "figures.json"
    arguments = ["--device", "cpu", "--fastest", "0.2", "--models", "tiny-64", "--modes", "fp32"]
    arguments += ["--caller-thread", "--parts", "inference,training", "--json", file]
    subprocess.run(
        [sys.executable, BENCHES / "bench.py", *arguments],
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
    )
    rows = json.loads(file.read_text())["rows"]
    assert [row["part"] for row in rows] == ["inference", "training"]
    for row in rows:
        assert row["caller_thread"]
        us, over = row["wall"]["us"], row["wall"]["over_mlp"]
        assert over["eager"] == pytest.approx(us["eager"] / us["mlp"])
        assert ("ops" in us) == (row["part"] == "training")
