"""What real servers reply, sorted into four classes. The bodies are those that the servers named beside them send."""

import json

import pytest

from crv.pool import replies
from crv.pool.base import CONTENT_FILTER, PROMPT_TOO_LONG, REFUSED
from crv.pool.replies import Later, Refusal, SetupError, chat_answer, seconds_to_wait, sort_reply

NOW = 2_015_661_600  # 15 November 2033, 10:00:00 UTC


def chat(content="hi", reason="stop", choice=(), **message):
    row = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason, **dict(choice)}
    return {"choices": [row], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def reply(status, document, **headers):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return sort_reply(status, headers, body, lambda body: chat_answer(body, "m"))


PARTS = ({"role": "assistant"}, {"reasoning": "h"}, {"reasoning": "m"}, {"content": "h"}, {"content": "i"})
EVENTS = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in PARTS]
EVENTS += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {}}]
LINES = [f"data: {json.dumps(event)}\n\n".encode() for event in EVENTS]
STREAM = b": a comment\n\n" + b"".join(LINES) + b"data: [DONE]\n\n"
STOPS = ("eos", "eos_token", "end_turn", "stop_sequence", None, "", "STOP", "EOT", "<|im_end|>", "COMPLETE", "</s>")
STOPS += ("<|endoftext|>", "FINISH_REASON_STOP", "FINISH_REASON_UNSPECIFIED", "unload", {"type": "stop", "matched": 7})
LENGTHS = ("max_tokens", "model_length", "MAX_TOKENS", "context_window_exceeded", "max_output_tokens")
LENGTHS += ({"type": "length", "length": 5}, "budget_exhausted")
FILTERS = ("content_filter", "contentFilter", "SAFETY", "refusal", "RECITATION", "guardrail_intervened", "blocked")
AGAIN = ("abort", "error", "cancelled", "timeout", "insufficient_system_resource", "preempted", "evicted")
THOUGHT = "<think>\nhm\n</think>\n\nhi"


@pytest.mark.parametrize(
    ("document", "text", "ended"),
    [
        (chat(), "hi", "stop"),
        (chat(reasoning="hm"), THOUGHT, "stop"),  # vLLM since 0.11, OpenRouter, Groq
        (chat(reasoning_content="hm\n"), THOUGHT, "stop"),  # SGLang, DeepSeek, llama.cpp
        (chat(reasoning_details=[{"type": "reasoning.text", "text": "hm"}]), THOUGHT, "stop"),  # OpenRouter
        (chat(thinking="hm"), THOUGHT, "stop"),  # Ollama
        (chat("<think>hm</think>hi"), THOUGHT, "stop"),
        (chat("hm</think>hi"), THOUGHT, "stop"),  # the template opened the thought
        (chat("<thinking>hm</thinking>\nhi"), THOUGHT, "stop"),
        (chat("[THINK]hm[/THINK]hi"), THOUGHT, "stop"),  # Mistral
        (chat("◁think▷hm◁/think▷hi"), THOUGHT, "stop"),  # Kimi
        (
            chat("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>hi<|return|>"),
            THOUGHT,
            "stop",
        ),  # gpt-oss without a parser
        (chat([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]), "hi", "stop"),
        (
            chat([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "hi"}]),
            THOUGHT,
            "stop",
        ),  # Mistral
        (chat([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]), THOUGHT, "stop"),  # Anthropic
        (chat({"type": "output_text", "text": "hi"}), "hi", "stop"),
        (chat(reasoning=None, reasoning_content=""), "hi", "stop"),
        (chat("<think>and so on", "length"), "<think>\nand so on", "length"),
        (chat("<think>and so on", "stop"), "<think>\nand so on", "length"),
        (chat(None, "length", reasoning="and so on"), "<think>\nand so on\n</think>\n\n", "length"),
        ({"choices": [{"text": "hi", "finish_reason": "stop"}]}, "hi", "stop"),
        *((chat(reason=r), "hi", "stop") for r in STOPS),
        *((chat(reason=r), "hi", "length") for r in LENGTHS),
        *((chat(reason=r), "hi", CONTENT_FILTER) for r in FILTERS),
        (chat(reason="repetition"), "hi", "repetition"),
        (chat(reason="tool_calls"), "hi", "tool_calls"),
        (chat(None, "stop", refusal="I cannot help with that."), "", CONTENT_FILTER),  # OpenAI
        (chat(reason=None, choice={"native_finish_reason": "MAX_TOKENS"}), "hi", "length"),  # OpenRouter
        (chat("\n\nhi", reasoning="hm", reasoning_content="hm"), THOUGHT, "stop"),  # vLLM while the name changed
        (chat("<think>hm</think>hi", reasoning="hm"), THOUGHT, "stop"),
        (chat("</think>hi", reasoning="hm"), THOUGHT, "stop"),
        (chat("<think>hm</think>\n<think>\n</think>hi"), THOUGHT, "stop"),
        (chat("<reasoning>hm</reasoning><answer>hi</answer>"), THOUGHT, "stop"),
        (chat("hi", reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}]), "hi", "stop"),
        (chat(None, "tool_calls", tool_calls=[{"id": "x", "function": {"name": "f"}}]), "", "tool_calls"),
        (chat(None, "length", reasoning=None, reasoning_content=None), "", "length"),
        ({**chat(), "error": {"code": None, "message": None}, "id": 17, "usage": None}, "hi", "stop"),
        ({**chat(), "usage": {"prompt_tokens": None, "completion_tokens": "3"}}, "hi", "stop"),
        ({"choices": [{"index": 1, **chat("b")["choices"][0]}, {"index": 0, **chat()["choices"][0]}]}, "hi", "stop"),
        (b"\xef\xbb\xbf" + json.dumps(chat()).encode(), "hi", "stop"),
        (json.dumps(chat()).encode("utf-16"), "hi", "stop"),
        (json.dumps(chat("h\ni")).replace("\\n", "\n").encode(), "h\ni", "stop"),
        (STREAM, THOUGHT, "stop"),
        ({"choices": [], "prompt_filter_results": [{"hate": {"filtered": True}}]}, "", CONTENT_FILTER),  # Azure
    ],
)
def test_an_answer_in_any_form_is_read_with_its_thought_and_its_end(document, text, ended):
    answer = reply(200, document)
    assert (answer.text, answer.finish_reason) == (text, ended)


HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@pytest.mark.parametrize(
    ("status", "document", "reason"),
    [
        *((status, {"error": {"message": "oops"}}, str(status)) for status in (500, 502, 503, 504, 520, 524, 529)),
        *((status, b"", str(status)) for status in (408, 409, 425, 429)),
        (502, HTML, "502"),
        (200, HTML, "unreadable body"),
        (200, b'{"choices": [', "unreadable body"),
        (200, b"", "unreadable body"),
        (200, {"hello": 1}, "unreadable body"),
        (200, {"choices": []}, "no choices"),
        *((200, chat("par", word), f"finish reason {word}") for word in AGAIN),
        (200, b"".join(LINES[:4]), "unreadable body"),  # a stream that was cut off
        (200, b'data: {"error": {"message": "Overloaded", "code": 529}}\n\n', "529"),
        (200, {"choices": [{"message": None, "finish_reason": "stop"}]}, "unreadable body"),
        (200, {"code": 50505, "message": "Model service overloaded. Please try again later."}, "429"),
        (200, {"model": "m", "message": {"role": "assistant", "content": "hi"}}, "unreadable body"),  # Ollama's own API
        *((status, b"", str(status)) for status in (420, 421, 460, 499, 507, 522, 525)),
        (503, {"error": "overloaded: too many input tokens queued"}, "503"),
        (400, {"error": {"message": "Rate limit exceeded"}}, "429"),
        (403, {"message": "Too many requests"}, "429"),
        (429, {"detail": "Rate limit reached. Visit our billing page to raise it"}, "429"),
        (503, {"error": "Model x is currently loading", "estimated_time": 20.0}, "503"),  # Hugging Face
        (200, chat(choice={"error": {"code": 502, "message": "Provider returned error"}}), "502"),  # OpenRouter
        (200, {"error": {"code": 429, "message": "Rate limit exceeded"}}, "429"),
        (200, {"error": {"message": "Overloaded", "type": "overloaded_error"}}, "529"),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "529"),  # Anthropic
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, "503"),  # llama.cpp
        (
            429,
            [{"error": {"status": "RESOURCE_EXHAUSTED", "message": "current quota; retry in 3s"}}],
            "429",
        ),
        (200, {"error": "something odd happened"}, "error in the body"),
    ],
)
def test_what_may_pass_is_to_come_back_later(status, document, reason):
    found = reply(status, document)
    assert isinstance(found, Later)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("status", "document", "reason"),
    [
        (400, {"error": {"code": 400, "message": "the request exceeds the available context size (4096 tokens), try increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}}, PROMPT_TOO_LONG),  # llama.cpp  # noqa: E501
        (422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 5000", "error_type": "validation"}, PROMPT_TOO_LONG),  # TGI  # noqa: E501
        (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens", "type": "BadRequestError", "code": 400}, PROMPT_TOO_LONG),  # vLLM  # noqa: E501
        (400, {"error": {"message": "The input (9000 tokens) is longer than the model's context length (4096 tokens).", "type": "BadRequest"}}, PROMPT_TOO_LONG),  # SGLang  # noqa: E501
        (400, {"error": {"code": "context_length_exceeded", "message": "too many", "param": "messages"}}, PROMPT_TOO_LONG),  # OpenAI  # noqa: E501
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 300000 tokens > 200000 maximum"}}, PROMPT_TOO_LONG),  # Anthropic  # noqa: E501
        (400, [{"error": {"code": 400, "message": "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).", "status": "INVALID_ARGUMENT"}}], PROMPT_TOO_LONG),  # Gemini  # noqa: E501
        (200, {"error": {"code": 400, "message": "request exceeds the available context size"}}, PROMPT_TOO_LONG),
        (200, chat(choice={"error": {"code": 400, "message": "maximum context length is 4096"}}), PROMPT_TOO_LONG),
        (413, HTML, PROMPT_TOO_LONG),
        (429, {"error": {"message": "Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 9000"}}, PROMPT_TOO_LONG),  # Groq  # noqa: E501
        (400, {"error": {"message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, CONTENT_FILTER),  # Azure  # noqa: E501
        (400, {"error": {"code": "data_inspection_failed", "message": "Input data may contain inappropriate content."}}, CONTENT_FILTER),  # Alibaba  # noqa: E501
        (403, {"error": {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["violence"]}}}, CONTENT_FILTER),  # OpenRouter  # noqa: E501
        (400, {"error": {"message": "Invalid prompt: your prompt was flagged as potentially violating our usage policy", "code": "invalid_prompt"}}, CONTENT_FILTER),  # OpenAI  # noqa: E501
        (500, {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}, PROMPT_TOO_LONG),  # llama.cpp  # noqa: E501
        (400, {"message": "Input is too long for requested model."}, PROMPT_TOO_LONG),  # Bedrock
        (400, {"error": {"message": "max_tokens must be at least 1, got -51."}}, PROMPT_TOO_LONG),  # vLLM
        (400, {"error": {"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"}}, PROMPT_TOO_LONG),  # Mistral  # noqa: E501
        (400, {"error": {"message": "Range of input length should be [1, 30720]"}}, PROMPT_TOO_LONG),  # Alibaba
        (400, {"error": "prompt length 9000 exceeds n_ctx 4096"}, PROMPT_TOO_LONG),
        (400, {"error": {"message": "The prompt is too large: 9000 tokens"}}, PROMPT_TOO_LONG),
        (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}, CONTENT_FILTER),  # DeepSeek  # noqa: E501
        (403, {"code": 403, "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}, CONTENT_FILTER),  # xAI  # noqa: E501
        (400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}, CONTENT_FILTER),  # Zhipu  # noqa: E501
        (451, {"error": {"message": "content policy violation"}}, CONTENT_FILTER),
    ],
)  # fmt: skip
def test_what_is_refused_for_what_it_is_is_an_outcome_of_its_problem(status, document, reason):
    found = reply(status, document)
    assert isinstance(found, Refusal)
    assert (found.reason, found.sure) == (reason, True)


def test_a_refusal_of_no_known_kind_is_not_sure():
    assert reply(400, {"error": "no"}) == Refusal(REFUSED, "400: no", sure=False)
    assert reply(451, b"") == Refusal(REFUSED, "451: an empty body", sure=False)


WRONG_SET_UP = (
    "Invalid value for 'response_format'",
    "Input should be less than or equal to 1: temperature",
    "Model is not a chat model",
    "The model m is not available",
    "m is not a valid model ID",
    "seed: integer above maximum value",
    "Thinking mode requires stream=true",
    "You must provide a model parameter",
    "grammar error: failed to parse",
    "this model is deprecated",
    "chat template is not defined",
    "max_tokens is too large: 8192. This model supports at most 4096 completion tokens",
)


@pytest.mark.parametrize(
    ("status", "document", "words"),
    [
        (401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, "Incorrect API key"),
        (403, HTML, "403"),
        (404, {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}, "does not exist"),
        (404, {"error": "model 'x' not found, try pulling it first"}, "not found, try pulling"),  # Ollama
        (400, {"error": {"message": "x is not a valid model ID; model x does not exist"}}, "does not exist"),
        (400, {"error": {"message": "Unrecognized request argument supplied: seed"}}, "argument supplied: seed"),
        (400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'"}}, "max_tokens"),
        (
            422,
            {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "not permitted",
        ),
        (402, {"error": {"message": "Insufficient credits"}}, "Insufficient credits"),
        (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, "current quota"),
        (429, {"error": {"message": "no more for you", "code": "insufficient_quota"}}, "no more for you"),
        (200, {"error": {"code": 401, "message": "No auth credentials found"}}, "No auth credentials"),
        (307, b"", "307"),
        (402, {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}, "Insufficient Balance"),
        (429, {"error": {"code": "1113", "message": "Please recharge."}}, "recharge"),  # Zhipu
        (400, {"code": "Arrearage", "message": "Access denied: your account is not in good standing"}, "Arrearage"),
        (200, {"error": {"message": "No models loaded. Please load a model"}}, "No models loaded"),  # LM Studio
        (422, {"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required"}]}, "Field required"),
        *((400, {"error": {"message": words}}, words) for words in WRONG_SET_UP),
    ],
)
def test_a_wrong_set_up_stops_at_once_with_the_servers_own_words(status, document, words):
    with pytest.raises(SetupError, match=words):
        reply(status, document)


@pytest.mark.parametrize(
    ("headers", "words", "seconds"),
    [
        ({"Retry-After": "7"}, "", 7),
        ({"retry-after": "0.5"}, "", 0.5),
        ({"Retry-After-Ms": "250"}, "", 0.25),
        ({"Retry-After": "Tue, 15 Nov 2033 10:01:30 GMT"}, "", 90),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, "", 360),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, "", 0.12),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "6m0s"}, "", 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW + 40)}, "", 40),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2033-11-15T10:00:50Z",
            },
            "",
            50,
        ),
        ({}, "Rate limit reached. Please try again in 1m2.5s.", 62.5),
        ({}, '{"retryDelay": "12s"}', 12),
        ({}, '{"retry_after": 5}', 5),
        ({"RateLimit": '"default";r=0;t=30'}, "", 30),
        ({"Retry-After": "Tue, 15 Nov 2033 11:01:30 GMT", "Date": "Tue, 15 Nov 2033 11:00:00 GMT"}, "", 90),
        ({"Retry-After": "Tue, 99 Nov 2033 11:01:30 GMT"}, "", 0),
        ({"x-ms-retry-after-ms": "500"}, "", 0.5),
        ({"Retry-After": "1m30s"}, "", 90),
        ({"Retry-After": "soon"}, "", 0),
        ({"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "11"}, "", 11),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "12"}, "", 12),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str((NOW + 30) * 1000)}, "", 30),
        ({}, "Request was throttled. Expected available in 12 seconds.", 12),
        ({}, "Please wait for 2 minutes", 120),
        ({}, '{"retry_after_ms": 1500}', 1.5),
        ({}, '{"estimated_time": 20.0}', 20),
        ({"RateLimit": "limit=10, remaining=3, reset=30"}, "", 0),
        ({}, "no word of it", 0),
    ],
)
def test_how_long_a_server_asks_to_wait(headers, words, seconds, monkeypatch):
    monkeypatch.setattr(replies.time, "time", lambda: float(NOW))
    assert seconds_to_wait(headers, words) == pytest.approx(seconds)
