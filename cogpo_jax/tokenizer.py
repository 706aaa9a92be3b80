"""A small byte-level BPE tokenizer trained on a project's own text, in Hugging Face's layout and Qwen's style.

For students too small to carry a vocabulary of 152k. The same texts give the same bytes, whatever their order.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.errors import UserError

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END)

# ChatML, as Qwen's templates render it, but without a system message of the template's own.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)

# Qwen's own pieces: transformers rebuilds them for a Qwen tokenizer, so others would give other ids there.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], folder: str | Path, vocab_size: int = 2048) -> None:
    """Writes a tokenizer of `vocab_size` tokens, trained on `texts`, with its chat template to `folder`.

    Raises UserError where vocab_size leaves no room for a merge, or the texts have too few to fill it.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size <= smallest:
        raise UserError(f"vocab_size: {vocab_size}: must be above {smallest} (the bytes and the special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    # Behind the merges, as in Qwen's own vocabulary.
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(f"vocab_size: {vocab_size}: the texts have merges for {tokenizer.get_vocab_size()} tokens only")
    folder = Path(folder)
    write_atomic(folder / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1))
    write_atomic(folder / "chat_template.jinja", CHAT_TEMPLATE)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END,
            "pad_token": PAD,
            "additional_special_tokens": [TURN_START],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32768,
        },
    )
