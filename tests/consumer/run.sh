#!/usr/bin/env bash
# run.sh [PYTHON]: the installed package as its users meet it, from C, C++ and
# TorchScript. PYTHON has torch; cmake and ninja are on PATH; the library is
# built. Everything temporary is in target/consumer.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
python=${1:-$root/.venv/bin/python}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/${python##*/} ;; esac
here=$root/tests/consumer
library=${HYPATIA_LIBRARY:-$root/target/release/libhypatia.so}
work=$root/target/consumer
prefix="$work/prefix with a space"
passed=0

pass() {
  passed=$((passed + 1))
  echo "  ok  $1"
}
fail() {
  echo "FAILED: $1" >&2
  echo "$passed passed, 1 failed"
  exit 1
}
# quiet WHAT COMMAND...: shows the output only when the command fails.
quiet() {
  local what=$1
  shift
  "$@" >"$work/log.txt" 2>&1 || {
    tail -n 60 "$work/log.txt" >&2
    fail "$what: \`$*\`"
  }
}
# says WHAT STATUS TEXT COMMAND...: it ends with the status, and its output,
# with line breaks as spaces (CMake breaks lines), has the text.
says() {
  local what=$1 status=$2 text=$3 got=0
  shift 3
  "$@" >"$work/log.txt" 2>&1 || got=$?
  if [ "$got" != "$status" ]; then
    tail -n 30 "$work/log.txt" >&2
    fail "$what: expected status $status, got $got from \`$*\`"
  fi
  tr -s ' \n' ' ' <"$work/log.txt" | grep -F -- "$text" >/dev/null || {
    tail -n 30 "$work/log.txt" >&2
    fail "$what: expected \"$text\" in the output above"
  }
  pass "$what"
}
# No `grep -q` behind a pipe: it leaves early, and pipefail blames the writer.
needs() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }
# keeps WHAT FILE LIBRARY...: the file needs each of the libraries.
keeps() {
  local what=$1 file=$2
  shift 2
  for name in "$@"; do
    needs "$file" | grep -x "$name" >/dev/null || fail "$what: $file does not need $name"
  done
  pass "$what"
}

for tool in cmake ninja readelf g++ nm; do
  command -v "$tool" >/dev/null || fail "expected $tool on PATH, got none"
done
[ -f "$library" ] || fail "expected $library, got none; run make build"
if [ -z "${LIBTORCH:-}" ] || [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
  torch=$("$python" -c "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))") ||
    fail "expected a Python with torch, got $python"
else
  torch=$LIBTORCH
fi
# The package must find LibTorch by itself from here on.
unset LIBTORCH LIBTORCH_USE_PYTORCH Torch_DIR CMAKE_PREFIX_PATH LD_LIBRARY_PATH
export CMAKE_GENERATOR=Ninja
rm -rf "$work"
mkdir -p "$work/model"

echo "The library"
if needs "$library" | grep -E '^lib(cuda|cublas|nvrtc|torch_cuda|c10_cuda|nv)'; then
  fail "libhypatia.so needs the library above, which a CPU-only LibTorch lacks"
fi
keeps "needs LibTorch and no CUDA library" "$library" libtorch_cpu.so libc10.so
quiet "hypatia.h against src/capi.rs" "$python" "$here/compare_abi.py" "$root"
exported=$(nm -D --defined-only "$library" | sed -n 's/.* T \(hypatia_[a-z_]*\)$/\1/p')
for name in $(grep -oE '\bhypatia_[a-z_]+\(' "$root/include/hypatia/hypatia.h" | tr -d '(' | sort -u); do
  grep -x "$name" <<<"$exported" >/dev/null || fail "hypatia.h declares $name, the library has none"
done
pass "hypatia.h is what Rust exports"

echo "The package"
quiet "configure Hypatia" cmake -S "$root/cmake" -B "$work/package" \
  -DCMAKE_INSTALL_PREFIX="$prefix" -DHYPATIA_LIBTORCH="$torch" -DHYPATIA_LIBRARY="$library"
quiet "install Hypatia" cmake --install "$work/package"
pass "installs"
find_hypatia=(cmake -DCMAKE_PREFIX_PATH="$prefix")
quiet "configure a project in C" "${find_hypatia[@]}" -S "$here/configure" -B "$work/c"
quiet "build a project in C" ninja -C "$work/c"
quiet "run a program in C" "$work/c/nothing"
# libtorch.so is what brings CUDA. Some wheels' own has symbols of libstdc++ in
# it, which keep it by chance; libtorch_cpu.so then tells whether the flag works.
keeps "the target keeps the library and LibTorch under --as-needed" \
  "$work/c/nothing" libhypatia.so libtorch.so libtorch_cpu.so libc10.so

version=$(sed -n 's/.*_built_for "\(.*\)".*/\1/p' "$prefix"/lib*/cmake/Hypatia/HypatiaConfig.cmake)
minor=${version%.*}
other=$work/other-libtorch
mkdir -p "$other/include/torch/headeronly"
sed 's/\(define TORCH_VERSION_MINOR\) .*/\1 99/' \
  "$torch/include/torch/headeronly/version.h" >"$other/include/torch/headeronly/version.h"
# Every case in a folder of its own: CMake remembers where it found things.
says "another LibTorch is refused in a sentence" 1 \
  "hypatia: expected LibTorch $minor, which libhypatia.so was built for, got 2.99.${version##*.} in $other; set HYPATIA_LIBTORCH=/path/to/libtorch to one of version $minor" \
  "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-other" -DHYPATIA_LIBTORCH="$other"
says "another LibTorch in \$LIBTORCH too" 1 "got 2.99.${version##*.} in $other" \
  env LIBTORCH="$other" "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-env"
says "another LibTorch in a target torch too" 1 \
  "got 2.99.${version##*.} in the target torch" \
  "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-target" -DHAS_TORCH="$other"
says "a folder without LibTorch too" 1 \
  "hypatia: expected LibTorch $minor, got none in /nowhere; set HYPATIA_LIBTORCH" \
  "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-none" -DHYPATIA_LIBTORCH=/nowhere
says "half a LibTorch too" 1 "hypatia: expected libtorch.so in $work/half/lib, got none" \
  bash -c 'mkdir -p "$1/half" && ln -s "$2/include" "$1/half/include" && shift 2 && "$@"' \
  - "$work" "$torch" \
  "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-half" -DHYPATIA_LIBTORCH="$work/half"
says "an optional find_package goes on" 0 "Hypatia_FOUND=0" \
  "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-optional" \
  -DHYPATIA_LIBTORCH="$other" -DOPTIONAL=ON
says "another version of Hypatia is refused" 1 "requested version \"99\"" \
  "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-version" -DWANTED=99
says "a target torch is used" 0 "LibTorch is torch" \
  "${find_hypatia[@]}" -S "$here/configure" -B "$work/c-torch" -DHAS_TORCH="$torch"
# The loader path: a library from another machine does not know this LibTorch.
says "the project refuses it as well" 1 \
  "hypatia: expected LibTorch $version, which $library was built for, got 2.99" \
  env LD_LIBRARY_PATH="$torch/lib" cmake -S "$root/cmake" -B "$work/package-other" -DHYPATIA_LIBTORCH="$other" \
  -DHYPATIA_LIBRARY="$library"

echo "Programs (compiling, about a minute)"
quiet "configure the consumer" "${find_hypatia[@]}" -S "$here" -B "$work/build"
quiet "build the consumer" ninja -C "$work/build"
quiet "configure serve" "${find_hypatia[@]}" -S "$root/examples/serve" -B "$work/serve" \
  -DCMAKE_CXX_FLAGS="-O1 -Wall -Wextra -Werror" -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_EXE_LINKER_FLAGS=-Wl,--as-needed
quiet "build serve" ninja -C "$work/serve"
for flag in no-as-needed as-needed; do
  quiet "the C++ API" "$work/build/consumer_$flag"
  pass "the C++ API and the C ABI, linked --$flag"
done
quiet "the C ABI" "$work/build/consumer_c"
pass "the C ABI from C99"

# A Makefile's way, without the package; -I, so that warnings in our headers
# count; nothing is called, so that only the headers' mention keeps the library.
by_hand=(-Wall -Wextra -Wpedantic -Wshadow -Werror -I "$prefix/include")
quiet "hypatia.h in strict C99" gcc -std=c99 -O2 "${by_hand[@]}" "$here/header_only.c" \
  -o "$work/header_c" -Wl,--as-needed -Wl,--allow-shlib-undefined "$library"
keeps "hypatia.h keeps the library under --as-needed" "$work/header_c" libhypatia.so
standard=c++17
case $minor in 2.1[0-2]) ;; *) standard=c++20 ;; esac
cxx=(g++ -std=$standard "${by_hand[@]}" -isystem "$torch/include"
  -isystem "$torch/include/torch/csrc/api/include")
quiet "hypatia.hpp without CMake" "${cxx[@]}" -O2 "$here/header_only.cpp" -o "$work/header_cpp" \
  -DHYPATIA_NO_LINK -Wl,--as-needed -Wl,-rpath,"$torch/lib" \
  "$library" "$torch/lib/libtorch_cpu.so" "$torch/lib/libc10.so"
keeps "hypatia.hpp keeps the library under --as-needed" "$work/header_cpp" libhypatia.so

echo "Versions that do not belong together"
says "other LibTorch headers stop the compiler" 1 \
  "hypatia: expected the headers of LibTorch 2.99, got $version" \
  "${cxx[@]}" -fsyntax-only -Wfatal-errors -DHYPATIA_LIBTORCH_MAJOR=2 \
  -DHYPATIA_LIBTORCH_MINOR=99 "$here/header_only.cpp"
other_library() { # NAME ABI LIBTORCH
  quiet "build $1" gcc -shared -fPIC -DOTHER_ABI="$2" -DOTHER_LIBTORCH="\"$3\"" \
    "$here/other_library.c" -o "$work/$1"
}
abi=$(sed -n 's/^#define HYPATIA_ABI_VERSION \([0-9]*\)u$/\1/p' "$root/include/hypatia/hypatia.h")
other_library other-abi.so 99 "$version"
says "a library of another ABI is named at the first call" 1 \
  "hypatia: expected a library of ABI version $abi, got 99" \
  env LD_PRELOAD="$work/other-abi.so" "$work/build/consumer_as-needed"
other_library other-libtorch.so "$abi" 2.99.0
says "a library for another LibTorch is named at the first call" 1 \
  "hypatia: expected LibTorch 2.99, got $minor" \
  env LD_PRELOAD="$work/other-libtorch.so" "$work/build/consumer_as-needed"

echo "A CPU-only LibTorch, and loading more than once"
quiet "cpu_only" "$work/build/cpu_only" "$prefix"/lib*/libhypatia.so
pass "right without libtorch_cuda in the process"
cp "$library" "$work/copy.so"
quiet "load again" "$work/build/cpu_only" "$library" "$library" "$work/copy.so" \
  "$prefix"/lib*/libhypatia.so
pass "right when loaded again, from other paths, and after dlclose"

echo "TorchScript in C++ (serve)"
serve=$work/serve/serve
model=$work/model
quiet "make a TorchScript model with $python" "$python" -W ignore::DeprecationWarning \
  "$here/make_model.py" "$library" "$model"
wrong="hypatia::fused_linear_relu: expected weight"
if [ -x "${library%/*}/hypatia-opt" ]; then
  wrong="hypatia::fused_mlp: expected weights[0]"
  opt="$prefix/bin/hypatia-opt"
  says "hypatia-opt is installed and runs" 0 "result ok" \
    "$opt" "$model/model.pt" -o "$model/optimized.pt" --check
  says "hypatia-opt names what is no model" 2 "hypatia-opt: expected a TorchScript" \
    "$opt" "$model/input.bin"
  mv "$model/optimized.pt" "$model/model.pt"
fi
for batch in 64 1024; do
  quiet "serve in batches of $batch" "$serve" "$model/model.pt" --input "$model/input.bin" \
    --shape 1000 32 --output "$model/got-$batch.txt" --device cpu --batch $batch
  cmp "$model/expected.txt" "$model/got-$batch.txt" >&2 ||
    fail "serve and Python predict differently in batches of $batch"
  pass "predicts as Python does, in batches of $batch"
done
grep -qE '^serve: 1000 rows on cpu in 1 batches: first [0-9.]+ ms$' "$work/log.txt" ||
  fail "expected a summary of the time, got $(cat "$work/log.txt")"
"$serve" "$model/model.pt" --input "$model/input.bin" --shape 1000 32 2>/dev/null |
  cmp - "$model/expected.txt" >&2 || fail "serve prints other classes than it writes"
pass "prints the classes, and the time on stderr"
[ "$("$serve" "$model/model.pt" --shape 7 32 2>/dev/null | wc -l)" = 7 ] ||
  fail "expected 7 classes for 7 random rows"
pass "takes random rows"
says "a missing model" 1 "serve: expected a TorchScript file in /no.pt, got no such file" \
  "$serve" /no.pt --shape 1 1
says "a model that is none" 1 "serve: expected a TorchScript file in $model/input.bin, got \"" \
  "$serve" "$model/input.bin" --shape 1 1
says "a missing input" 1 "serve: expected rows in /no.bin, got no such file" \
  "$serve" "$model/model.pt" --input /no.bin --shape 1 32
says "an input of another size" 1 \
  "serve: expected 999 rows of 32 float32 in $model/input.bin, got 128000 bytes" \
  "$serve" "$model/model.pt" --input "$model/input.bin" --shape 999 32
says "rows of another width, in the operator's own words" 1 \
  "serve: $wrong of shape [N, 16] for input [1024, 16], got [48, 32]" \
  "$serve" "$model/model.pt" --input "$model/input.bin" --shape 2000 16
says "a device that does not exist" 1 "serve: expected cpu, cuda or cuda:N for --device, got tpu" \
  "$serve" "$model/model.pt" --shape 1 32 --device tpu
says "a wrong command line" 2 "serve: expected a whole number of at least 1 for --batch, got \"0\"; see serve --help" \
  "$serve" "$model/model.pt" --shape 1 32 --batch 0
[ "$(wc -l <"$work/log.txt")" = 1 ] || fail "expected one line of error, got $(cat "$work/log.txt")"
says "an unknown option" 2 "got --frobnicate" "$serve" "$model/model.pt" --frobnicate

echo "$passed passed, 0 failed"
