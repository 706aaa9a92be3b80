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
  local tools=$top/.venv-uv pair name value
  [ -x "$tools/bin/uv" ] || {
    "$folder/bin/python" -m venv "$tools" &&
      "$tools/bin/python" -m pip install --disable-pip-version-check --quiet -r "$top/requirements/uv.txt" 2>/dev/null
  } || return 1
  # uv does not read pip's settings: they are handed on, by name, as they are on this machine.
  for pair in index-url=UV_DEFAULT_INDEX extra-index-url=UV_INDEX find-links=UV_FIND_LINKS cert=SSL_CERT_FILE; do
    name=${pair#*=} value=$(setting "${pair%%=*}")
    [ -z "$value" ] || [ -n "${!name:-}" ] || export "$name=$value"
  done
  "$tools/bin/uv" pip install --quiet --system-certs --index-strategy unsafe-best-match --python "$folder/bin/python" "$@" ||
    { echo "uv did not do it; pip does" >&2; return 1; }
}

[ -z "${NO_UV:-}" ] && by_uv "$@" || "$folder/bin/python" -m pip install --disable-pip-version-check --quiet "$@"
