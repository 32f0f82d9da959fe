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
PYTHONDONTWRITEBYTECODE=1 exec "$tools/bin/python" -m unittest discover --start-directory tests/deploy "$@"
