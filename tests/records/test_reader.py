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
from cogpo_jax.records.recognise import recognise
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
        "objects.json": "".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        "wrapped.json": json.dumps({"version": 1, "by": [{"name": "x"}], "data": ROWS}).encode(),
        "splits.json": json.dumps({"test": ROWS[:1], "train": ROWS}, indent=1).encode(),
        "named.json": json.dumps({"my_rows": ROWS}).encode(),
        "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}, indent=1).encode(),
        "pandas.json": json.dumps({name: {i: row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}).encode(),
        "split.json": json.dumps({"columns": [*ROWS[0]], "data": [[*row.values()] for row in ROWS]}).encode(),
        "wide.jsonl": lines.decode().encode("utf-16"),
        "wider.json": json.dumps(ROWS).encode("utf-32"),
        "named_wrong.parquet": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.bz2": bz2.compress(lines),
        "a.jsonl.zst": pa.compress(lines, "zstd", asbytes=True),
        "a.jsonl.lz4": pa.compress(lines, "lz4", asbytes=True),
        "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        yield str(tmp_path / name)
    for name, delimiter, end, encoding in (
        ("a.csv", ",", "\r\n", "utf-8"),
        ("bom.csv", ";", "\n", "utf-8-sig"),
        ("tabs", "\t", "\r", "utf-8"),
        ("wide.csv", "|", "\n", "utf-16"),
    ):
        with open(tmp_path / name, "w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(ROWS)
        yield str(tmp_path / name)
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
        ("nothing.json", b'{"data": []}', "empty"),
        ("latin.csv", "problem,answer\n6 × 7,42".encode("latin-1"), "not UTF-8"),
        ("twice.csv", b"a,b,a\n1,2,3", "'a' stands twice"),
        ("a.zip", b"PK\x03\x04\x00\x00a.jsonl\n{}", "a binary file or an archive"),
        ("lfs.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


def test_a_bad_row_is_told_and_the_others_are_read(tmp_path):
    for name, data, bad in (
        ("a.csv", b'problem,answer\n"1" + 1,2\n1+1,2\na,b,c\n2+2,4', ["not_csv", "more_cells_than_columns"]),
        ("b.jsonl", b'{"problem": "1+\n{"problem": "1+1"}\n3\n{"problem": "2+2"}', ["not_json", "not_an_object"]),
    ):
        (tmp_path / name).write_bytes(data)
        told = []
        rows = read_rows(tmp_path / name, bad=lambda place, reason, told=told: told.append(reason))
        assert [row["problem"] for _, row in rows] == ["1+1", "2+2"]
        assert told == bad


def test_one_row_alone_is_a_row(tmp_path):
    turn = {"role": "user", "content": "1+1"}
    for row in ({"problem": "1+1"}, {"chosen": [turn], "rejected": [turn]}, {"problem": "p", "outputs": [{"x": 1}]}):
        (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
        assert [row for _, row in read_rows(tmp_path / "a.json")] == [row]


def test_half_a_surrogate_pair_in_a_columns_name_is_no_way_to_lose_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": "1+1", "answer": "2", "why\ud800": "<think>hm</think>2"}))
    rows = [row for _, row in read_rows(tmp_path / "a.jsonl")]
    with pytest.raises(UserError, match="column 'why\ufffd' looks like a chain"):
        recognise(rows)
    assert recognise(rows, cot="why\ufffd").example(rows[0]).cot == "<think>hm</think>2"


def test_rows_by_id_keep_their_ids(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"p1": {"problem": "1+1"}, "p2": {"problem": "2+2"}}))
    assert [row for _, row in read_rows(tmp_path / "a.json")] == [
        {"id": "p1", "problem": "1+1"},
        {"id": "p2", "problem": "2+2"},
    ]


def test_a_files_own_splits_can_be_chosen(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"train": [{"i": 1}], "test": [{"i": 2}]}))
    assert [row["i"] for _, row in read_rows(f"{tmp_path / 'a.json'}:test")] == [2]
    with pytest.raises(UserError, match="split 'dev': not there; it has train, test"):
        read_rows(tmp_path / "a.json", "dev")


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
    [
        (0.00001, "0.00001"),
        (Decimal("1E-9"), "0.000000001"),
        (1e22, "1" + "0" * 22),
        (5.0, "5.0"),
        (float("nan"), ""),
        (None, ""),
        (12, "12"),
    ],
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
