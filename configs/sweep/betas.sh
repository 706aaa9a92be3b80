#!/bin/sh
# A sweep of betas: one run after the other, the reference scored once.
#
#   INIT=gs://B/sft-7b DATA=gs://B/crv OUT=gs://B/sweep sh configs/sweep/betas.sh
#
# All runs share one reference cache (it is keyed by the SFT model's weights and each response's tokens, not by betas):
# the first run fills it, the others read it and never load the reference. More flags go to every run, for example
# --config.max_steps=100. On a pod, run it on every host, as any other command (launch/tpu_pod.sh).
set -eu
: "${INIT:?folder or workdir of the SFT model}" "${DATA:?folder of shards}" "${OUT:?folder for the runs}"
CONFIG=${CONFIG:-configs/cogpo_tpu.py:7b}

for betas in "0.1 0.2 0.5" "0.1 0.1 0.1" "0.05 0.2 0.8" "0.2 0.4 1.0"; do
  small=$(echo $betas | cut -d' ' -f1) medium=$(echo $betas | cut -d' ' -f2) large=$(echo $betas | cut -d' ' -f3)
  python launch/train.py --config="$CONFIG" --workdir="$OUT/$small-$medium-$large" \
    --config.init_from="$INIT" --config.data="$DATA" --config.reference_cache.dir="$OUT/reference" \
    --config.beta.small="$small" --config.beta.medium="$medium" --config.beta.large="$large" "$@"
done
