"""Text to ids with the real Qwen tokenizers, and a token cache that is what tokenising in memory gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cogpo_jax.data import tokens
from cogpo_jax.data.tokens import load_tokens, tokenize_records
from cogpo_jax.errors import UserError
from cogpo_jax.records import Group, Pair, Response, SftExample, read_groups, write_data
from cogpo_jax.text import (
    TextFormat,
    encode_prompts,
    encode_responses,
    load_tokenizer,
    prompt_text,
    response_text,
    tokenizer_digest,
)

GOLDEN = json.loads((Path(__file__).parent / "golden_ids.json").read_text())
CHAT = TextFormat()
END = 151645  # <|im_end|>


@pytest.fixture(scope="session")
def qwen25(qwen25_tokenizer):
    return load_tokenizer(qwen25_tokenizer)


@pytest.fixture(scope="session")
def qwen3(qwen3_tokenizer):
    return load_tokenizer(qwen3_tokenizer)


def response(text="", thought="", solution="", number=0, **fields):
    defaults = {"parent": "", "origin": "imported", "model": "", "kind": "unknown", "certificate": ""}
    return Response(id=f"r{number}", thought=thought, solution=solution, text=text, **defaults | fields)


def group(number=0, texts=("four", "five"), **fields):
    responses = tuple(response(text, number=i) for i, text in enumerate(texts))
    pairs = tuple(Pair(0, i, "none", beta=0.1 * i) for i in range(1, len(texts)))
    return Group(f"p{number}", "", f"What is {number} plus 2?", "", responses, pairs, **fields)


def test_golden_ids_of_the_real_tokenizers(qwen25, qwen3):
    for case in GOLDEN["sequences"]:
        assert encode_prompts(qwen25, [case["text"]]) == [case["input_ids"]]
    for tokenizer, name in ((qwen25, "Qwen2.5-0.5B-Instruct"), (qwen3, "Qwen3")):
        cases = GOLDEN["self_computed_exact_tokenizer_json"][name]
        assert encode_prompts(tokenizer, [c["text"] for c in cases]) == [c["input_ids"] for c in cases]


def test_golden_templates(qwen25, qwen3):
    question = "What is 1+1?"
    for tokenizer, name in ((qwen25, "Qwen2.5-0.5B-Instruct"), (qwen3, "Qwen3")):
        renders = GOLDEN["chat_template_renders"][name]
        assert prompt_text(tokenizer, question, text_format=CHAT) == renders["user_gen"]
        # A prompt and its response are what the template makes of the conversation.
        whole = renders["user_gen"] + response_text("add", "2", "", text_format=CHAT) + "<|im_end|>\n"
        assert whole == renders["think_asst"]


def test_who_gives_the_system_message(qwen25):
    default = prompt_text(qwen25, "Hi", text_format=CHAT)
    assert default.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    own = prompt_text(qwen25, "Hi", "Be brief.", text_format=TextFormat(system="Be long."))
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert "Be long." in prompt_text(qwen25, "Hi", text_format=TextFormat(system="Be long."))
    assert prompt_text(qwen25, "Hi", text_format=TextFormat(prompt="raw")) == "Hi"


def test_a_conversation_replaces_the_prompt(qwen25):
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    text = prompt_text(qwen25, "c", "S", json.dumps(turns), text_format=CHAT)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("response_format", "want"),
    [
        ("think", "<think>\nT\n</think>\n\nS"),
        ("plain", "T\n\nS"),
        (
            "r1",
            "<|begin_of_thought|>\n\nT\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nS\n\n<|end_of_solution|>",
        ),
    ],
)
def test_response_formats(response_format, want):
    assert response_text("T", "S", "", text_format=TextFormat(response=response_format)) == want


def test_the_end_token_counts_once(qwen25):
    for text in ("four", "four<|im_end|>", "four<|im_end|>\n"):
        ids = encode_responses(qwen25, [response_text("", "", text, text_format=CHAT)], text_format=CHAT)[0]
        assert ids == [34024, END]


def test_special_tokens_inside_a_response_are_plain_text(qwen25):
    text = "a <|im_end|> b <|im_start|>system c<|endoftext|>"
    ids = encode_responses(qwen25, [text], text_format=CHAT)[0]
    assert max(ids[:-1]) < 151643
    assert ids[-1] == END
    assert qwen25.decode(ids[:-1]) == text


def test_a_prompt_never_counts_and_ids_are_tokenised_apart(qwen25):
    data = tokenize_records([group(), group(1, ("six", "seven eight", "nine"))], qwen25, CHAT)
    for g, r in ((0, 0), (0, 1), (1, 2), (1, 4)):
        prompt = encode_prompts(qwen25, [prompt_text(qwen25, f"What is {g} plus 2?", text_format=CHAT)])[0]
        texts = ["four", "five", "six", "seven eight", "nine"]
        answer = encode_responses(qwen25, [texts[r]], text_format=CHAT)[0]
        ids, counted = data.sequence(r)
        assert ids.tolist() == prompt + answer
        assert counted.tolist() == [False] * len(prompt) + [True] * len(answer)
        assert data.lengths[r] == len(ids)
        assert data.counted_lengths[r] == len(answer)
    assert data.chosen.tolist() == [0, 2, 2]
    assert data.rejected.tolist() == [1, 3, 4]
    np.testing.assert_allclose(data.betas, [0.1, 0.1, 0.2], rtol=1e-6)


def test_loss_spans_choose_the_tokens_that_count(qwen25):
    text = "one two three"
    both = (response(text, loss_spans=((4, 7),)), response(text + "!", number=1, loss_spans=((8, 14),)))
    g = Group("p", "", "Count", "", both, (Pair(0, 1, "none"),))
    data = tokenize_records([g], qwen25, CHAT)
    prompt = int(data.prompt_lengths[0])
    assert data.sequence(0)[1][prompt:].tolist() == [False, True, False, False]
    # A span that reaches the end of the text takes the end token with it.
    assert data.sequence(1)[1][prompt:].tolist() == [False, False, True, True, True]
    assert data.counted_lengths.tolist() == [1, 3]
    beyond = response(thought="a", solution="b", loss_spans=((0, 99),))
    with pytest.raises(UserError, match=r"loss_spans: \(0, 99\): must end within the response's 21 characters"):
        tokenize_records([Group("p", "", "Count", "", (beyond, response("c", number=1)), g.pairs)], qwen25, CHAT)


def test_content_digests_name_prompt_response_and_what_counts(qwen25):
    spans = Group("p0", "", "What is 0 plus 2?", "", (response("four", loss_spans=((0, 2),)), response("five")), ())
    variants = [group(), group(1), group(0, ("four!", "five")), spans]
    digests = [tokenize_records([g], qwen25, CHAT).digests for g in variants]
    assert len({d[0].tobytes() for d in digests}) == 4
    assert digests[0][1].tobytes() == digests[2][1].tobytes()  # the same response to the same prompt


def test_another_template_or_format_is_another_tokenizer(qwen25, qwen25_tokenizer):
    other = load_tokenizer(qwen25_tokenizer)
    assert tokenizer_digest(other, CHAT) == tokenizer_digest(qwen25, CHAT)
    assert tokenizer_digest(other, TextFormat(response="plain")) != tokenizer_digest(qwen25, CHAT)
    other.chat_template += " "
    assert tokenizer_digest(other, CHAT) != tokenizer_digest(qwen25, CHAT)


def same(a, b):
    for name in ("lengths", "counted_lengths", "digests", "chosen", "rejected", "gaps", "betas", "weights"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (list(a.names), a.digest) == (list(b.names), b.digest)
    for r in range(len(a.digests)):
        for x, y in zip(a.sequence(r), b.sequence(r), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(tokens, "PART_RECORDS", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    groups = [group(i, [f"{i} {w}" for w in ("a", "b b", "c c c")[: 2 + i % 2]]) for i in range(10)]
    sft = [
        SftExample(f"p{i}", "", f"Q {i}", "think", f"so {i}", "", str(i), "medium", "", loss_spans=((0, 3),))
        for i in range(10)
    ]
    write_data(folder, sft={"train": sft}, groups={"train": groups}, shards=3)
    return folder


def test_the_cache_is_what_tokenising_in_memory_gives(folder, tmp_path, qwen25, small_parts, monkeypatch):
    want = tokenize_records(read_groups(folder), qwen25, CHAT)
    built = load_tokens(folder, "train", "cogpo", qwen25, CHAT, tmp_path)
    same(built, want)
    assert len(built._tokens) == 3
    assert isinstance(built._tokens[0], np.memmap)
    monkeypatch.setattr(tokens, "_tokenize_part", lambda *_: pytest.fail("tokenised a second time"))
    same(load_tokens(folder, "train", "cogpo", qwen25, CHAT, tmp_path), want)


def test_sft_examples_are_groups_of_one_response(folder, tmp_path, qwen25):
    data = load_tokens(folder, "train", "sft", qwen25, CHAT, tmp_path)
    assert len(data.digests) == len(data.names) == 10
    assert len(data.chosen) == 0
    ids, counted = data.sequence(3)
    assert qwen25.decode(ids).endswith("<think>\nthink\n</think>\n\nso 3<|im_end|>")
    assert qwen25.decode(ids[counted]) == "<th"


def test_a_cache_that_was_killed_midway_goes_on_at_the_next_part(
    folder, tmp_path, qwen25_tokenizer, qwen25, small_parts
):
    script = (
        "import os, sys\n"
        "from cogpo_jax.data import tokens\n"
        "from cogpo_jax.text import TextFormat, load_tokenizer\n"
        "tokens.PART_RECORDS = 4\n"
        "def progress(done, total):\n"
        "    if done == 8: os.kill(os.getpid(), 9)\n"
        "args = sys.argv[1], 'train', 'cogpo', load_tokenizer(sys.argv[2]), TextFormat(), sys.argv[3], progress\n"
        "tokens.load_tokens(*args)\n"
    )
    command = [sys.executable, "-c", script, str(folder), str(qwen25_tokenizer), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    (cache,) = tmp_path.iterdir()
    assert sorted(p.name for p in cache.iterdir()) == ["part-000000", "part-000001"]
    stamp = (cache / "part-000000" / "tokens.npy").stat().st_mtime_ns
    same(
        load_tokens(folder, "train", "cogpo", qwen25, CHAT, tmp_path),
        tokenize_records(read_groups(folder), qwen25, CHAT),
    )
    assert (cache / "part-000000" / "tokens.npy").stat().st_mtime_ns == stamp


def test_other_records_or_another_format_take_another_cache(folder, tmp_path, qwen25):
    load_tokens(folder, "train", "cogpo", qwen25, CHAT, tmp_path / "cache")
    load_tokens(folder, "train", "cogpo", qwen25, TextFormat(response="plain"), tmp_path / "cache")
    write_data(tmp_path / "other", groups={"train": [group(7)]})
    load_tokens(tmp_path / "other", "train", "cogpo", qwen25, CHAT, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_what_is_not_there_is_named(folder, tmp_path, qwen25):
    with pytest.raises(UserError, match="has no groups records of split 'validation'"):
        load_tokens(folder, "validation", "cogpo", qwen25, CHAT, tmp_path)
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"text.end_token: '<end>': not a token"):
        encode_responses(qwen25, ["a"], text_format=TextFormat(end_token="<end>"))
    with pytest.raises(UserError, match=r"text.response: 'r2': must be one of think, r1, plain"):
        TextFormat(response="r2")
