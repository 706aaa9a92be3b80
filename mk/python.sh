#!/usr/bin/env bash
# Prints the Python that the virtual environments are made with: the first of 3.11 and newer that runs and has venv.
# PYTHON=/path/to/python in the environment is taken before any other. With arguments: the first of these names instead.
set -u

wanted="Python 3.11 or newer"
if [ $# -gt 0 ]; then
  wanted=$*
else
  set -- ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3
fi

candidates() {
  # A name on the PATH may be one of pyenv's shims, which only complain: pyenv says where the interpreter itself is.
  for name in "$@"; do
    echo "$name"
    pyenv whence --path "$name" 2>/dev/null
  done
}

without_venv=""
for name in $(candidates "$@"); do
  command -v "$name" >/dev/null 2>&1 || continue
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
  echo "error: no $wanted found: install one (Debian: apt-get install python3 python3-venv) or set PYTHON=/path/to/python" >&2
fi
exit 1
