#!/bin/sh
# A TPU pod from nothing to a running command: creates (or finds) it, installs this checkout, runs on every worker.
#
#   launch/tpu_pod.sh up     NAME ZONE v5p-32            creates the pod (queued resource), waits until it is there
#   launch/tpu_pod.sh setup  NAME ZONE                   brings Python >= 3.11 and this checkout to every worker
#   launch/tpu_pod.sh run    NAME ZONE COMMAND...        runs the command in the checkout on every worker, at once
#   launch/tpu_pod.sh logs   NAME ZONE [FOLDER]          fetches every worker's run.log
#   launch/tpu_pod.sh down   NAME ZONE                   deletes the pod
#
# For example, after `up` and `setup`:
#   launch/tpu_pod.sh run my-pod us-east5-a python launch/train.py --config=configs/cogpo_tpu.py:7b \
#     --config.init_from=gs://B/sft-7b --config.data=gs://B/crv --workdir=gs://B/cogpo-7b
#
# Needs the gcloud command, signed in, with a project set. All workers run the same command; jax finds the others. A pod
# that is taken away (SIGTERM) saves its last finished step and exits 0: `up`, `setup`, and the same `run` go on.
# RUNTIME and SPOT=1 may be set; accelerator types count cores (v5p-32 is 16 chips, 2x2x4), v5litepod-16 and v6e-32 chips.
set -eu

usage() {
  sed -n '2,10p' "$0" | cut -c3-
  exit 2
}

[ $# -ge 3 ] || usage
verb=$1 name=$2 zone=$3
shift 3

# Runs $1 in a shell on every worker at the same time; a worker's failure is ours.
everywhere() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --quiet --command="$1"
}

case $verb in
up)
  [ $# -eq 1 ] || usage
  type=$1
  case $type in
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) echo "error: $type: known accelerator types begin with v5p-, v5litepod- or v6e-" >&2 && exit 2 ;;
  esac
  if ! gcloud compute tpus tpu-vm describe "$name" --zone="$zone" >/dev/null 2>&1; then
    gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" --quiet \
      --accelerator-type="$type" --runtime-version="${RUNTIME:-$runtime}" ${SPOT:+--spot}
  fi
  until [ "$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(state)' 2>/dev/null)" = READY ]; do
    state=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
      --format='value(state.state)' 2>/dev/null || echo 'no state')
    case $state in
    FAILED | SUSPENDED) # neither becomes READY any more
      echo "error: $name: its queued resource is $state: $0 down $name $zone, then up again" >&2 && exit 1 ;;
    esac
    echo "waiting for $name ($state)" >&2
    sleep "${POLL_SECONDS:-30}"
  done
  ;;
setup)
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
  git archive --format=tar.gz -o "$archive" HEAD # what is committed runs: the same code on every worker
  gcloud compute tpus tpu-vm scp "$archive" "$name:cogpo-jax.tar.gz" --zone="$zone" --worker=all --quiet
  everywhere '
    set -eu
    command -v python3.11 >/dev/null || {
      sudo apt-get update -q && { sudo apt-get install -qy python3.11 python3.11-venv ||
        { sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -qy python3.11 python3.11-venv; }; }
    }
    rm -rf cogpo-jax && mkdir cogpo-jax && tar -xzf cogpo-jax.tar.gz -C cogpo-jax && cd cogpo-jax
    [ -x "$HOME/.venv-cogpo/bin/pip" ] || python3.11 -m venv "$HOME/.venv-cogpo"
    "$HOME/.venv-cogpo/bin/pip" install -q -r requirements/tpu.txt && "$HOME/.venv-cogpo/bin/pip" install -q --no-deps -e .
    "$HOME/.venv-cogpo/bin/python" -c "import jax; print(jax.__version__)"
  '
  ;;
run)
  [ $# -ge 1 ] || usage
  command=
  for word in "$@"; do # each word arrives as it was given
    command="$command '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
  done
  everywhere "
    cd cogpo-jax && export PATH=\"\$HOME/.venv-cogpo/bin:\$PATH\" && set -o pipefail &&
    $command 2>&1 | tee -a \"\$HOME/run.log\"
  "
  ;;
logs)
  folder=${1:-logs-$name}
  mkdir -p "$folder"
  workers=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format='value(networkEndpoints.len())')
  worker=0
  while [ "$worker" -lt "$workers" ]; do
    gcloud compute tpus tpu-vm scp "$name:run.log" "$folder/worker-$worker.log" --zone="$zone" --worker="$worker" --quiet
    worker=$((worker + 1))
  done
  ;;
down)
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --quiet --force
  ;;
*) usage ;;
esac
