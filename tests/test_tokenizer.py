"""The small tokenizer that the quickstart trains."""

import json
import random
import subprocess
import sys

import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.text import TextFormat, encode_responses, load_tokenizer, prompt_text, train_tokenizer

WORDS = ["sum", "factor", "\\frac{1}{2}", "triangle", "therefore", "137", "= x^2", "é√°", "\\boxed{42}", "line\n\n"]
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=40)) for i in range(60)]
VOCAB = 290


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, folder, VOCAB)
    return folder


def test_any_text_survives_a_round_trip(folder):
    tokenizer = load_tokenizer(folder)
    for text in [*TEXTS[:5], "日本語 🙂\t tabs", "<think>\nno special token\n</think>"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_size_and_special_tokens(folder):
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == VOCAB
    assert tokenizer.eos_token == "<|im_end|>"
    assert sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])) == [287, 288, 289]


def test_chat_template_is_chatml_without_a_system_message_of_its_own(folder):
    text = prompt_text(load_tokenizer(folder), "1+1?", text_format=TextFormat())
    assert text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    text = prompt_text(load_tokenizer(folder), "1+1?", system="Be brief.", text_format=TextFormat())
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_response_ends_with_the_end_token_once(folder):
    tokenizer = load_tokenizer(folder)
    (ids,) = encode_responses(tokenizer, ["the sum <|im_end|> is 2"], text_format=TextFormat())
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id


def test_same_texts_give_the_same_bytes_in_another_process_and_another_order(folder, tmp_path):
    code = "import sys, json; from cogpo_jax.text import train_tokenizer; "
    code += f"train_tokenizer(json.load(sys.stdin), {str(tmp_path)!r}, {VOCAB})"
    subprocess.run([sys.executable, "-c", code], input=json.dumps(TEXTS[::-1]), text=True, check=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_vocabulary_that_cannot_be_filled_is_refused(tmp_path):
    with pytest.raises(UserError, match="vocab_size"):
        train_tokenizer(["short"], tmp_path, 2048)
    with pytest.raises(UserError, match="vocab_size"):
        train_tokenizer(TEXTS, tmp_path, 200)
