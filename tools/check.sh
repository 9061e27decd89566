#!/usr/bin/env bash
# Everything that a change has to pass, and exactly what CI runs. All checks run, then a summary; exit 1 if any failed.
#   bash tools/check.sh [pytest arguments]     PYTHON=... chooses the interpreter (default: .venv/bin/python)
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
if ! "$PYTHON" -c 'import mypy, pytest, ruff' 2>/dev/null; then
  echo "check: $PYTHON cannot import mypy, pytest and ruff; run 'make env', or set PYTHON to an environment with '.[test]'" >&2
  exit 2
fi

summary=()
failed=0
check() {
  local name="$1" begin=$SECONDS verdict=PASS
  shift
  echo "== $name: $*"
  "$@" || { verdict=FAIL; failed=1; }
  summary+=("$(printf '%-6s %-14s %4d s' "$verdict" "$name" $((SECONDS - begin)))")
}

check lint "$PYTHON" -m ruff check .
check format "$PYTHON" -m ruff format --check .
check types "$PYTHON" -m mypy mtvl/{types,sites,errors,dist,config,recipe,registry}.py mtvl/data mtvl/metrics mtvl/objectives
# With two cores and pytest-xdist two workers share the tests, a file at a time, each with one thread; plain pytest works too.
workers=()
if "$PYTHON" -c 'import os, sys, xdist; sys.exit((os.cpu_count() or 1) < 2)' 2>/dev/null; then
  workers=(-n 2 --dist loadfile --no-loadscope-reorder)
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
check tests "$PYTHON" -m pytest ${workers[@]+"${workers[@]}"} "$@"

echo
printf '%s\n' "${summary[@]}"
[ -n "${MTVL_GOLDEN:-}" ] || echo "note   MTVL_GOLDEN is not set: tests against recorded reference numbers were skipped"
exit "$failed"
