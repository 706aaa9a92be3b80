"""Trains a small tokenizer (byte-level BPE, Qwen's special tokens and ChatML template) on a folder of records.

    python launch/train_tokenizer.py --data=runs/crv --output=runs/tokenizer --vocab_size=2048

For tiny students only: a student of a published size keeps its own tokenizer. Reads the training split alone. Prints
one JSON object: output, vocab_size, texts, characters.
"""

import json
from collections.abc import Iterator

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.records import read_groups, read_sft
from cogpo_jax.text import TextFormat, response_text

_DATA = flags.DEFINE_string("data", None, "Folder of records that launch/crv.py wrote.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the tokenizer.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 2048, "Tokens in all, special ones included.")


def main() -> None:
    for name, value in (("data", _DATA.value), ("output", _OUTPUT.value)):
        if not value:
            raise UserError(f"--{name}: missing")
    from cogpo_jax.tokenizer import train_tokenizer

    texts = sorted(set(_texts(_DATA.value)))
    train_tokenizer(texts, _OUTPUT.value, _VOCAB_SIZE.value)
    report = {"output": _OUTPUT.value, "vocab_size": _VOCAB_SIZE.value, "texts": len(texts)}
    print(json.dumps(report | {"characters": sum(map(len, texts))}))


def _texts(folder: str) -> Iterator[str]:
    text_format = TextFormat()
    for group in read_groups(folder, "train"):
        yield group.prompt
        for response in group.responses:
            yield response_text(response.thought, response.solution, response.text, text_format=text_format)
    for row in read_sft(folder, "train"):
        yield row.prompt
        yield response_text(row.thought, row.solution, row.text, text_format=text_format)


if __name__ == "__main__":
    cli.run(main)
