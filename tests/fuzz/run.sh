#!/usr/bin/env bash
# Build gguf_fuzz with clang and run it: tests/fuzz/run.sh [SECONDS, default 60]. The growing corpus stays in build-fuzz/corpus.
# CXX names another clang++; MOEPIC_FUZZ_DIR another build folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
build=${MOEPIC_FUZZ_DIR:-build-fuzz}
compiler=${CXX:-}
for name in clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14; do
    [ -n "$compiler" ] || ! command -v "$name" >/dev/null || compiler=$name
done
[ -n "$compiler" ] || { echo "fuzz: no clang++ found (Debian, Ubuntu: apt-get install clang)" >&2; exit 1; }

cmake -G Ninja -S . -B "$build" -DMOEPIC_FUZZ=ON -DCMAKE_CXX_COMPILER="$compiler" >/dev/null
cmake --build "$build" --target gguf_fuzz
mkdir -p "$build/corpus" "$build/findings"
python3 tests/fuzz/make_corpus.py "$build/seeds"
# Inputs have at most 8 KiB, so one allocation of a MiB or an input of seconds is already a broken promise.
exec "$build/fuzz/gguf_fuzz" -max_total_time="$seconds" -max_len=8192 -timeout=5 -malloc_limit_mb=1 -rss_limit_mb=1024 \
    -dict=tests/fuzz/gguf.dict -artifact_prefix="$build/findings/" -print_final_stats=1 "$build/corpus" "$build/seeds"
