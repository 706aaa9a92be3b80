"""Compares an exported Hugging Face folder with the checkpoint it came from: token ids and float32 logits.

    python launch/compare_hf.py --workdir=runs/cogpo --model=runs/hf --data=runs/crv

Runs held-out problems through transformers (needs torch; without it prints that it skipped) and through the student.
Prints {"max_logit_diff": x, "texts": n} or {"skipped": reason}; exit code 1 if the difference is above --tolerance.
"""

import importlib.util
import itertools
import json

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import RunError, UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of launch/train.py.")
_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder that launch/export_hf.py wrote from it in float32.")
_DATA = flags.DEFINE_string("data", None, "Folder of records, for the texts.")
_TEXTS = flags.DEFINE_integer("texts", 4, "How many texts.", lower_bound=1)
_TOLERANCE = flags.DEFINE_float("tolerance", 2e-4, "Largest accepted difference of a logit.")


def main() -> None:
    for name, value in (("workdir", _WORKDIR.value), ("model", _MODEL.value), ("data", _DATA.value)):
        if not value:
            raise UserError(f"--{name}: missing")
    if importlib.util.find_spec("torch") is None:
        print(json.dumps({"skipped": "torch is not installed (make venv installs it)"}))
        return
    from cogpo_jax.quickstart.compare import max_logit_difference
    from cogpo_jax.records import read_sft
    from cogpo_jax.text import TextFormat, load_tokenizer, prompt_text, response_text

    tokenizer, text_format = load_tokenizer(_MODEL.value), TextFormat()
    texts = [
        prompt_text(tokenizer, row.prompt, row.system, row.messages, text_format=text_format)
        + response_text(row.thought, row.solution, row.text, text_format=text_format)
        for row in itertools.islice(read_sft(_DATA.value, "validation"), _TEXTS.value)
    ]
    difference = max_logit_difference(_WORKDIR.value, _MODEL.value, texts)
    print(json.dumps({"max_logit_diff": difference, "texts": len(texts)}))
    if not difference <= _TOLERANCE.value:
        raise RunError(
            f"logits differ by {difference:.3g}, above {_TOLERANCE.value:g}: {_MODEL.value} is another model"
        )


if __name__ == "__main__":
    cli.run(main)
