#!/usr/bin/env bash
# Checks what deploys and watches Headwater: the Helm chart, alerts, dashboards. Tools come from PyPI into a directory of their own.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools=.run/checks
wanted=tests/deploy/requirements.txt
if ! cmp -s "$wanted" "$tools/requirements.txt"; then
    python3 -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$tools/requirements.txt"
fi
export PYTHONDONTWRITEBYTECODE=1
run=("$tools/bin/python" -m unittest discover --start-directory tests/deploy)
if (($# > 0)); then exec "${run[@]}" "$@"; fi

# What starts clusters (test_live_….py) waits most of the time: the rest runs beside it, and gives way to it.
nice "${run[@]}" --pattern 'test_[!l]*.py' >"$tools/log" 2>&1 &
rest=$!
trap 'kill "$rest" 2>/dev/null || true' EXIT
failed=0
"${run[@]}" --pattern 'test_l*.py' || failed=1
wait "$rest" || failed=1
cat "$tools/log"
exit "$failed"
