"""Templates, end tokens and thoughts: what a foreign tokenizer folder says is followed, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from cogpo_jax.data.tokens import tokenize_records
from cogpo_jax.errors import UserError
from cogpo_jax.records import Group, Response
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.hf_folder import check_exportable, vocabulary
from cogpo_jax.text import TextFormat, load_tokenizer, prompt_text, resolved, response_text, train_tokenizer

CHAT = TextFormat()
# As DeepSeek-R1-Distill's since February 2025: no ChatML, thoughts of earlier turns dropped, the next one opened.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + '<|end_of_sentence|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
# As Qwen3's: a thought is closed before it began where enable_thinking is false.
SWITCH = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train_tokenizer(["the cat sat on the mat, the hat on the cat"] * 3, folder, 272)
    return folder


@pytest.fixture
def tokenizer_of(plain: Path, tmp_path: Path) -> Any:
    """A tokenizer with another template, other special tokens (in tokenizer.json) and settings."""

    def make(template: str | None = None, rename: dict[str, str] | None = None, **settings: Any) -> Any:
        for file in plain.iterdir():
            text = file.read_text()
            for old, new in (rename or {}).items():
                text = text.replace(json.dumps(old), json.dumps(new))
            (tmp_path / file.name).write_text(text)
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template)
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return load_tokenizer(tmp_path)

    return make


R1_TOKENS = {"<|im_end|>": "<|end_of_sentence|>"}


def record(text: str = "", thought: str = "", solution: str = "", **fields: Any) -> Group:
    response = Response(
        id="r", parent="", origin="imported", model="", thought=thought, solution=solution, text=text, kind="unknown",
        certificate="", **fields,
    )  # fmt: skip
    return Group("p7", "", "1+1?", "", (response,), ())


def trained_text(tokenizer: Any, group: Group, text_format: TextFormat = CHAT) -> str:
    return tokenizer.decode(tokenize_records([group], tokenizer, text_format).sequence(0)[0])


@pytest.mark.parametrize(
    "group",
    [
        record(thought="add", solution="2"),
        record(text="<think>\nadd\n</think>\n\n2"),
        record(text="  <think>add\n</think>\n\n2"),
        record(thought="<think>\nadd\n</think>", solution="2"),
    ],
)
def test_a_thought_that_the_prompt_opens_is_opened_once(tokenizer_of: Any, group: Group) -> None:
    text = trained_text(tokenizer_of(R1, R1_TOKENS), group)
    assert text == "<|User|>1+1?<|Assistant|><think>\nadd\n</think>\n\n2<|end_of_sentence|>"
    plain_text = trained_text(tokenizer_of(), record(thought="<think>\nadd\n</think>", solution="2"))
    assert plain_text.endswith("assistant\n<think>\nadd\n</think>\n\n2<|im_end|>")


@pytest.mark.parametrize(
    ("opened", "response", "text"),
    [
        ("<think>", "think", "<think>\na\n</think>\n\nb"),
        ("<think>\n\n", "think", "<think>\n\na\n</think>\n\nb"),
        ("<|begin_of_thought|>\n\n", "r1", "<|begin_of_thought|>\n\na\n\n<|end_of_thought|>"),
    ],
)
def test_a_tag_opened_in_another_way_is_there_once(opened: str, response: str, text: str) -> None:
    whole = opened + response_text("a", "b", "", text_format=TextFormat(response=response), prompt=opened)
    assert whole.startswith(text)


@pytest.mark.parametrize("opened", ["<thinking>\n", "[THINK]", "<|begin_of_thought|>\n\n"])
def test_a_thought_in_other_tags_than_the_prompts_is_refused(opened: str) -> None:
    for given, field in ((("a", "b", ""), r"text\.response"), (("", "", "<think>a</think>b"), "text")):
        with pytest.raises(UserError, match=rf"^{field}: .*the template opens"):
            response_text(*given, text_format=CHAT, prompt=opened)
    verbatim = f"{opened.strip()}a"
    assert response_text("", "", verbatim, text_format=CHAT, prompt=opened).strip() == "a"


def test_loss_spans_count_the_response_with_its_tag(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of(R1, R1_TOKENS)
    start = len("<think>\nadd\n</think>\n\n")
    data = tokenize_records([record(thought="add", solution="2", loss_spans=((start, start + 1),))], tokenizer, CHAT)
    ids, counted = data.sequence(0)
    assert tokenizer.decode(ids[counted]) == "2<|end_of_sentence|>"
    with pytest.raises(UserError, match="loss_spans"):
        tokenize_records([record(thought="add", solution="2", loss_spans=((0, 4),))], tokenizer, CHAT)


@pytest.mark.parametrize("response", ["plain", "r1"])
def test_a_format_that_cannot_close_the_opened_thought_is_refused(tokenizer_of: Any, response: str) -> None:
    with pytest.raises(UserError, match=r"text\.response.*use think.*record 'p7'"):
        trained_text(tokenizer_of(R1, R1_TOKENS), record(thought="a", solution="b"), TextFormat(response=response))


def test_template_kwargs_reach_the_template(tokenizer_of: Any) -> None:
    tokenizer, silent = tokenizer_of(SWITCH), TextFormat(template_kwargs='{"enable_thinking": false}')
    assert prompt_text(tokenizer, "1", text_format=silent).endswith("assistant\n<think>\n\n</think>\n\n")
    assert prompt_text(tokenizer, "1", text_format=CHAT).endswith("assistant\n")
    assert trained_text(tokenizer, record(text="2"), silent).endswith("</think>\n\n2<|im_end|>")
    with pytest.raises(UserError, match=r"text\.template_kwargs"):  # a second thought behind the closed one
        trained_text(tokenizer, record(thought="a", solution="b"), silent)
    for bad in ("{", "[1]", '{"tokenize": true}'):
        with pytest.raises(UserError, match=r"text\.template_kwargs"):
            TextFormat(template_kwargs=bad)


def test_the_end_token_is_found_where_the_default_is_none(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of(R1, R1_TOKENS)
    for end in ("", "<|im_end|>"):
        assert resolved(tokenizer, TextFormat(end_token=end)).end_token == "<|end_of_sentence|>"
    with pytest.raises(UserError, match=r"'<end>': not a token of this tokenizer; '<\|end_of_sentence\|>' ends"):
        resolved(tokenizer, TextFormat(end_token="<end>"))
    # a template for single questions may refuse an answer: then eos_token it is
    refusing = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    assert resolved(tokenizer_of(refusing), TextFormat(end_token="")).end_token == "<|im_end|>"
    # what the template ends a turn with counts before eos_token, which may end documents
    tokenizer = tokenizer_of(eos_token="<|endoftext|>")
    assert resolved(tokenizer, TextFormat(end_token="")).end_token == "<|im_end|>"


def test_an_end_token_of_another_file_trains_and_exports(tokenizer_of: Any, tmp_path: Path) -> None:
    added = {"content": "<|stop|>", "special": True, "normalized": False}
    added |= dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    config = StudentConfig.from_hf(
        {"model_type": "qwen2", "vocab_size": 273, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        | {"num_attention_heads": 1, "num_key_value_heads": 1}
    )
    for settings in (
        {"added_tokens_decoder": {"272": added}},
        {"extra_special_tokens": ["<|stop|>"]},
        {"additional_special_tokens": ["<|stop|>"]},
    ):
        tokenizer = tokenizer_of(**settings)
        text_format = TextFormat(end_token="<|stop|>")
        assert trained_text(tokenizer, record(text="2"), text_format).endswith("2<|stop|>")
        assert vocabulary(tmp_path)["<|stop|>"] == 272
        check_exportable(config, tmp_path, text_format)
    with pytest.raises(UserError, match=r"text\.end_token: '<x>'"):
        check_exportable(config, tmp_path, TextFormat(end_token="<x>"))
    small = StudentConfig.from_hf(config.to_hf() | {"vocab_size": 272})
    with pytest.raises(UserError, match="id 272"):
        check_exportable(small, tmp_path, text_format)


def test_a_raw_prompt_drops_nothing(tokenizer_of: Any) -> None:
    tokenizer, raw = tokenizer_of(), TextFormat(prompt="raw")
    one = json.dumps([{"role": "user", "content": "q"}])
    history = json.dumps([{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "q"))])
    assert prompt_text(tokenizer, "q", messages=one, text_format=raw) == "q"
    for given in ({"system": "S"}, {"messages": history}):
        with pytest.raises(UserError, match=r"text\.prompt: raw"):
            prompt_text(tokenizer, "q", **given, text_format=raw)
    with pytest.raises(UserError, match=r"text\.system"):
        TextFormat(prompt="raw", system="S")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% for m in messages %}", "endfor"),
        ("{{ messages[0]['content'] + 1 }}", "fails for turns of user"),
        ("{{ nothing.there }}", "nothing"),
    ],
)
def test_a_template_that_fails_is_one_line(tokenizer_of: Any, template: str, words: str) -> None:
    with pytest.raises(UserError, match="tokenizer: chat template") as error:
        prompt_text(tokenizer_of(template), "q", text_format=CHAT)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_named_templates_are_chosen_by_name(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of()
    tokenizer.chat_template = {"rag": "R{{ messages[0]['content'] }}", "tools": "T"}
    with pytest.raises(UserError, match="there are 'rag', 'tools'"):
        prompt_text(tokenizer, "q", text_format=CHAT)
    chosen = TextFormat(template_kwargs='{"chat_template": "rag"}')
    assert prompt_text(tokenizer, "q", text_format=chosen) == "Rq"
    tokenizer.chat_template["default"] = "D"
    assert prompt_text(tokenizer, "q", text_format=CHAT) == "D"


def test_response_text_leaves_a_text_without_tags_alone() -> None:
    assert response_text("", "", "4 </think> 5", text_format=CHAT, prompt="x<think>\n") == "4 </think> 5"


def test_a_pointer_or_a_hub_name_says_what_to_do(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hf download Qwen/Qwen3-4B"):
        load_tokenizer("Qwen/Qwen3-4B")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "tokenizer.json").write_text(pointer)
    with pytest.raises(UserError, match="git lfs pull"):
        load_tokenizer(tmp_path)
