#!/usr/bin/env bash
# Ten minutes of one GPU: attention, a training step at 1.5B, the sampler, and real_student's arms.
#
#     OUT=results WEIGHTS=pieces RAW=gsm8k/train.jsonl benchmarks/on_gpu.sh      # on a machine with an H100 or H200
#     TINY=1 OUT=results MODEL=TINY_HF_FOLDER RAW=... benchmarks/on_gpu.sh       # the rehearsal, on a CPU
#
# The machine has Python 3.12 with jax, flax, optax, orbax and transformers, and no internet. WHEELS: a folder of wheels for
# what is missing. WEIGHTS: a Hugging Face folder, its large files as FILE.part-000, -001, ... of 64 MiB (made by
# `split -b 64M -d -a 3 FILE FILE.part-`); they are joined here. PARTS: which parts to run (all). Each part writes its JSON
# into OUT as soon as it has it, and a part that fails does not stop the next; the exit code is how many failed.
set -u

OUT=${OUT:?a folder for the results}
PARTS=${PARTS:-attention step sampler real_student}
PYTHON=${PYTHON:-python3}
TINY=${TINY:-}
here=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$here:$here/benchmarks" XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-true}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)

if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
  export PYTHONPATH="$PYTHONPATH:$site"
fi

# Joins the pieces of every large file of WEIGHTS.
join_weights() {
  for first in "$WEIGHTS"/*.part-000; do
    [ -e "$first" ] || continue
    whole=${first%.part-000}
    [ -e "$whole" ] || cat "$whole".part-* > "$whole.tmp" && mv -n "$whole.tmp" "$whole" 2>/dev/null
  done
  MODEL=$WEIGHTS
}
[ -n "${WEIGHTS:-}" ] && join_weights

for name in $PARTS; do  # before any work
  case $name in
    attention | step | sampler) ;;
    real_student) : "${RAW:?train.jsonl of GSM8K}" "${MODEL:?a Hugging Face folder (or WEIGHTS: one in pieces)}" ;;
    *) echo "PARTS: $name: must be of attention, step, sampler, real_student" >&2; exit 2 ;;
  esac
done

failed=0
part() {  # part NAME COMMAND...: its last line of JSON goes to OUT/NAME.json, the rest to OUT/NAME.log
  name=$1
  shift
  case " $PARTS " in *" $name "*) ;; *) return ;; esac
  began=$(date +%s)
  if "$@" > "$OUT/$name.out" 2> "$OUT/$name.log" && grep '^{' "$OUT/$name.out" | tail -n 1 > "$OUT/$name.tmp"; then
    mv "$OUT/$name.tmp" "$OUT/$name.json"
    echo "$name: done in $(($(date +%s) - began)) s"
  else
    failed=$((failed + 1))
    echo "$name: failed after $(($(date +%s) - began)) s: $(tail -n 1 "$OUT/$name.log")"
  fi
}

cd "$here" || exit 1
configs=$here/configs
if [ -n "$TINY" ]; then
  step=(--config="$configs/tiny_cpu.py" --synthetic=4:64 --steps=1 --config.rows.length=512)
  decode=(--student="$configs/models/tiny.json" --batch=2 --prompt=16 --new=8 --runs=1)
  attention=(--tiny)
  size=tiny
else
  step=(--config="$configs/tiny_cpu.py" --config.model="$configs/models/qwen2.5-1.5b.json" --synthetic=96:1200 --steps=3
    --config.batch.groups=96 --peak_tflops=989 --config.rows.length=8192 --config.rows.per_device=2 --config.rows.shapes=1 --config.remat=dots
    --config.compute_dtype=bfloat16 --config.logits_chunk=4096 --largest_ops=5)
  decode=(--student="$configs/models/qwen2.5-1.5b.json" --batch=64 --prompt=256 --new=256)
  attention=(--tune)
  size=gpu
fi
part attention "$PYTHON" benchmarks/gpu_attention.py --output="$OUT/attention_cases.json" ${attention[@]+"${attention[@]}"}
part step "$PYTHON" benchmarks/train_step.py "${step[@]}"
part sampler "$PYTHON" benchmarks/decode.py "${decode[@]}"
part real_student "$PYTHON" benchmarks/real_student.py --model="${MODEL:-}" --raw="${RAW:-}" --workdir="$OUT/real" --size="$size"
cp "$OUT/real/results-test.json" "$OUT/real_student_so_far.json" 2>/dev/null
exit "$failed"
