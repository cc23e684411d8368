#!/usr/bin/env bash
# run.sh: what `cargo build` says where LibTorch is missing, half there or too
# old. Only the build script is compiled (some 10 s), in target/build-errors.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
work=$root/target/build-errors
passed=0
unset LIBTORCH LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB
mkdir -p "$work"

# refuses WHAT TEXT [VARIABLE=VALUE...]: cargo fails and its output has the text.
refuses() {
  local what=$1 text=$2
  shift 2
  if env "$@" CARGO_TARGET_DIR="$work/target" cargo build --manifest-path "$root/Cargo.toml" \
    >"$work/log.txt" 2>&1; then
    echo "FAILED: $what: cargo built it" >&2
    exit 1
  fi
  tr -s ' \n' ' ' <"$work/log.txt" | grep -F -- "$text" >/dev/null || {
    tail -n 20 "$work/log.txt" >&2
    echo "FAILED: $what: expected \"$text\" in the output above" >&2
    exit 1
  }
  passed=$((passed + 1))
  echo "  ok  $what"
}

# fake FOLDER MINOR: a LibTorch by its files.
fake() {
  mkdir -p "$1/include/torch/headeronly" "$1/lib"
  printf '#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR %s\n#define TORCH_VERSION_PATCH 0\n' \
    "$2" >"$1/include/torch/headeronly/version.h"
  touch "$1/lib/libtorch_cpu.so" "$1/lib/libc10.so"
}

echo "The build script"
refuses "a folder without LibTorch" \
  "/nowhere/include/torch/csrc/api/include/torch/version.h: not there To mend it, run \`make setup\`" \
  LIBTORCH=/nowhere
rm -rf "$work/half" "$work/old"
fake "$work/half" 11
rm "$work/half/lib/libc10.so"
refuses "half a LibTorch" "$work/half/lib/libc10.so: not there" LIBTORCH="$work/half"
fake "$work/old" 9
refuses "an old LibTorch" \
  "hypatia: expected LibTorch 2.10 or newer, got 2.9.0 in $work/old; \`make setup\` installs" \
  LIBTORCH="$work/old"
mkdir -p "$work/bin" # a python3 that knows no package
printf '#!/bin/sh\necho\n' >"$work/bin/python3"
chmod +x "$work/bin/python3"
refuses "a Python without torch" \
  "LIBTORCH_USE_PYTORCH is set, but \`python3\` has no usable torch: python3 has no package torch" \
  -u VIRTUAL_ENV LIBTORCH_USE_PYTORCH=1 PATH="$work/bin:$PATH"
echo "$passed passed, 0 failed"
