"""Every way hypatia-opt can fail ends in one sentence and leaves no file behind."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import zipfile

import pytest
import torch

from opt_support import OPT, Net, errors, leftovers, opt_fails, opt_ok, rezip, save


@pytest.fixture
def model(tmp_path):
    return save(Net(), tmp_path / "model.pt")


def fails(tmp_path, *arguments, status=2):
    out = tmp_path / "out.pt"
    sentence = opt_fails(status, *arguments, "-o", out)
    assert not out.exists() and not leftovers(tmp_path)
    return sentence


def test_a_missing_file_and_a_folder(tmp_path):
    path = tmp_path / "none.pt"
    assert fails(tmp_path, path) == f"expected a TorchScript file in {path}, got no such file"
    assert fails(tmp_path, tmp_path) == f"expected a TorchScript file in {tmp_path}, got a folder"


def test_a_file_that_cannot_be_read(tmp_path):
    path = "/proc/self/mem"
    assert fails(tmp_path, path).startswith(f"expected a TorchScript archive in {path}, got ")


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "got an empty file"),
        (b"model: resnet\n", "got a text file"),
        (b"\x80\x02}q\x00.", "got a pickle; save the model with torch.jit.save"),
        (b"\x7fELF\x02\x01\x01", "got a program or shared library"),
        (os.urandom(64).replace(b"P", b"Q").replace(b"\x80", b"\xff") + b"\xff", "got something"),
        (b"PK\x05\x06" + bytes(18), "got a zip archive whose list of files is damaged"),
    ],
)
def test_no_archive(tmp_path, content, text):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert text in fails(tmp_path, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict(tmp_path, zipped):
    path = tmp_path / "model.pt"
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=zipped)
    sentence = fails(tmp_path, path)
    assert ("what torch.save writes" if zipped else "a pickle;") in sentence
    assert sentence.endswith("save the model with torch.jit.save(torch.jit.script(model), file)")


def test_an_exported_program(tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Net(), (torch.randn(2, 16),)), path)
    assert "got an archive of torch.export; hypatia-opt takes" in fails(tmp_path, path)


def test_cut_off(model, tmp_path):
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    assert fails(tmp_path, model).endswith("got a zip archive whose end is missing: the file is cut off")


def test_a_flipped_bit_in_a_weight(model, tmp_path):
    """LibTorch itself loads it."""
    bytes_ = bytearray(model.read_bytes())
    at = bytes_.find(torch.jit.load(str(model)).first.weight.detach().numpy().tobytes())
    assert at > 0
    bytes_[at + 9] ^= 4
    model.write_bytes(bytes_)
    torch.jit.load(str(model))
    sentence = fails(tmp_path, model)
    assert "got a damaged one: the checksum of \"data/" in sentence, sentence


def test_a_wrong_checksum_of_a_compressed_member(model, tmp_path):
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
            if member.filename.endswith("data.pkl"):
                damaged, crc = member.filename, member.CRC
    opt_ok(packed)
    content = packed.read_bytes()
    wrong = struct.pack("<I", crc ^ 1)
    assert content.count(struct.pack("<I", crc)) == 2  # before it and in the directory
    packed.write_bytes(content.replace(struct.pack("<I", crc), wrong))
    sentence = fails(tmp_path, packed)
    assert f"the checksum of {json.dumps(damaged.split('/', 1)[1])} in it does not fit" in sentence


def test_no_code(model, tmp_path):
    path = rezip(model, tmp_path / "m.pt", lambda name, b: None if name.startswith("code") else b)
    sentence = fails(tmp_path, path)
    assert sentence.startswith("expected a TorchScript archive that LibTorch 2."), sentence


# ---------------------------------------------- unknown operators and classes

# `calls` says how often it was called: a model that gives another answer each time.
LIBRARY = """
#include <stdint.h>
typedef struct Opaque* Handle;
int32_t aoti_torch_library_init_fragment(const char*, const char*, uint32_t, Handle*);
int32_t aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, Handle*);
int32_t aoti_torch_library_def(Handle, const char*);
int32_t aoti_torch_library_impl(Handle, const char*, void (*)(uint64_t*, uint64_t, uint64_t));
int32_t aoti_torch_delete_tensor_object(Handle);
static void calls(uint64_t* stack, uint64_t inputs, uint64_t outputs) {
  static uint64_t count = 0;
  aoti_torch_delete_tensor_object((Handle)stack[0]);
  stack[0] = ++count;
}
__attribute__((constructor)) static void add(void) {
  Handle library;
  aoti_torch_library_init_fragment("opt_test_other", __FILE__, __LINE__, &library);
  aoti_torch_library_def(library, "calls(Tensor x) -> int");
  aoti_torch_library_init_impl("opt_test_other", "CPU", __FILE__, __LINE__, &library);
  aoti_torch_library_impl(library, "calls", calls);
}
"""
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture
def other(tmp_path):
    """A model with an operator of another library."""
    library = torch.library.Library("opt_test_other", "FRAGMENT")
    library.define("calls(Tensor x) -> int")

    class Other(Net):
        def forward(self, x):
            return torch.relu(self.first(x)) + torch.ops.opt_test_other.calls(x)

    path = save(Other(), tmp_path / "other.pt")
    library._destroy()
    return path


@pytest.fixture
def library(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text(LIBRARY)
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    return library


def test_an_unknown_operator_is_named(other, tmp_path):
    assert fails(tmp_path, other) == (
        f"expected known operators in {other}, got opt_test_other::calls; load the library that "
        "registers it with --library FILE"
    )


@needs_gcc
def test_a_library_brings_it(other, library, tmp_path):
    out = tmp_path / "out.pt"
    assert "hypatia::" in opt_ok(other, "--library", library, "-o", out, "--explain")
    opt_ok(out, "--library", library, "--dot", tmp_path / "g.dot")
    assert "opt_test_other::calls" in (tmp_path / "g.dot").read_text()


@needs_gcc
def test_a_failed_check_writes_nothing(other, library, tmp_path):
    """Neither the model nor the drawing; what was there stays."""
    out, dot = tmp_path / "out.pt", tmp_path / "g.dot"
    out.write_bytes(b"old")
    arguments = [other, "--library", library, "--check", "-o", out, "--dot", dot]
    assert opt_fails(1, *arguments).startswith("expected output[")
    assert out.read_bytes() == b"old" and not dot.exists() and not leftovers(tmp_path)


def test_an_unknown_class_is_named(model, tmp_path):
    def change(name, content):
        if name.startswith("code/") and name.endswith(".py"):
            return content.replace(b"x: Tensor", b"x: __torch__.torch.classes.my.Stack")
        return content

    sentence = fails(tmp_path, rezip(model, tmp_path / "m.pt", change))
    assert "got torch.classes.my.Stack; load the library" in sentence, sentence


def test_a_library_that_is_none(model, tmp_path):
    assert fails(tmp_path, model, "--library", "/none.so").startswith(
        'expected a library that loads for --library, got "/none.so: cannot open'
    )


# -------------------------------------------------------------------- outputs


def test_no_folder_to_write_to(model, tmp_path):
    out = tmp_path / "no" / "out.pt"
    assert opt_fails(2, model, "-o", out) == (
        f"expected a folder for {out}, got none at {out.parent}"
    )
    assert opt_fails(2, model, "--dot", out).startswith("expected a folder for ")


def test_places_that_are_no_file(model, tmp_path):
    assert "got the folder" in opt_fails(2, model, "-o", tmp_path)
    assert "no regular file" in opt_fails(2, model, "-o", "/dev/null")
    assert opt_fails(2, model, "-o", "/proc/out.pt").startswith("expected to write into /proc, got")


def test_dot_must_not_overwrite_a_model(model, tmp_path):
    before = model.read_bytes()
    assert "a file of its own for --dot" in opt_fails(2, model, "--dot", model)
    out = tmp_path / "out.pt"
    assert "of its own for --dot" in opt_fails(2, model, "--dot", out, "-o", out)
    assert model.read_bytes() == before and not out.exists() and not leftovers(tmp_path)


def test_a_full_disk_leaves_the_old_file(model, tmp_path):
    out = tmp_path / "out.pt"
    out.write_bytes(b"old")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [OPT, model, "-o", out], capture_output=True, text=True, preexec_fn=limit, timeout=300
    )
    assert done.returncode == 2 and len(errors(done)) == 1, done.stderr
    assert f"expected to write {out}, got " in done.stderr
    assert out.read_bytes() == b"old" and not leftovers(tmp_path)


class Endless(torch.nn.Module):
    def forward(self, x):
        while bool((x == x).all()):
            x = x + 1
        return x


def send(tmp_path, number):
    """Status and stderr of a process that gets a signal while it runs a model."""
    path, out = save(Endless(), tmp_path / "m.pt"), tmp_path / "out.pt"
    out.write_bytes(b"old")
    arguments = [OPT, path, "-o", out, "--dot", tmp_path / "g.dot", "--check", "--input", "f32[1]"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        line = ""
        while "checking" not in line:
            line = process.stderr.readline()
            assert line.endswith("…\n"), line
        assert len(leftovers(tmp_path)) == 2
        process.send_signal(number)
        rest = process.stderr.read()
        status = process.wait(60)
    assert out.read_bytes() == b"old" and not leftovers(tmp_path)
    return status, rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_it_leaves_nothing(tmp_path, number):
    assert send(tmp_path, number) == (-number, "")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_crash_is_told_in_a_sentence(tmp_path, number):
    assert send(tmp_path, number) == (
        2,
        "hypatia-opt: expected an archive that LibTorch survives, "
        f"got signal {int(number)} while checking it\n",
    )


# --------------------------------------------------------------------- inputs


def test_inputs_that_nobody_knows(tmp_path):
    class Convolution(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, image):
            return torch.relu(self.conv(image))

    path = save(Convolution(), tmp_path / "m.pt")
    assert fails(tmp_path, path, "--check") == (
        "expected a known input image (Tensor), got no recorded shape and no layer to infer it "
        "from; give every input in its order, such as --input f32[8,784]"
    )
    opt_ok(path, "--check", "--input", "f32[1,3,8,8]")


def test_inputs_that_do_not_fit(model, tmp_path):
    sentence = fails(tmp_path, model, "--check", "--input", "f32[8,17]")
    assert sentence.startswith("expected a model that runs on x: f32[8, 17] (given), got \"Runtime")
    assert "mat1 and mat2 shapes" in sentence
    sentence = fails(tmp_path, model, "--check", "--input", "f32[8,16]", "--input", "1")
    assert sentence == f"expected at most 1 --input, as {model} takes, got 2"


def test_a_module_without_forward(tmp_path):
    class Empty(torch.nn.Module):
        @torch.jit.export
        def other(self, x: torch.Tensor):
            return x

    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Empty()), str(path))
    opt_ok(path)
    assert fails(tmp_path, path, "--check").startswith("expected a model to run, got \"")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_tensors_on_a_device_that_is_not_here(model, tmp_path):
    def pickled(name, content):
        if name != "data.pkl":
            return content
        return content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")

    sentence = fails(tmp_path, rezip(model, tmp_path / "m.pt", pickled))
    assert sentence.startswith("expected CUDA for the tensors of "), sentence


@pytest.mark.parametrize(
    "arguments, text",
    [
        ([], "expected a TorchScript file, got none"),
        (["a", "b"], "expected one TorchScript file, got b too"),
        (["a", "--frobnicate"], "expected an option of this program, got --frobnicate"),
        (["a", "--device", "tpu"], "expected cpu, cuda or h100 for --device, got tpu"),
        (["a", "-o"], "expected a file after -o, got nothing"),
        (["a", "--check", "--input", "f32[x]"], "expected an input such as f32[8,784]"),
    ],
)
def test_the_command_line(arguments, text):
    sentence = opt_fails(2, *arguments)
    assert sentence.startswith(text) and sentence.endswith("; see hypatia-opt --help")


def test_a_path_that_is_not_utf8(model, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.pt"
    os.rename(model, path)
    done = subprocess.run([OPT, path], capture_output=True, timeout=300)
    assert done.returncode == 2 and b"expected a path in UTF-8, got" in done.stderr


def test_a_damaged_recording_is_no_reason_to_fail(tmp_path):
    """Loading does not read it either."""
    path = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.trace(Net().eval(), torch.randn(3, 16)), str(path))

    def change(name, content):
        return content[:100] if name == "traced_inputs.pkl" else content

    damaged = rezip(path, tmp_path / "damaged.pt", change)
    assert "f32[8, 16] (inferred from first.weight)" in opt_ok(damaged, "--check")
