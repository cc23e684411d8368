"""Damaged archives: hypatia-opt ends with status 0, 1 or 2 and one line, never by a signal.

HYPATIA_FUZZ_SECONDS=600 goes on for that long, with other seeds.
"""

import concurrent.futures
import os
import random
import time

import pytest
import torch

from opt_support import Net, errors, leftovers, opt, rezip, save

SECONDS = float(os.environ.get("HYPATIA_FUZZ_SECONDS", 0))
VARIANTS = 200


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    traced = folder / "traced.pt"
    torch.jit.save(torch.jit.trace(Net(), torch.randn(3, 16)), str(traced))
    return [save(Net(), folder / "scripted.pt", _extra_files={"a": "b"}), traced]


def flips(random, source, target):
    content = bytearray(source.read_bytes())
    for _ in range(random.choice([1, 1, 2, 8, 64])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    target.write_bytes(content)


def cut(random, source, target):
    content = source.read_bytes()
    target.write_bytes(content[: random.randrange(len(content))])


def spliced(random, source, target):
    content = source.read_bytes()
    at, to = sorted(random.randrange(len(content)) for _ in range(2))
    middle = random.choice([b"", bytes(to - at), random.randbytes(to - at), content[at:to] * 2])
    target.write_bytes(content[:at] + middle + content[to:])


def damage(random, content):
    """Bytes of one member, its checksum right afterwards: LibTorch has to cope."""
    if not content:
        return random.randbytes(8)
    at, to = sorted(random.randrange(len(content) + 1) for _ in range(2))
    how = random.randrange(5)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + content[to:]
    if how == 2:
        return content[:to] + content[at:]
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8])):
        at = random.randrange(len(changed))
        changed[at] = random.randrange(256) if how == 3 else changed[at] ^ 1 << random.randrange(8)
    return bytes(changed)


def members(random, source, target):
    # Most often what LibTorch parses: the pickles and the code.
    names = []
    rezip(source, target, lambda name, content: names.append(name) or content)
    parsed = [name for name in names if name.endswith((".pkl", ".py"))]
    victim = random.choice(parsed if random.random() < 0.8 else names)
    gone = random.random() < 0.1

    def change(name, content):
        if name != victim:
            return content
        return None if gone else damage(random, content)

    rezip(source, target, change)


def attempt(seed, folder, models):
    """What went wrong, and otherwise the status."""
    rng = random.Random(seed)
    source = rng.choice(models)
    path, out = folder / f"{seed}.pt", folder / f"{seed}-out.pt"
    # The check of checksums leaves the first three little to find.
    how = rng.choice([flips, cut, spliced, members, members, members])
    how(rng, source, path)
    check = ["--check", "--input", "f32[3,16]"] if rng.random() < 0.5 else []
    done = opt(path, "-o", out, *check, timeout=600)
    lines = errors(done)
    right = (
        done.returncode in (0, 1, 2)
        and len(lines) == (0 if done.returncode == 0 else 1)
        and all(line.startswith("hypatia-opt: expected ") for line in lines)
        and out.exists() == (done.returncode == 0)
    )
    if not right:
        return f"seed {seed} ({how.__name__}): status {done.returncode}, {done.stderr!r}"
    path.unlink()
    out.unlink(missing_ok=True)
    return done.returncode


def test_damaged_archives(models, tmp_path):
    end = time.monotonic() + SECONDS
    statuses = {}
    seed = 0 if not SECONDS else random.randrange(1 << 40)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        while not statuses or time.monotonic() < end:
            run = pool.map(lambda n: attempt(n, tmp_path, models), range(seed, seed + VARIANTS))
            for result in run:
                assert isinstance(result, int), result
                statuses[result] = statuses.get(result, 0) + 1
            seed += VARIANTS
    assert not leftovers(tmp_path)
    # It is about failures, and some damage must be harmless or this is no test.
    assert statuses.get(2, 0) > 50, statuses
    print(statuses)
