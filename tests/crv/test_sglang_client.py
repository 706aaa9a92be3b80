"""The client of SGLang's native door, before servers and tokenizers that are not what they should be."""

import asyncio
import json
import shutil

import httpx
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.text import train_tokenizer
from crv.options import PoolOptions
from crv.pool.base import CONTENT_FILTER, PROMPT_TOO_LONG, Request
from crv.pool.http import HttpCaller
from crv.pool.sglang import SglangPool

REQUEST = Request("critic", {}, 0, "t", (("system", "be brief"), ("user", "hello")), "m")
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
PLAIN = "{% for m in messages if m.role == 'user' %}<user>{{ m.content }}</user>{% endfor %}"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small tokenizer with Qwen's chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["what is one plus one?", "hello, be brief"], folder, 270)
    return folder


def pool(tokenizer, serve=None, **place):
    caller = HttpCaller("http://pool", 8, 5.0, 2, transport=httpx.MockTransport(serve) if serve else None)
    return SglangPool(caller, PoolOptions(kind="sglang", model="m", tokenizer=str(tokenizer), **place))


def server(meta=None, body=None, context=4096, probe=None):
    """An SGLang server; `meta` and `body` change what it says to a call, `probe` what it says to the first one."""

    def serve(request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "max_model_len": context}]})
        if request.url.path != "/generate":
            return httpx.Response(200, json={})
        asked = json.loads(request.content)
        if "text" in asked:
            return httpx.Response(200, json={"text": "", "meta_info": {} if probe is None else probe(asked["text"])})
        said = {"finish_reason": {"type": "stop"}, "prompt_tokens": 5, "completion_tokens": 2, **(meta or {})}
        return httpx.Response(200, json={"text": "hi", "meta_info": said, **(body or {})})

    return serve


def copy_with_template(small, folder, template):
    shutil.copytree(small, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_missing_tokenizer_is_one_line(folder):
    with pytest.raises(UserError, match=r"pool.tokenizer: '.*': no such folder; pool.kind sglang needs"):
        pool(folder)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"pool.tokenizer: .*holds no tokenizer that can be read"):
        pool(tmp_path)


@pytest.mark.parametrize("template", [REFUSING + PLAIN, PLAIN])
def test_a_template_that_refuses_or_drops_the_system_role_gets_its_text_in_the_users_turn(small, tmp_path, template):
    client = pool(copy_with_template(small, tmp_path / "t", template))
    assert client.tokenizer.decode(client.render(REQUEST)) == "<user>be brief\n\nhello</user>"


def test_a_template_that_renders_nothing_is_one_line_at_the_start(small, tmp_path):
    with pytest.raises(UserError, match=r"chat template renders no user message \(.*never"):
        pool(copy_with_template(small, tmp_path / "t", "{{ raise_exception('never') }}"))


def test_the_templates_switches_come_from_the_config(small, tmp_path):
    template = "{{ reasoning_effort }} {{ enable_thinking }} {% for m in messages %}{{ m.content }};{% endfor %}"
    extra = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}, "priority": 3}
    client = pool(copy_with_template(small, tmp_path / "t", template), extra_body=extra)
    assert client.tokenizer.decode(client.render(REQUEST)) == "high False be brief;hello;"
    body = client.payload(REQUEST, [1], 10)
    assert body["priority"] == 3
    assert "reasoning_effort" not in body


@pytest.mark.parametrize("said", [{}, {"input_token_logprobs": None}, {"input_token_logprobs": []}, None])
def test_a_server_that_gives_no_log_probs_for_the_probe_is_told_at_once(small, said):
    with pytest.raises(UserError, match="answers without input_token_logprobs"):
        asyncio.run(pool(small, server(probe=lambda _: said)).start())


def started(small, **changes):
    client = None

    def probe(text):
        ids = client.tokenizer.encode(text, add_special_tokens=False)
        return {"input_token_logprobs": [[-1.0, token, None] for token in ids]}

    async def go():
        nonlocal client
        client = pool(small, server(probe=probe, **changes))
        await client.start()
        return await client.generate(REQUEST)

    return asyncio.run(go())


def test_a_thought_in_tags_is_kept_and_one_that_was_cut_off_is_a_length(small):
    assert started(small, body={"text": "<thinking>hm</thinking>hi"}).text == "<think>\nhm\n</think>\n\nhi"
    assert started(small, body={"text": "<think>hm and"}).finish_reason == "length"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("The input (9000 tokens) is longer than the model's context length (4096 tokens).", PROMPT_TOO_LONG),
        ("flagged by the content filter", CONTENT_FILTER),
    ],
)
def test_an_abort_for_what_the_prompt_is_is_its_outcome(small, message, reason):
    ended = {"type": "abort", "message": message, "status_code": 400}
    answer = started(small, meta={"finish_reason": ended})
    assert (answer.finish_reason, answer.text) == (reason, message)


USUAL = {"prompt_tokens": 5, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("body", "text", "ended"),
    [
        ([{"text": "hi", "meta_info": {**USUAL, "finish_reason": {"type": "stop", "matched": 7}}}], "hi", "stop"),
        ({"text": "hi", "meta_info": {**USUAL, "finish_reason": {"type": "length", "length": 2}}}, "hi", "length"),
        ({"text": "hi", "meta_info": {**USUAL, "finish_reason": "stop"}}, "hi", "stop"),
        ({"text": None, "meta_info": {"finish_reason": None, "prompt_tokens": None}}, "", "stop"),
    ],
)
def test_every_form_of_a_native_answer_is_read(small, body, text, ended):
    answer = pool(small)._read(body)
    assert (answer.text, answer.finish_reason) == (text, ended)
