"""Text to token ids: a prompt through the chat template, a response with its end token, tokenised apart.

Imports no jax. The boundary between prompt and response is exact because the two are never tokenised together.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogpo_jax.errors import UserError

END_OF_TURN = "<|im_end|>"
_RESPONSE_FORMATS = {
    "think": "<think>\n{thought}\n</think>\n\n{solution}",
    "r1": (
        "<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
        "<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    ),
    "plain": "{thought}\n\n{solution}",
}
_PROMPT_FORMATS = ("chat", "raw")


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """How records become text. `prompt`: chat | raw; `response`: think | r1 | plain; `system`: for rows without one."""

    prompt: str = "chat"
    response: str = "think"
    system: str = ""
    end_token: str = END_OF_TURN

    def __post_init__(self) -> None:
        if self.prompt not in _PROMPT_FORMATS:
            raise UserError(f"text.prompt: {self.prompt!r}: must be one of {', '.join(_PROMPT_FORMATS)}")
        if self.response not in _RESPONSE_FORMATS:
            raise UserError(f"text.response: {self.response!r}: must be one of {', '.join(_RESPONSE_FORMATS)}")


def load_tokenizer(folder: str | Path) -> Any:
    """Loads a Hugging Face tokenizer from a local folder; never from a hub, never with remote code."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"tokenizer: {folder}: has no tokenizer.json; give a folder in Hugging Face's layout")
    from transformers import PreTrainedTokenizerFast  # slow to import: only where text is really tokenised

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        raise UserError(f"tokenizer: {folder}: cannot be read ({type(error).__name__}: {error})") from error


def end_token_id(tokenizer: Any, text_format: TextFormat) -> int:
    """The id of the token that ends a response; UserError where the tokenizer has no such token."""
    vocab = tokenizer.get_vocab()
    if text_format.end_token not in vocab:
        raise UserError(f"text.end_token: {text_format.end_token!r}: not a token of this tokenizer")
    return int(vocab[text_format.end_token])


def prompt_text(tokenizer: Any, prompt: str, system: str = "", messages: str = "", *, text_format: TextFormat) -> str:
    """The prompt as the model reads it, generation prompt included.

    `messages` (JSON list of {role, content}) stands for a multi-turn prompt and replaces `prompt`. A system message
    is added only where the row or the format names one: otherwise the chat template decides.
    """
    if text_format.prompt == "raw":
        return prompt
    turns = json.loads(messages) if messages else [{"role": "user", "content": prompt}]
    system = system or text_format.system
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    if not tokenizer.chat_template:
        raise UserError("tokenizer: no chat template: add chat_template.jinja to its folder or set text.prompt=raw")
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def response_text(thought: str, solution: str, text: str, *, text_format: TextFormat) -> str:
    """The response as the model should write it, without the end token; `text` verbatim where thought is empty."""
    body = text if not thought else _RESPONSE_FORMATS[text_format.response].format(thought=thought, solution=solution)
    # Imported responses often carry their end token already: it must count once.
    return re.sub(rf"\s*{re.escape(text_format.end_token)}\s*$", "", body)


def encode_prompts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered prompts; the template's special tokens are parsed, none are added."""
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []


def encode_responses(tokenizer: Any, texts: Sequence[str], *, text_format: TextFormat) -> list[list[int]]:
    """Token ids of responses with the end token once at the end.

    A special token spelled out inside a response is text from a model, so it is encoded as plain characters.
    """
    if not texts:
        return []
    end = end_token_id(tokenizer, text_format)
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    return [[*row, end] for row in ids["input_ids"]]


def tokenizer_digest(tokenizer: Any, text_format: TextFormat) -> str:
    """Hex SHA-256 of all that decides token ids: vocabulary, merges, chat template and text format."""
    parts = (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template or "", dataclasses.asdict(text_format))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
