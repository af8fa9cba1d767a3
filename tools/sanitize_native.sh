#!/usr/bin/env bash
# The tests of the native kernels under sanitizers: addresses and undefined behaviour together, then threads.
# They go through every instruction set of this machine and stop at the first finding. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 # Python itself leaves memory behind
export UBSAN_OPTIONS=print_stacktrace=1
# torch is not instrumented: what it does with its own threads would look like races
export TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:die_after_fork=0:allocator_may_return_null=1

tests() { # tests SANITIZERS RUNTIME ...
  local build="$folder/${1%%,*}"
  cmake -S native -B "$build" -DCMAKE_BUILD_TYPE=Release -DREGARD_SANITIZE="$1" >"$build.log"
  cmake --build "$build" --parallel "${JOBS:-2}" >>"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
  # The runtime must be there before Python, and what it wraps of C++ too. setarch: where the system spreads addresses
  # widely, the thread sanitizer finds no room of its own. Left out are other engines and libraries built by tests.
  REGARD_NATIVE="$build/libregard_native.so" setarch -R \
    env LD_PRELOAD="$(c++ -print-file-name="$2") $(c++ -print-file-name=libstdc++.so)" \
    "$python" -m pytest -x --capture=sys -p no:cacheprovider -k "not emulated and not sdpa and not tiles and not flex" \
    tests/engines/test_native*.py tests/engines/test_agreement.py tests/ops/test_native*.py tests/ops/test_delta_rule.py \
    "${@:3}"
}

tests address,undefined libasan.so "$@"
tests thread libtsan.so "$@"
