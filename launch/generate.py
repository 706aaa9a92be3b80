"""Responses of a student to a file of prompts, by the in-process sampler (no server).

    python launch/generate.py --model=runs/hf --input=prompts.jsonl --output=responses.jsonl --max_new_tokens=2048

Rows are JSON objects {prompt} with an optional `system`; the same rows come out, in order, with `response`, `tokens`
and `finish_reason` (stop | length). Greedy unless --temperature is given; with a seed a row's response does not depend
on the batch it is in. A prompt that leaves no room gets `response` null and a `reason`. Prints one JSON object.
"""

import json

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.text import TextFormat

_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder.")
_INPUT = flags.DEFINE_string("input", None, "JSONL file of {prompt[, system]}.")
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write.")
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 512, "Tokens of a response at most.")
_BATCH = flags.DEFINE_integer("batch", 8, "Prompts at a time.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: greedy.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many likeliest tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens with this probability together.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides the draws of every row.")
_STOP = flags.DEFINE_list("stop", [], "More tokens that end a response, beside the folder's own.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: float32 on a CPU, else bfloat16.")
_TENSOR = flags.DEFINE_integer("tensor", 1, "Devices over which heads and vocabulary are split.")
_PROMPT = flags.DEFINE_enum("prompt_format", "chat", ["chat", "raw"], "chat: the tokenizer's template; raw: as it is.")
_SYSTEM = flags.DEFINE_string("system", "", "System message for rows without one; empty: the template decides.")
_END = flags.DEFINE_string("end_token", "<|im_end|>", "The token that ends a response.")


def main() -> None:
    for name, value in (("model", _MODEL.value), ("input", _INPUT.value), ("output", _OUTPUT.value)):
        if not value:
            raise UserError(f"--{name}: missing")
    text_format = TextFormat(prompt=_PROMPT.value, system=_SYSTEM.value, end_token=_END.value)
    from cogpo_jax.student.generate_rows import GenerateOptions, generate_file
    from cogpo_jax.student.sampling import Sampling

    options = GenerateOptions(
        max_new_tokens=_MAX_NEW.value,
        batch=_BATCH.value,
        seed=_SEED.value,
        sampling=Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value),
        stop=tuple(_STOP.value),
        compute_dtype=_DTYPE.value or "",
        tensor=_TENSOR.value,
        text_format=text_format,
    )
    print(json.dumps(generate_file(_MODEL.value, _INPUT.value, _OUTPUT.value, options)))


if __name__ == "__main__":
    cli.run(main)
