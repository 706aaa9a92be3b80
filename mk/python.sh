#!/usr/bin/env bash
# Prints the Python that the virtual environments are made with: the first of 3.11 and newer that runs and has venv.
# PYTHON=/path/to/python in the environment is taken before any other.
set -u

without_venv=""
for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3; do
  command -v "$name" >/dev/null 2>&1 || continue
  # A name on the PATH may be a shim that only complains: ask the interpreter itself.
  "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
  if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    command -v "$name"
    exit 0
  fi
  without_venv=$name
done

if [ -n "$without_venv" ]; then
  echo "error: $without_venv has no venv module: install it first (Debian: apt-get install python3-venv)" >&2
else
  echo "error: no Python 3.11 or newer found: install one (Debian: apt-get install python3 python3-venv) or set PYTHON=/path/to/python" >&2
fi
exit 1
