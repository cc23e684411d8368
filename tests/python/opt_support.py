"""hypatia-opt as a subprocess, and models for it."""

import os
import pathlib
import subprocess
import zipfile

import torch

from support import LIBRARY

OPT = pathlib.Path(os.environ.get("HYPATIA_OPT", LIBRARY.parent / "hypatia-opt")).resolve()



def opt(*arguments, timeout=300, cwd=None):
    return subprocess.run(
        [OPT, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=cwd
    )


def errors(done):
    """The lines of stderr that are not progress."""
    lines = done.stderr.splitlines()
    return [line for line in lines if not line.endswith("…") and " done in " not in line]


def opt_ok(*arguments, **how):
    done = opt(*arguments, **how)
    assert done.returncode == 0, (done.returncode, done.stderr, done.stdout)
    assert not errors(done), done.stderr
    return done.stdout


def opt_fails(status, *arguments, **how):
    """The one sentence that it ends with, without the program's name."""
    done = opt(*arguments, **how)
    lines = errors(done)
    assert done.returncode == status, (done.returncode, done.stderr)
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("hypatia-opt: expected ") and ", got " in lines[0], lines[0]
    return lines[0].removeprefix("hypatia-opt: ")


class Net(torch.nn.Module):
    """Two fused layers apart from each other, so that they stay two."""

    def __init__(self, inputs=16, hidden=8, outputs=4):
        super().__init__()
        self.first = torch.nn.Linear(inputs, hidden)
        self.second = torch.nn.Linear(hidden, outputs)

    def forward(self, x):
        return torch.relu(self.second(torch.sigmoid(torch.relu(self.first(x)))))


def save(module, path, **how):
    torch.jit.save(torch.jit.script(module.eval()), str(path), **how)
    return path


def leftovers(folder):
    return [path.name for path in folder.iterdir() if "partial" in path.name]


def rezip(source, target, change):
    """A copy of a zip archive, its checksums right; `change(name, bytes)` returns
    the new bytes of a member, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            content = change(member.filename.split("/", 1)[1], old.read(member))
            if content is not None:
                new.writestr(member.filename, content, member.compress_type)
    return target
