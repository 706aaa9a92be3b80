"""Text to token ids: a prompt through the chat template, a response with its end token, tokenised apart.

Imports no jax. The boundary between prompt and response is exact because the two are never tokenised together.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.errors import UserError
from cogpo_jax.records.texts import THOUGHT_CLOSES, THOUGHT_OPENS
from cogpo_jax.student.hf_files import hub_hint, read_json, refuse_lfs_pointer

END_OF_TURN = "<|im_end|>"
PAD, TURN_START = "<|endoftext|>", "<|im_start|>"
SPECIAL_TOKENS = (PAD, TURN_START, END_OF_TURN)

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

_RESPONSE_FORMATS = {
    "think": "<think>\n{thought}\n</think>\n\n{solution}",
    "r1": (
        "<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
        "<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    ),
    "plain": "{thought}\n\n{solution}",
}
_PROMPT_FORMATS = ("chat", "raw")
_TAGS = {"think": "<think>", "r1": "<|begin_of_thought|>"}  # what a format's thoughts begin with
_OPENED = re.compile(rf"({THOUGHT_OPENS.pattern})(?P<space>\s*)\Z", re.I)
_CLOSED = re.compile(rf"({THOUGHT_CLOSES.pattern})\s*\Z", re.I)
_OUR_ARGUMENTS = ("conversation", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict")


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """How records become text. `prompt`: chat | raw; `response`: think | r1 | plain; `system`: for rows without one.

    end_token: ends a response; where it is empty, or the default and no token of the tokenizer, `resolved` finds it.
    template_kwargs: what the chat template gets beside the conversation, a JSON object ('{"enable_thinking": false}').
    """

    prompt: str = "chat"
    response: str = "think"
    system: str = ""
    end_token: str = END_OF_TURN
    template_kwargs: str = ""

    def __post_init__(self) -> None:
        if self.prompt not in _PROMPT_FORMATS:
            raise UserError(f"text.prompt: {self.prompt!r}: must be one of {', '.join(_PROMPT_FORMATS)}")
        if self.response not in _RESPONSE_FORMATS:
            raise UserError(f"text.response: {self.response!r}: must be one of {', '.join(_RESPONSE_FORMATS)}")
        if self.prompt == "raw" and (self.system or self.template_kwargs):
            field = "system" if self.system else "template_kwargs"
            raise UserError(f"text.{field}: {getattr(self, field)!r}: text.prompt=raw has no template for it; use chat")
        self.template_arguments()

    def template_arguments(self) -> dict[str, Any]:
        """`template_kwargs` as a dict. Raises UserError where it is no JSON object, or names what is ours to say."""
        try:
            arguments = json.loads(self.template_kwargs or "{}")
        except ValueError as error:
            raise UserError(f"text.template_kwargs: {self.template_kwargs!r}: not JSON: {error}") from None
        if not isinstance(arguments, dict) or (ours := set(arguments) & set(_OUR_ARGUMENTS)):
            why = f"{sorted(ours)[0]} is not free" if isinstance(arguments, dict) else "must be a JSON object"
            raise UserError(f"text.template_kwargs: {self.template_kwargs!r}: {why}")
        return arguments


def load_tokenizer(folder: str | Path) -> Any:
    """Loads a Hugging Face tokenizer from a local folder; never from a hub, never with remote code."""
    name, folder = folder, Path(folder)
    if not (folder / "tokenizer.json").is_file():
        hint = hub_hint(name)
        raise UserError(f"tokenizer: {folder}: has no tokenizer.json; give a folder in Hugging Face's layout{hint}")
    refuse_lfs_pointer(folder / "tokenizer.json")
    if (folder / "tokenizer_config.json").is_file():
        read_json(folder / "tokenizer_config.json")
    from transformers import PreTrainedTokenizerFast  # slow to import: only where text is really tokenised

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        raise UserError(f"tokenizer: {folder}: cannot be read ({type(error).__name__}: {_line(error)})") from error


def resolved(tokenizer: Any, text_format: TextFormat) -> TextFormat:
    """The format with an end token that this tokenizer has: its own, or else the one that `find_end_token` finds.

    Raises UserError where a token was named that the tokenizer does not have, or none is found.
    """
    if text_format.end_token and text_format.end_token in tokenizer.get_vocab():
        return text_format
    found = find_end_token(tokenizer)
    if not found or text_format.end_token not in ("", END_OF_TURN):
        advice = f"{found!r} ends its turns" if found else "it names no other; give the token that ends a response"
        raise UserError(f"text.end_token: {text_format.end_token!r}: not a token of this tokenizer; {advice}")
    return dataclasses.replace(text_format, end_token=found)


def find_end_token(tokenizer: Any) -> str:
    """The token that follows an assistant's message in the chat template; without one eos_token; empty: neither."""
    vocabulary = tokenizer.get_vocab()
    if tokenizer.chat_template:
        behind, turns = "", [{"role": "user", "content": "question"}, {"role": "assistant", "content": "~answer~"}]
        with contextlib.suppress(UserError):  # a template for single questions may refuse an answer
            behind = _render(tokenizer, turns, {}, add_generation_prompt=False).rpartition("~answer~")[2].lstrip()
        fitting = [token for token in tokenizer.get_added_vocab() if token and behind.startswith(token)]
        if fitting:
            return max(fitting, key=len)
    eos = tokenizer.eos_token
    return eos if eos in vocabulary else ""


def end_token_id(tokenizer: Any, text_format: TextFormat) -> int:
    """The id of the token that ends a response; UserError where the tokenizer has no such token."""
    return int(tokenizer.get_vocab()[resolved(tokenizer, text_format).end_token])


def prompt_text(tokenizer: Any, prompt: str, system: str = "", messages: str = "", *, text_format: TextFormat) -> str:
    """The prompt as the model reads it, generation prompt included.

    `messages` (JSON list of {role, content}) stands for a multi-turn prompt and replaces `prompt`. A system message
    is added only where the row or the format names one: otherwise the chat template decides. Raises UserError where
    the template fails or refuses, and for a raw prompt with a system message or a history.
    """
    turns = json.loads(messages) if messages else [{"role": "user", "content": prompt}]
    if text_format.prompt == "raw":
        if system or turns != [{"role": "user", "content": prompt}]:
            what = "a system message" if system else "messages before its prompt"
            raise UserError(f"text.prompt: raw: a row has {what}, which only a template can render; use chat")
        return prompt
    system = system or text_format.system
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    if not tokenizer.chat_template:
        raise UserError("tokenizer: no chat template: add chat_template.jinja to its folder or set text.prompt=raw")
    return _render(tokenizer, turns, text_format.template_arguments(), add_generation_prompt=True)


def _render(tokenizer: Any, turns: list[Any], arguments: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    chosen = arguments.get("chat_template", "default")
    if named and chosen not in named:
        raise UserError(
            f"tokenizer: chat template {chosen!r}: there are {', '.join(map(repr, named))}; "
            'choose one by text.template_kwargs={"chat_template": NAME}'
        )
    try:
        text = tokenizer.apply_chat_template(
            turns, **{**arguments, "add_generation_prompt": add_generation_prompt, "tokenize": False}
        )
    except Exception as error:  # a template is a program from outside: it may raise anything
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise UserError(f"tokenizer: chat template: fails for turns of {roles}: {_line(error)}") from None
    return text


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def response_text(thought: str, solution: str, text: str, *, text_format: TextFormat, prompt: str = "") -> str:
    """The response as the model should write it, without the end token; `text` verbatim where thought is empty.

    prompt: the rendered prompt before it. Where that ends with an opening tag already (R1-Distill, Qwen3 Thinking),
    the response goes on behind the tag. Raises UserError for a format that cannot.
    """
    if text_format.response == "think":  # the tags are the format's to add
        thought = re.sub(r"\A\s*<think>\n?|\n?</think>\s*\Z", "", thought)
    body = text if not thought else _RESPONSE_FORMATS[text_format.response].format(thought=thought, solution=solution)
    opened, begun = _OPENED.search(prompt), THOUGHT_OPENS.match(body.lstrip())
    if opened and thought and opened[1] != _TAGS.get(text_format.response):
        fitting = "; use think" if opened[1] == "<think>" else ""
        why = f"the template opens {opened[1]} in the prompt{fitting}"
        raise UserError(f"text.response: {text_format.response!r}: {why}")
    if begun and _CLOSED.search(prompt):
        why = "the template closes a thought in the prompt, and the response opens another; let it think"
        raise UserError(f"text.template_kwargs: {text_format.template_kwargs!r}: {why}")
    if opened and begun:
        if begun[0] != opened[1]:
            raise UserError(
                f"text: the template opens {opened[1]} in the prompt, and a response begins with {begun[0]}"
            )
        body = body.lstrip()[begun.end() :]
        blank = body[: len(body) - len(body.lstrip())]
        body = body.removeprefix(opened["space"] if blank.startswith(opened["space"]) else blank)
    # Imported responses often carry their end token already: it must count once.
    end = re.escape(text_format.end_token)
    return re.sub(rf"\s*{end}\s*$", "", body) if end else body


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
    fields = dataclasses.asdict(resolved(tokenizer, text_format))
    parts = (tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template or "", fields)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def train_tokenizer(texts: Iterable[str], folder: str | Path, vocab_size: int = 2048) -> None:
    """Writes a byte-level BPE tokenizer of `vocab_size` tokens, trained on `texts`, in Qwen's style, to `folder`.

    For students too small to carry a vocabulary of 152k. The same texts give the same bytes, whatever their order.

    Raises UserError where vocab_size leaves no room for a merge, or the texts have too few to fill it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

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
            "eos_token": END_OF_TURN,
            "pad_token": PAD,
            "additional_special_tokens": [TURN_START],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32768,
        },
    )
