#!/usr/bin/env bash
# Makes a virtual environment where there is none, and installs pinned packages into it: install.sh FOLDER PIP_ARGUMENTS...
# uv does it where pip can get it: it reads what it needs at once, and keeps one copy of each package for all environments.
# Where uv cannot be had, or fails, pip does it alone (NO_UV=1: from the start). Both use pip's settings.
set -euo pipefail
folder=$1
shift
top=$(cd "$(dirname "$0")/.." && pwd)
# pip comes last: a folder that an interrupted call left without it is completed.
if [ ! -e "$folder/bin/pip" ]; then
  python=${ENVIRONMENT_PYTHON:-$("$top/mk/python.sh")}
  echo "making $folder with $python"
  "$python" -m venv "$folder"
fi
echo "installing ${*#-r} into $folder (minutes, once)"

setting() {  # a setting of pip, wherever it is set; addresses of folders that are not there are left out
  local word
  for word in $("$folder/bin/python" -m pip config list 2>/dev/null | sed -nE "s/^[a-z:]+[.]$1='(.*)'$/\1/p" | tail -n 1); do
    case $word in
      file://*) [ ! -d "${word#file://}" ] || echo "$word" ;;
      *) echo "$word" ;;
    esac
  done
}

by_uv() {
  local tools=$top/.venv-uv name value variable
  [ -x "$tools/bin/uv" ] || {
    "$folder/bin/python" -m venv "$tools" &&
      "$tools/bin/python" -m pip install --disable-pip-version-check --quiet -r "$top/requirements/uv.txt" 2>/dev/null
  } || return 1
  # uv does not read pip's settings: each is handed on by the name that uv has for it, as it is on this machine.
  for name in $("$folder/bin/python" -m pip config list 2>/dev/null | sed -nE 's/^[a-z:]+[.]([a-z-]+)=.*/\1/p' | sort -u); do
    variable=UV_$(tr a-z- A-Z_ <<<"$name") value=$(setting "$name")
    [ "$name" != cert ] || variable=SSL_CERT_FILE
    [ -z "$value" ] || [ -n "${!variable:-}" ] || export "$variable=$value"
  done
  "$tools/bin/uv" pip install --quiet --system-certs --index-strategy unsafe-best-match --python "$folder/bin/python" "$@" ||
    { echo "uv did not do it; pip does" >&2; return 1; }
}

[ -z "${NO_UV:-}" ] && by_uv "$@" || "$folder/bin/python" -m pip install --disable-pip-version-check --quiet "$@"
