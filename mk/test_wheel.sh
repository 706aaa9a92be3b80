#!/usr/bin/env bash
# The quickstart's chain, shortened to a minute, by the `cogpo` of the environment whose bin folder is given.
set -euo pipefail
cogpo=$1/cogpo
export JAX_PLATFORMS=cpu PYTHONPATH= COLUMNS=100
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$cogpo" --version
"$cogpo" --help > help.txt
"$cogpo" configs > configs.txt
"$cogpo" configs show cogpo_tpu:7b > fields.txt
grep -q "  train " help.txt
grep -q "cogpo_tpu:14b" configs.txt
grep -q "rows.length = 16384" fields.txt

few="--config.rows.length=896 --config.rows.shapes=1 --config.batch.groups=8 --config.max_steps=2"
"$cogpo" crv --config=crv_recorded --config.limit=60 --config.heldout=10 --workdir=crv | tail -n 1 > crv.json
"$cogpo" train-tokenizer --data=crv --output=tokenizer --vocab_size=1024
"$cogpo" train --config=tiny_cpu $few --config.objective=sft --config.data=crv --config.tokenizer=tokenizer --workdir=sft
"$cogpo" train --config=tiny_cpu $few --config.objective=cogpo --config.data=crv --config.init_from=sft --workdir=cogpo
"$cogpo" export --workdir=cogpo --output=hf --dtype=float32
echo '{"prompt": "What is 1 + 1?"}' > prompts.jsonl
"$cogpo" generate --model=hf --input=prompts.jsonl --output=responses.jsonl --max_new_tokens=8
"$cogpo" report --data=crv --sft=sft --cogpo=cogpo --output=report.html > report.json
test -s hf/model.safetensors && test -s responses.jsonl && test -s report.html
echo "the wheel works: $(ls | tr '\n' ' ')"
