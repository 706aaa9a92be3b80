"""Every container gives the same rows, and so the same bytes; what is damaged or missing is said in one line."""

import bz2
import csv
import gzip
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest

from cogpo_jax.errors import UserError
from cogpo_jax.records.convert import convert_pairs
from cogpo_jax.records.reader import find_files, fingerprint, read_rows
from cogpo_jax.records.texts import split_thought, text_of, turns_of, unwrap_gold

ROWS = [
    {"prompt": "What is\n6 * 7?", "chosen": "<think>hm, é</think>42", "rejected": "43", "beta": 0.5},
    {"prompt": "And 7 * 6?", "chosen": "42", "rejected": "44", "beta": 0.25},
]


def saved(folder, rows):
    """A folder as datasets.save_to_disk writes it."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as w:
        w.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def clone(folder, rows, configs=("default",)):
    """A cloned hub repository whose README.md names its configs."""
    card = ["---", "configs:"]
    for config in configs:
        (folder / config).mkdir(parents=True)
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / config / "train-00000-of-00001.parquet")
        files = f"  data_files: [{{split: train, path: {config}/train-*}}, {{split: test, path: '{config}/train-*'}}]"
        card += [f"- config_name: {config}", files]
    (folder / "README.md").write_text("\n".join([*card, "---", "# A set"]))


def containers(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    files = {
        "a.jsonl": lines,
        "bom.jsonl": b"\xef\xbb\xbf" + lines,
        "crlf.txt": b"\r\n" + lines.replace(b"\n", b"\r\n"),
        "array.json": json.dumps(ROWS, indent=1).encode(),
        "line.json": json.dumps(ROWS).encode(),
        "wrapped.json": json.dumps({"version": 1, "data": ROWS}).encode(),
        "named_wrong.parquet": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.bz2": bz2.compress(lines),
        "a.jsonl.zst": pa.compress(lines, "zstd", asbytes=True),
        "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        yield str(tmp_path / name)
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    yield str(tmp_path / "a.csv")
    table = pa.Table.from_pylist(ROWS)
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    saved(tmp_path / "saved", ROWS)
    saved(tmp_path / "splits" / "train_prefs", ROWS)
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["train_prefs"]}')
    clone(tmp_path / "clone", ROWS)
    clone(tmp_path / "two", ROWS, ("main", "other"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part1.jsonl").write_bytes(lines)
    for name in ("a.parquet", "a.arrow", "saved", "splits", "clone", "folder", "folder/*.jsonl"):
        yield str(tmp_path / name)
    yield f"hf:{tmp_path / 'two'}@other:test"
    yield f"hf:{tmp_path / 'splits'}:train_prefs"


def test_the_same_rows_in_all_containers_give_the_same_bytes(tmp_path):
    written = {}
    (tmp_path / "in").mkdir()
    for i, source in enumerate(containers(tmp_path / "in")):
        out = tmp_path / str(i)
        convert_pairs(source, out)
        written[source] = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.*")) if p.is_file()}
    assert len(written) >= 20
    first = next(iter(written.values()))
    assert [source for source, files in written.items() if files != first] == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jsonl", b"", "empty"),
        ("blank.jsonl", b"\n\n", "empty"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9000)[:-30], "damaged or cut off"),
        ("cut.json", b'[{"a": 1}, {"a":', "not JSON"),
        ("cut.zst", pa.compress(b'{"a": 1}\n' * 9000, "zstd", asbytes=True)[:-9], "damaged or cut off"),
        ("cut.parquet", b"PAR1xxxxxxxxxxxx", "damaged or cut off"),
        ("deep.json", b"[" * 100_000, "not JSON"),
        ("deep.jsonl", b'{"a": ' + b"[" * 100_000, "not JSON"),
        ("text.txt", b"no rows here\n", "not JSON"),
        ("lfs.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


def test_wrong_configs_and_splits_list_those_there_are(tmp_path):
    clone(tmp_path / "two", ROWS, ("main", "other"))
    for source, message in (
        (f"hf:{tmp_path / 'two'}", "several configs; it has main, other"),
        (f"hf:{tmp_path / 'two'}@third", "config 'third': not there; it has main, other"),
        (f"hf:{tmp_path / 'two'}@main:dev", "split 'dev': not there; it has train, test"),
        (str(tmp_path / "nowhere"), "no such file or folder"),
    ):
        with pytest.raises(UserError, match=message):
            find_files(source)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no data in it"):
        list(read_rows(tmp_path / "bare"))


def test_what_was_read_has_one_fingerprint(tmp_path):
    clone(tmp_path / "one", ROWS)
    (only,) = find_files(tmp_path / "one")
    assert fingerprint(tmp_path / "one") == fingerprint(only)


def test_an_array_is_read_bit_by_bit(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"a": "x" * 70_000, "i": i} for i in range(5)]))
    assert [row["i"] for _, row in read_rows(tmp_path / "a.json")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00001, "0.00001"), (Decimal("1E-5"), "0.00001"), (5.0, "5.0"), (float("nan"), ""), (None, ""), (12, "12")],
)
def test_numbers_are_plain_digits(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("tag", ["think", "thinking", "thought", "reasoning", "THINK"])
@pytest.mark.parametrize(
    "solution", ["so 4", "<answer>so 4</answer>", "<|begin_of_solution|>\nso 4<|end_of_solution|>"]
)
def test_thoughts_of_every_tag_family_are_split(tag, solution):
    assert split_thought(f"<{tag}>\nhm\n</{tag}>\n\n{solution}") == ("hm", "so 4")


def test_texts_without_whole_tags_stay():
    for text in ("so 4", "<think>cut off", "<think></think>so 4"):
        assert split_thought(text) == ("", text)
    assert split_thought("hm <answer>4</answer>") == ("hm", "4")
    assert split_thought("<|begin_of_thought|>hm<|end_of_thought|> so 4") == ("hm", "so 4")


@pytest.mark.parametrize(
    ("gold", "bare"),
    [
        (r"\boxed{6}", "6"),
        (r"$\boxed{55}$", "55"),
        ("#### 18", "18"),
        ("<<3*3=9>>9", "9"),
        (r"\(\frac{1}{2}\)", r"\frac{1}{2}"),
        ("$5$ and $6$", "$5$ and $6$"),
        (r"\boxed{1} and \boxed{2}", r"\boxed{1} and \boxed{2}"),
        ('["3"]', "3"),
    ],
)
def test_golds_lose_their_wrapping(gold, bare):
    assert unwrap_gold(gold) == bare


@pytest.mark.parametrize(
    "conversation",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        {"role": ["user", "assistant"], "content": ["a", "b"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"from": "bot", "value": "b"}]},
        "\n\nHuman: a\n\nAssistant: b",
    ],
)
def test_conversations_of_any_form_are_the_same_turns(conversation):
    assert turns_of(conversation) == [("user", "a"), ("assistant", "b")]
