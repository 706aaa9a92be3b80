"""What servers reply, sorted in one place for all back ends. There are four classes of reply:

- an answer: what `read` makes of the body;
- an outcome of this problem (`Refusal`): filtered, too long, refused for what it is;
- come back later (`Later`): overload, time-outs, lost connections, bodies that are none; never an outcome;
- a wrong set-up (`SetupError`): key, address, model or parameter; the run stops with the server's own words.

Servers differ in status, form and words: llama.cpp, vLLM, SGLang, TGI, Ollama, OpenAI, Azure, Mistral, OpenRouter,
Together, Groq, and the compatible doors of Anthropic and Gemini. So an error is known by all of these together.
"""

import email.utils
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cogpo_jax.records.texts import THOUGHT_CLOSES, THOUGHT_OPENS
from crv.pool.base import CONTENT_FILTER, PROMPT_TOO_LONG, REFUSED, Answer, PoolError

_LATER_STATUS = {408, 409, 420, 421, 423, 424, 425, 429, 440, 444, 449, 460, 499}
_RATE = re.compile(r"rate.?limit|too many requests|overloaded|throttl")
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit|shift)|maximum context|max_model_len|n_ctx|model length|token limit"
    r"|max\w* seq\w*[ _]len|maximum (input|prompt) length|too long|too many (input )?tokens|longer than|input length"
    r"|request too large|input token count|maximum (number of )?tokens (allowed )?\(?\d+|have less than \d+ tokens"
    r"|`max_new_tokens` must be|reduce the length|(input|prompt|request|messages?) (is|are) too large"
    r"|exceeds? the (available )?context|must be at least 1, got -"
)
_FILTERED = re.compile(
    r"content[ _-]?(filter|policy|management|moderation|exists risk)|responsibleai|flagged|moderation|unsafe|guardrail"
    r"|safety[ _](system|filter|polic|check)|usage (polic|guideline)|data_inspection|inappropriate content|blocklist"
    r"|sensitive (content|data|information|word|topic)|prohibited_content|\u654f\u611f|\u4e0d\u5b89\u5168|\u8fdd\u89c4"
)
_NO_QUOTA = re.compile(
    r"insufficient[ _](quota|credits?|balance|funds)|payment required|credit balance|balance is|out of credits|recharge"
    r"|arrear|good standing|unpurchased|freetieronly|hard limit"
)
_BILLING = re.compile(r"billing|current quota|exceeded your quota")
_SETUP = re.compile(
    r"un(known|recogni[sz]ed|supported|expected)|not (yet )?supported|(does|do)(n't| not) support|not enabled|grammar"
    r"|not (permitted|allowed)|extra (inputs|fields)|api[ _-]?key|permission|unauthori[sz]ed|forbidden|access denied"
    r"|no (such )?models? |models?\b.{0,80}(not found|not exist|unavailable|not available|loaded|deprecated)|retired"
    r"|model\b.{0,80}is not an? |a(nother)? model\b|(in)?valid model|invalid (type|schema|parameter|json|value)"
    r"|(is|field) required|missing (required|field)|is too large|only one of|requires stream|chat[ _]template"
    r"|(must|should) be (less|greater|at (most|least)|between|one of|set|in|an?) |must alternate"
    r"|\b(seed|temperature|top_[pk]|max_\w*tokens|response_format|json_schema|reasoning_effort|enable_thinking)\b"
)
NO_SYSTEM = re.compile(
    r"system (role|message|instruction|prompt)|developer instruction|roles? .{0,60}supported|alternate"
)

# Servers' words for how a text ended, in the order in which they are tried; any other is an outcome of that name.
_FILTERS = re.compile(
    r"filter|safety|recitation|block|prohibited|spii|guardrail|refus|sensitive|moderat|flagged|policy"
)
_AGAIN = re.compile(
    r"abort|error|cancell?ed|time_?out|fail|overload|unavailable|insufficient_system|preempt|evict|shut|interrupt"
)
_LENGTHS = re.compile(r"length|max_|token_limit|limit|context_window|incomplete|truncat|budget|exhausted")
_STOPS = re.compile(
    r"|s|null|none|.*stop.*|eo[stdm].*|end.*|complete.*|done|finish.*|.*im_end|.*load|natural|unspec.*|pause.*"
)


@dataclass(frozen=True, slots=True)
class Later:
    """The call is to be sent again: why, how many seconds the server asked to wait, whether it is overloaded."""

    reason: str
    seconds: float = 0.0
    overloaded: bool = False
    words: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server refuses this request: an outcome of the problem. Not `sure`: it may be the set-up after all."""

    reason: str
    words: str
    sure: bool = True


class SetupError(PoolError):
    """The set-up is wrong (key, address, model, parameter, quota); the message holds the server's own words."""


class LaterError(ValueError):
    """Raised by a reader of bodies: what came is no answer, for a reason that is counted."""


def sort_reply(
    status: int, headers: Mapping[str, str], body: bytes, read: Callable[[Any], Any]
) -> Any | Later | Refusal:
    """What `read` makes of a reply's JSON body, or Later, or Refusal; raises SetupError.

    `read` raises LaterError (a reason to ask again), or ValueError, KeyError, ... for a body that is no answer.
    """
    document = _document(body)
    found = _error(document)
    if status < 300 and found is None:
        if document is None:
            return Later("unreadable body", words=_plain(body))
        try:
            return read(document)
        except LaterError as error:
            return Later(str(error), words=_plain(body))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return Later("unreadable body", words=_plain(body))
    told, words = found or (0, _plain(body))
    wait = seconds_to_wait(headers, body.decode(errors="replace") if found else "", refused=status == 429)
    return _sort_error(status if status >= 300 else told, wait, words)


def _sort_error(status: int, wait: float, words: str) -> Later | Refusal:
    said = words.lower()
    limited = bool(_RATE.search(said))
    billing = status in (403, 429) and not wait and not limited and _BILLING.search(said)
    if status == 402 or billing or (status < 500 and _NO_QUOTA.search(said)):
        raise SetupError(f"{status or 'error'}: {words}")
    if status == 413 or _too_long(status, said):
        return Refusal(PROMPT_TOO_LONG, words)
    if status == 500 and ("jinja" in said or NO_SYSTEM.search(said)):  # llama.cpp: the chat template refuses
        raise SetupError(f"500: {words}")
    if status == 429 or (status in (0, 400, 403) and limited):
        return Later("429", wait, overloaded=True, words=words)
    if status >= 500 or status in _LATER_STATUS:
        return Later(str(status), wait, overloaded=status in (503, 529), words=words)
    if status not in (401, 404, 407) and _FILTERED.search(said):
        return Refusal(CONTENT_FILTER, words)
    if not status and not _SETUP.search(said):
        return Later("error in the body", wait, words=words)
    if status not in (400, 422, 451):
        raise SetupError(f"{status or 'error'}: {words}")
    if _SETUP.search(said):
        raise SetupError(f"{status}: {words} (pool.omit leaves a field out, pool.extra_body adds one)")
    return Refusal(REFUSED, f"{status}: {words}", sure=False)


def _too_long(status: int, said: str) -> bool:
    if status == 429:  # a limit of tokens a minute that this request alone is above
        return "request too large" in said
    return status in (0, 400, 422, 500) and bool(_TOO_LONG.search(said))


def _document(body: bytes) -> Any:
    """A body's JSON, that of a stream of events put together; None where there is none."""
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass").strip()
        if text.startswith(("data:", "event:", ": ")):
            return _of_events([json.loads(line[5:], strict=False) for line in text.split("\n") if _EVENT.match(line)])
        return json.loads(text, strict=False)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None


_EVENT = re.compile(r"data:\s*\{")


def _of_events(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The chat completion that a stream's deltas make, or its error; None where it was cut off."""
    message, document = dict[str, Any](), dict[str, Any]()
    for event in events:
        if "error" in event:
            return event
        document["usage"] = event.get("usage") or document.get("usage")
        for choice in event["choices"][:1]:
            for name, value in (choice.get("delta") or {}).items():
                message[name] = message.get(name, "") + value if isinstance(value, str) else value or message.get(name)
            if choice.get("finish_reason"):
                document["choices"] = [{**choice, "message": message}]
    return document if "choices" in document else None


def _error(document: Any) -> tuple[int, str] | None:
    """(HTTP status or 0, words) of the error that a body holds, in whichever form; None where it holds none."""
    if isinstance(document, list) and len(document) == 1:  # Gemini's compatible door
        document = document[0]
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    choices = document.get("choices")
    if isinstance(error, dict) and not any(error.values()):
        error = None
    if not error and isinstance(choices, list) and choices and isinstance(choices[0], dict):
        error = choices[0].get("error")  # OpenRouter: a provider's error inside a choice
    if not error and not choices and (document.get("object") == "error" or document.get("type") == "error"):
        error = document
    if not error and "choices" not in document and "text" not in document:
        error = {k: document[k] for k in ("detail", "message", "errors", "code", "status") if k in document}
        error = error if any(isinstance(error.get(k), str | list) for k in ("detail", "message", "errors")) else None
    if not error:
        return None
    words = " ".join(dict.fromkeys(_words(document if error is not document else error)))
    return _status(error) or _status(document), " ".join(words.split())[:500] or "an error without words"


_KINDS = {  # HTTP status -> what errors of it are called
    429: ("rate_limit", "resource_exhausted"),
    529: ("overloaded",),
    500: ("server_error",),
    503: ("unavailable",),
    401: ("authentication",),
    403: ("permission",),
    404: ("not_found",),
    400: ("invalid_request", "invalid_argument", "badrequest"),
    422: ("validation",),
}


def _status(error: Any) -> int:
    """The HTTP status that an error object tells; 0 where it tells none."""
    if not isinstance(error, dict):
        return 0
    for name in ("code", "status", "status_code", "http_status"):
        value = error.get(name)
        if str(value).isdigit() and 400 <= int(str(value)) < 600:
            return int(str(value))
    kind = " ".join(str(error.get(name, "")) for name in ("type", "status", "code")).lower()
    return next((status for status, names in _KINDS.items() if any(name in kind for name in names)), 0)


_TELLING = (  # fields of an error that hold its words, in the order in which they are told
    *("error", "message", "msg", "detail", "errors", "choices", "loc", "code", "type", "param", "status"),
    *("error_type", "innererror", "metadata", "reasons", "reason", "details", "raw"),
)


def _words(value: Any) -> Iterator[str]:
    """Every text of an error, messages before codes."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif isinstance(value, dict):
        for name in _TELLING:
            if name in value and not isinstance(value[name], int):
                yield from _words(value[name])


def _plain(body: bytes) -> str:
    """A body that is not JSON, as a few words: an HTML page without its tags."""
    text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]*>", " ", body[:20_000].decode(errors="replace"))
    return " ".join(text.split())[:300] or "an empty body"


_TOLD_DELAY = re.compile(
    r"(?:retry_?delay\W+|(?:again|retry|available|wait)\s(?:(?:in|after|for|about|at least)\s){0,2})"
    r"((?:\d+(?:\.\d+)?\s*[a-z]+ ?)+)",
    re.IGNORECASE,
)
_TOLD_NUMBER = re.compile(r"(?:retry[_-]?after|estimated_time)(_ms|_seconds)?\W+(\d+(?:\.\d+)?)", re.IGNORECASE)


def seconds_to_wait(headers: Mapping[str, str], words: str = "", refused: bool = False) -> float:
    """How long the server asks to be left alone: Retry-After, spent rate limits, or words of an error; 0 = not told.

    `refused`: the call was, for a limit; then a reset tells when even if nothing says that the limit is spent.
    """
    h = {name.lower().replace("rate-limit", "ratelimit"): value.strip() for name, value in headers.items()}
    if milliseconds := h.get("retry-after-ms") or h.get("x-ms-retry-after-ms"):
        return _seconds(milliseconds) / 1000
    if "retry-after" in h:
        return _seconds(h["retry-after"], h.get("date", ""))
    spent, resets = [0.0], []
    for name, value in h.items():
        if "ratelimit" in name and "reset" in name:
            resets.append(min(_seconds(value), 86_400.0))
            left = h.get(name.replace("reset", "remaining"), "")
            spent += resets[-1:] if re.fullmatch(r"0(\.0*)?", left) else []
    if re.search(r"\b(r|remaining)=0\b", field := h.get("ratelimit", "")) and (
        found := re.search(r"\b(?:t|reset)=(\d+)", field)
    ):
        spent.append(float(found[1]))
    if found := _TOLD_DELAY.search(words):
        spent.append(_seconds(found[1]))
    if found := _TOLD_NUMBER.search(words):
        spent.append(float(found[2]) / (1000 if found[1] == "_ms" else 1))
    return max(spent) or (min(resets, default=0.0) if refused else 0.0)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(value: str, now: str = "") -> float:
    """Seconds from now: `12`, `0.5`, `6m0s`, `300ms`, `20 seconds`, an HTTP or ISO date, or seconds since 1970.

    `now`: the date by the server's clock, where it tells one.
    """
    value = value.strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        number = float(value)
        number = number / 1000 if number > 1e11 else number
        return max(0.0, number - time.time()) if number > 1e9 else number
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|milli\w*|s|m|h|d)", value.lower())
    if parts and value[0].isdigit() and not re.match(r"\d{4}-", value):
        return sum(float(n) * _UNITS["ms" if unit.startswith("milli") else unit] for n, unit in parts)
    try:
        return max(0.0, _timestamp(value) - (_timestamp(now) if now else time.time()))
    except (ValueError, TypeError):
        return 0.0


def _timestamp(date: str) -> float:
    if re.match(r"\d{4}-", date):
        return datetime.fromisoformat(date.replace("Z", "+00:00")).timestamp()
    return email.utils.parsedate_to_datetime(date).timestamp()


def finish_reason(reason: Any) -> str:
    """`stop`, `length` or the name of an outcome for any server's word; raises LaterError for an aborted call."""
    reason = reason.get("type") if isinstance(reason, dict) else reason
    word = "" if reason is None else re.sub(r"\W+", "_", str(reason).lower()).strip("_")
    word = word.removeprefix("finish_reason_")
    if _FILTERS.search(word):
        return CONTENT_FILTER
    if _AGAIN.search(word):
        raise LaterError(f"finish reason {word}")
    if _LENGTHS.search(word):
        return "length"
    return "stop" if _STOPS.fullmatch(word) else word


def chat_answer(document: Any, model: str) -> Answer:
    """The answer in a chat completion's body, with its thought in think tags; raises LaterError and KeyError."""
    choices = document["choices"]
    if not choices:
        if re.search(r'"filtered": true|block_?reason', json.dumps(document).lower()):
            return Answer("", CONTENT_FILTER, model=model)  # Azure and Gemini: the prompt was
        raise LaterError("no choices")
    choice = next((choice for choice in choices if choice.get("index") == 0), choices[0])
    usage = document.get("usage") or {}
    message = choice.get("message") or choice.get("delta") or {"content": choice["text"]}
    reasons = (choice.get(name) for name in ("finish_reason", "finishReason", "stop_reason", "native_finish_reason"))
    reason = next((reason for reason in reasons if isinstance(reason, str | dict)), None)
    pieces = list(_pieces(message.get("content")))
    thought = _thought(message) or "".join(text for kind, text in pieces if kind == "thought")
    text = "".join(text for kind, text in pieces if kind == "text")
    refused = message.get("refusal") or any(kind == "refusal" for kind, _ in pieces)
    ended = CONTENT_FILTER if refused and not text else finish_reason(reason)
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
    prompt = usage.get("prompt_tokens") or usage.get("input_tokens") or 0
    output = usage.get("completion_tokens") or usage.get("output_tokens") or 0
    text, ended = with_thought(text, ended, thought)
    return Answer(text, ended, int(prompt), int(output), int(cached), model=model)


def _thought(message: Mapping[str, Any]) -> str:
    """The thought in a field of its own, whichever its name."""
    for name in ("reasoning_content", "reasoning", "thinking", "thought", "reasoning_details"):
        if text := "".join(text for _, text in _pieces(message.get(name))).strip():
            return text
    return ""


_INNER = ("text", "thinking", "reasoning", "refusal", "summary", "content", "value")


def _pieces(content: Any) -> Iterator[tuple[str, str]]:
    """(`text`, `thought` or `refusal`; the text) of a message's content: a text, a part, or a list of parts."""
    if isinstance(content, str):
        yield "text", content
    elif isinstance(content, list):
        for part in content:
            yield from _pieces(part)
    elif isinstance(content, dict):
        kind = str(content.get("type", "text")).lower()
        inner = next((content[name] for name in _INNER if content.get(name)), "")
        text = "".join(text for _, text in _pieces(inner))
        if content.get("thought") is True or any(word in kind for word in ("think", "reason", "thought")):
            yield "thought", text
        else:
            yield "refusal" if kind == "refusal" else "text", text


_LEFT_OVER = re.compile(
    r"<\|(end|return|start)\|>(assistant)?|<\|(begin|end)_of_solution\|>|<\|(start|end)_response\|>|</?answer>", re.I
)


def with_thought(text: str, ended: str, thought: str = "") -> tuple[str, str]:
    """(text with its thought between think tags, how it ended). A thought that was cut off makes it `length`."""
    body = text.strip() if thought else text.lstrip()
    opened = THOUGHT_OPENS.match(body)
    closed = THOUGHT_CLOSES.search(body, begin := opened.end() if opened else 0)
    if closed and not opened and closed.start() and (thought or THOUGHT_OPENS.search(body, 0, closed.start())):
        closed = None  # said about tags, not one
    if not opened and not closed:
        return (f"<think>\n{thought}\n</think>\n\n{body}" if thought else text), ended
    inner = _LEFT_OVER.sub("", body[begin : closed.start() if closed else None]).strip()
    thought = "\n\n".join(dict.fromkeys(filter(None, (thought, inner))))
    if not closed:
        return f"<think>\n{thought}", "length" if ended == "stop" else ended
    return with_thought(_LEFT_OVER.sub("", body[closed.end() :]).strip(), ended, thought)
