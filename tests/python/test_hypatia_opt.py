"""The command hypatia-opt: what it writes and prints. Errors: test_hypatia_opt_errors.py."""

import json
import re
import subprocess
import zipfile

import pytest
import torch

from opt_support import OPT, Net, leftovers, opt, opt_fails, opt_ok, save
from support import python_ok

FUSED = "hypatia::fused_linear_relu"


@pytest.fixture
def model(tmp_path):
    return save(Net(), tmp_path / "model.pt")


@pytest.fixture
def traced(tmp_path):
    path = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.trace(Net().eval(), torch.randn(3, 16)), str(path))
    return path


def kinds(path):
    graph = torch.jit.load(str(path)).inlined_graph
    return [node.kind() for node in graph.nodes()]


def fused_count(report):
    return sum(report["fused_ops"].values())


def test_the_optimized_file_loads_agrees_and_has_the_operators(model, tmp_path):
    out = tmp_path / "optimized.pt"
    assert opt_ok(model, "-o", out) == ""
    assert any(kind.startswith("hypatia::") for kind in kinds(out))
    x = torch.randn(5, 16)
    expected, got = torch.jit.load(str(model))(x), torch.jit.load(str(out))(x)
    torch.testing.assert_close(got, expected)
    assert not leftovers(tmp_path)


def test_it_decides_as_the_operator_does(model, tmp_path):
    out = tmp_path / "optimized.pt"
    opt_ok(model, "-o", out)
    here = torch.ops.hypatia.optimize(torch.jit.load(str(model)))
    graph = torch.jit._recursive.wrap_cpp_module(here).inlined_graph
    assert [node.kind() for node in graph.nodes()] == kinds(out)
    report = json.loads(torch.ops.hypatia.explain(torch.jit.load(str(model))))
    assert json.loads(opt_ok(model, "--json")) == report


def test_the_output_loads_in_a_process_with_the_library_only(model, tmp_path):
    from support import LIBRARY

    out = tmp_path / "optimized.pt"
    opt_ok(model, "-o", out)
    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1])\n"
        "print(list(torch.jit.load(sys.argv[2])(torch.ones(2, 16)).shape))"
    )
    assert python_ok(code, LIBRARY, out) == "[2, 4]\n"


def test_a_model_that_has_the_operators_already(model, tmp_path):
    once, twice = tmp_path / "once.pt", tmp_path / "twice.pt"
    opt_ok(model, "-o", once)
    opt_ok(once, "-o", twice, "--check")
    assert kinds(once) == kinds(twice)


def test_the_same_model_gives_the_same_bytes_whatever_the_name(model, tmp_path):
    a, b = tmp_path / "a.pt", tmp_path / "other name.pt"
    opt_ok(model, "-o", a)
    opt_ok(model, "-o", b)
    assert a.read_bytes() == b.read_bytes()


def test_output_over_input(model):
    before = model.read_bytes()
    opt_ok(model, "-o", model, "--check")
    assert model.read_bytes() != before
    assert any(kind.startswith("hypatia::") for kind in kinds(model))


def test_relative_paths(model, tmp_path):
    opt_ok("model.pt", "-o", "out.pt", "--dot", "out.dot", cwd=tmp_path)
    assert (tmp_path / "out.pt").exists() and (tmp_path / "out.dot").exists()


def test_extra_files_and_mode_travel_along(tmp_path):
    path, out = tmp_path / "m.pt", tmp_path / "o.pt"
    files = {"labels/names.json": '["a", "b"]', "empty": "", "bytes": "\x00\x01"}
    torch.jit.save(torch.jit.script(Net().train()), str(path), _extra_files=files)
    opt_ok(path, "-o", out)
    got = dict.fromkeys(files, "")
    loaded = torch.jit.load(str(out), _extra_files=got)
    assert {name: bytes(text).decode() for name, text in got.items()} == files
    assert loaded.training


def test_several_methods_and_buffers(tmp_path):
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.tensor(3))

        @torch.jit.export
        def halved(self, x):
            return torch.relu(self.first(x)) * 0.5

    path, out = save(Two(), tmp_path / "m.pt"), tmp_path / "o.pt"
    opt_ok(path, "-o", out)
    a, b = torch.jit.load(str(path)), torch.jit.load(str(out))
    x = torch.randn(2, 16)
    torch.testing.assert_close(b.halved(x), a.halved(x))
    assert b.steps == 3


# ----------------------------------------------------------------- explaining


def test_without_output_it_explains(model):
    text = opt_ok(model)
    assert text.splitlines()[0] == str(model)
    for word in ("nodes", "predicted", "profile    cpu", "shapes", "search", "fused", "hypatia::"):
        assert word in text, text
    assert " → " in text and "µs" in text
    assert not leftovers(model.parent)


def test_explain_has_every_rewrite_and_everything_skipped(tmp_path):
    class Skipping(Net):
        @torch.jit.export
        def other(self, x):
            with torch.no_grad():
                return self.first(x)

    path = save(Skipping(), tmp_path / "m.pt")
    report, text = json.loads(opt_ok(path, "--json")), opt_ok(path, "--explain")
    assert report["skipped"] and report["rewrites"], report
    for rewrite in report["rewrites"]:
        assert any(
            rewrite["rule"] in line and rewrite["at"] in line for line in text.splitlines()
        ), rewrite
    for skipped in report["skipped"]:
        assert any(
            skipped["at"] in line and skipped["reason"] in line for line in text.splitlines()
        ), skipped


def test_json_has_what_explain_promises(model, tmp_path):
    report = json.loads(opt_ok(model, "--json", "-o", tmp_path / "o.pt"))
    for key in ("stop_reason", "nodes_before", "nodes_after", "cost_before", "cost_after",
                "rewrites", "skipped", "fused_ops"):  # fmt: skip
        assert key in report, report
    assert fused_count(report) >= 1
    assert report["cost_after"] < report["cost_before"]
    assert "check" not in report
    assert json.loads(opt_ok(model, "--json", "--check"))["check"]["ok"] is True


@pytest.mark.parametrize("device, profile", [("cpu", "cpu"), ("cuda", "gpu"), ("h100", "h100")])
def test_the_device_predicts(model, device, profile):
    report = json.loads(opt_ok(model, "--json", "--device", device))
    assert report["profile"] == profile


def test_rows_make_it_dearer(model):
    cost = [json.loads(opt_ok(model, "--json", "--rows", n))["cost_before"] for n in (1, 1 << 20)]
    assert cost[1] > 10 * cost[0]
    assert json.loads(opt_ok(model, "--json", "--rows", 8))["shapes"] == "given"


def test_dot_is_drawn_before_and_after(model, tmp_path):
    dot = tmp_path / "graph.dot"
    opt_ok(model, "--dot", dot)
    text = dot.read_text()
    assert text.startswith("digraph ") and text.rstrip().endswith("}")
    assert text.count("{") == text.count("}") and text.count("subgraph") >= 2
    before, after = text.split("forward after")[0], text.split("forward after", 1)[1]
    assert "hypatia::" not in before and "hypatia::" in after
    assert "->" in text and not leftovers(tmp_path)


# ------------------------------------------------------------------- checking


def test_the_check_infers_inputs_from_the_first_layer(model, tmp_path):
    text = opt_ok(model, "-o", tmp_path / "o.pt", "--check")
    assert "x: f32[8, 16] (inferred from first.weight)" in text, text
    assert "compared   32 elements" in text and "result     ok" in text
    assert "x: f32[3, 16] (inferred" in opt_ok(model, "--check", "--rows", 3)


def test_the_check_takes_what_a_trace_recorded(traced):
    assert "f32[3, 16] (recorded)" in opt_ok(traced, "--check")


def test_the_check_takes_inputs_as_they_are_given(model):
    text = opt_ok(model, "--check", "--input", "f32[2,5,16]")
    assert "x: f32[2, 5, 16] (given)" in text and "compared   40 elements" in text


def test_indices_stay_below_the_table(tmp_path):
    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(50, 16)
            self.net = Net()

        def forward(self, words, scale: float = 1.0):
            return self.net(self.table(words)) * scale

    path = save(Words(), tmp_path / "m.pt")
    text = opt_ok(path, "--check")
    assert "words: i64[8] (inferred from table.weight)" in text and "scale: its default" in text
    opt_ok(path, "--check", "--input", "i64[4,3]:50", "--input", "0.5")
    assert "index out of range" in opt_fails(2, path, "--check", "--input", "i64[1000]:5000")


def test_nested_outputs_and_dropout_in_training(tmp_path):
    class Nested(Net):
        def forward(self, x):
            y = torch.relu(self.first(x))
            z = torch.nn.functional.dropout(y, 0.5, self.training)
            return {"y": (y, [z, z + 1]), "n": (z, [y])}, y.sum().item(), 3, "text"

    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Nested().train()), str(path))
    check = json.loads(opt_ok(path, "--json", "--check"))["check"]
    assert check["ok"] and check["elements"] == 5 * 64 + 3


def test_a_model_that_counts_its_calls(tmp_path):
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(8)

        def forward(self, x):
            return torch.relu(self.norm(torch.relu(self.first(x))))

    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Counting().train()), str(path))
    opt_ok(path, "--check")
    out = tmp_path / "o.pt"
    opt_ok(path, "-o", out, "--check")
    # What the check ran is not what was saved.
    assert torch.jit.load(str(out)).norm.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(tmp_path, dtype):
    path = save(Net(64, 64, 64).to(dtype), tmp_path / "m.pt")
    assert "result     ok" in opt_ok(path, "--check")


def changed(model, tmp_path, change):
    other = torch.jit.load(str(model))
    with torch.no_grad():
        change(other)
    path = tmp_path / "changed.pt"
    torch.jit.save(other, str(path))
    return path


def test_a_wrong_model_is_found(model, tmp_path):
    def change(net):
        net.first.weight[3, 2] += 0.5

    path = changed(model, tmp_path, change)
    sentence = opt_fails(1, model, "--against", path)
    assert sentence.startswith("expected output[") and "within 1.2e-4" in sentence, sentence
    assert "result     ok" in opt_ok(model, "--against", model)


def test_rounding_is_not_wrong_and_more_is(model, tmp_path):
    path = changed(model, tmp_path, lambda net: net.second.bias.mul_(1 + 1e-6))
    assert "absolute" in opt_ok(model, "--against", path)
    path = changed(model, tmp_path, lambda net: net.second.bias.mul_(1 + 1e-2))
    opt_fails(1, model, "--against", path)


class Returns(torch.nn.Module):
    """What comes out depends on `which`, of a type that TorchScript cannot see."""

    def __init__(self, which):
        super().__init__()
        self.which = which
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        if self.which == 1:
            y = y * float("nan")
        elif self.which == 2:
            y = y[:, :2]
        elif self.which == 3:
            y = y.double()
        elif self.which == 4:
            y = torch.cat([y, y])
        elif self.which == 5:
            y = y + float("inf")
        found = {"y": y}
        if self.which == 6:
            found["z"] = y
        if self.which == 7:
            found = {"Y": y}
        many = [y]
        if self.which == 8:
            many = [y, y]
        return found, many, 1 if self.which == 9 else 2, y.sum().item()


@pytest.mark.parametrize(
    "which, text",
    [
        (1, "output[0]['y'][0, 0] within 1.2e-4 of the original, relative to its size, got inf"),
        (2, "Float[8, 3] in output[0]['y'], got Float[8, 2]"),
        (3, "Float[8, 3] in output[0]['y'], got Double[8, 3]"),
        (4, "Float[8, 3] in output[0]['y'], got Float[16, 3]"),
        (5, "output[0]['y'][0, 0] within"),
        (6, "1 keys in output[0], got 2"),
        (7, "this key in output[0]['y'], got none"),
        (8, "1 elements in output[1], got 2"),
        (9, "Int in output[2], got 1"),
    ],
)
def test_every_difference_is_named(tmp_path, which, text):
    torch.manual_seed(1)
    right = save(Returns(0), tmp_path / "right.pt")
    torch.manual_seed(1)
    wrong = save(Returns(which), tmp_path / "wrong.pt")
    assert text in opt_fails(1, right, "--against", wrong)
    # The same infinities and NaNs are no difference.
    opt_ok(wrong, "--against", wrong)


def test_a_candidate_that_fails_is_wrong(tmp_path):
    right, wrong = save(Net(), tmp_path / "a.pt"), save(Net(inputs=17), tmp_path / "b.pt")
    sentence = opt_fails(1, right, "--against", wrong)
    assert sentence.startswith("expected an output as the original's, got \"RuntimeError: mat1")


# ------------------------------------------------------------ how it behaves


def test_help_and_version():
    text = opt_ok("--help")
    assert text.startswith("hypatia-opt MODEL") and "--check" in text
    assert opt_ok("--version").startswith("hypatia-opt 0.1.0 (LibTorch 2.")


def test_quiet_when_it_is_quick_and_progress_when_it_is_not(model, tmp_path):
    class Slow(torch.nn.Module):
        def forward(self, x):
            n = 0
            # What no machine does in a second.
            for i in range(20_000_000):
                n += i % 3
            return x + n

    path = save(Slow(), tmp_path / "slow.pt")
    done = opt(path, "--check", "--input", "f32[1]", "-o", tmp_path / "o.pt", timeout=900)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "hypatia-opt: checking …" in lines, lines
    assert lines[-1].startswith("hypatia-opt: done in ") and "optimizing" in lines[-1], lines


def test_a_reader_that_leaves_early(model):
    done = subprocess.run(
        f"'{OPT}' '{model}' | head -n 1", shell=True, capture_output=True, text=True
    )
    assert done.stdout == f"{model}\n" and not done.stderr


def test_the_file_is_an_ordinary_torchscript_archive(model, tmp_path):
    out = tmp_path / "o.pt"
    opt_ok(model, "-o", out)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert {name.split("/")[0] for name in archive.namelist()} == {"archive"}
    assert out.stat().st_mode & 0o777 == 0o644


def test_the_check_starts_from_the_file_whatever_running_changes(tmp_path):
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return torch.relu(self.first(x)) * self.calls

    path, out = save(Counting(), tmp_path / "m.pt"), tmp_path / "o.pt"
    # A buffer that ran ahead would double the results.
    text = opt_ok(path, "-o", out, "--check")
    assert float(re.search(r"absolute +(\S+)", text)[1]) < 1e-5
    assert torch.jit.load(str(out)).calls == 0
