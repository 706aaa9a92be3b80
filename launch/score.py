"""Log-probs of responses under a student, by the code path of training.

    python launch/score.py --model=runs/hf --input=rows.jsonl --output=scored.jsonl

Rows are JSON objects {prompt, response} with an optional `system`; the same rows come out, in order, with `logp`
(natural logarithm, summed over the response and its end token) and `tokens`. A response too long for a row is not cut:
`logp` is null and `reason` says why. Prints one JSON object with the counts.
"""

import json

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.text import TextFormat

_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder.")
_INPUT = flags.DEFINE_string("input", None, "JSONL file of {prompt, response[, system]}.")
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write.")
_ROW_LENGTH = flags.DEFINE_integer("row_length", 0, "Tokens of a row; 0: what the longest response needs.")
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 16_384, "Tokens of a micro-batch per device (at least one row).")
_WINDOW = flags.DEFINE_integer("window", 1024, "Rows of the file that are packed together.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: float32 on a CPU, else bfloat16.")
_TENSOR = flags.DEFINE_integer("tensor", 1, "Devices over which heads and vocabulary are split.")
_PROMPT = flags.DEFINE_enum("prompt_format", "chat", ["chat", "raw"], "chat: the tokenizer's template; raw: as it is.")
_SYSTEM = flags.DEFINE_string("system", "", "System message for rows without one; empty: the template decides.")
_END = flags.DEFINE_string("end_token", "<|im_end|>", "The token that ends a response.")


def main() -> None:
    for name, value in (("model", _MODEL.value), ("input", _INPUT.value), ("output", _OUTPUT.value)):
        if not value:
            raise UserError(f"--{name}: missing")
    text_format = TextFormat(prompt=_PROMPT.value, response="plain", system=_SYSTEM.value, end_token=_END.value)
    from cogpo_jax.training.score_rows import ScoreOptions, score_file

    options = ScoreOptions(
        row_length=_ROW_LENGTH.value,
        batch_tokens=_BATCH_TOKENS.value,
        window=_WINDOW.value,
        compute_dtype=_DTYPE.value or "",
        tensor=_TENSOR.value,
        text_format=text_format,
    )
    print(json.dumps(score_file(_MODEL.value, _INPUT.value, _OUTPUT.value, options)))


if __name__ == "__main__":
    cli.run(main)
