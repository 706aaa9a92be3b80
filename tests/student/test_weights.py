"""Hugging Face folders come in and go out bit for bit, and a damaged one is refused in one line that names it."""

import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cogpo_jax.errors import UserError
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student import hf_folder as checks
from cogpo_jax.student import weights
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.hf_files import RemoteTensor, TensorEntry, read_header
from cogpo_jax.student.weights import from_hf, to_hf

MakeFolder = Callable[..., tuple[Any, Path]]
SHARD = "40KB"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(entry.array()) for name, entry in checks.find_tensors(folder).items()}


def assert_same_bytes(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "tied"), [("qwen2", True), ("qwen2", False), ("llama", False)])
def test_import_then_export_is_bit_equal(
    hf_folder: MakeFolder, tmp_path: Path, dtype: str, kind: str, tied: bool
) -> None:
    biases = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    _, folder = hf_folder(kind, shard=SHARD, tie_word_embeddings=tied, **biases)
    if dtype == "bfloat16":
        bfloat16_copy(folder)
    config, _, params = from_hf(folder)
    to_hf(config, params, tmp_path / "out", dtype, max_shard_bytes=50_000)
    assert (tmp_path / "out" / checks.INDEX).is_file()
    assert_same_bytes(tensors_of(folder), tensors_of(tmp_path / "out"))
    _, _, again = from_hf(tmp_path / "out")
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))


def bfloat16_copy(folder: Path) -> None:
    """Rewrites a folder's shards in bfloat16."""
    for file in folder.glob("*.safetensors"):
        save_file(
            {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(file).items()}, file, metadata={"format": "pt"}
        )


def test_an_export_from_a_mesh_is_the_same_folder(hf_folder: MakeFolder, tmp_path: Path) -> None:
    _, folder = hf_folder("qwen3", head_dim=16)
    config, _, params = from_hf(folder, make_mesh({"data": 1, "fsdp": 4, "tensor": 2}))
    to_hf(config, params, tmp_path / "out", "float32")
    assert_same_bytes(tensors_of(folder), tensors_of(tmp_path / "out"))


def test_each_device_holds_its_own_slice_only(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2")
    _, _, params = from_hf(folder, make_mesh({"fsdp": 4, "tensor": 2}))
    weight = params["layers"]["mlp"]["up_proj"]["weight"]
    assert weight.shape == (3, 80, 48)
    assert {s.data.shape for s in weight.addressable_shards} == {(3, 40, 12)}


def test_the_export_is_what_transformers_loads(hf_folder: MakeFolder, tmp_path: Path, qwen25_tokenizer: Path) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    model, folder = hf_folder("qwen2", vocab_size=151_680, hidden_size=16, eos_token_id=151_645, bos_token_id=151_643)
    config, _, params = from_hf(folder)
    to_hf(config, params, tmp_path / "out", "float32", qwen25_tokenizer)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1?"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    with torch.no_grad():
        tokens = torch.tensor([ids])
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.generation_config.eos_token_id == [151_645, 151_643]
    assert StudentConfig.from_hf(tmp_path / "out") == config


def test_a_tied_head_stored_twice_is_read_if_it_is_the_table(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2", tie_word_embeddings=True)
    rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
    config, _, params = from_hf(folder)
    assert config.tie_word_embeddings
    assert "lm_head" not in params
    rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    refused(folder, "lm_head.weight", "tie_word_embeddings")


# --- bad input ---------------------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], file: str = checks.SINGLE) -> None:
    tensors = {k: np.array(v) for k, v in load_file(folder / file).items()}
    save_file(change(tensors), folder / file, metadata={"format": "pt"})


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        from_hf(folder)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


NORM = "model.norm.weight"


def test_a_missing_shard_is_named(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2", shard=SHARD)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(folder, shard.name, "no such file")


def test_a_missing_tensor_is_named(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2")
    rewrite(folder, lambda t: {k: v for k, v in t.items() if k != NORM})
    refused(folder, NORM, "missing")


def test_an_extra_tensor_is_named(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2")
    rewrite(folder, lambda t: t | {"model.layers.0.self_attn.q_norm.weight": t[NORM]})
    refused(folder, "model.layers.0.self_attn.q_norm.weight", "not a tensor of this model")


def test_a_wrong_shape_is_named(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2")
    rewrite(folder, lambda t: t | {NORM: t[NORM][:-1]})
    refused(folder, NORM, "(47,)", "(48,)")


def test_a_wrong_dtype_is_named(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2")
    rewrite(folder, lambda t: t | {NORM: t[NORM].astype(np.int8)})
    refused(folder, NORM, "I8", "BF16")


@pytest.mark.parametrize("keep", [4, 60, -100])
def test_a_truncated_file_is_named(hf_folder: MakeFolder, keep: int) -> None:
    _, folder = hf_folder("qwen2")
    file = folder / checks.SINGLE
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, checks.SINGLE, "truncated")


def test_an_index_that_disagrees_is_named(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2", shard=SHARD)
    index = json.loads((folder / checks.INDEX).read_text())
    weight_map = index["weight_map"]
    elsewhere = next(file for file in weight_map.values() if file != weight_map[NORM])
    for change in ({NORM: elsewhere}, {"model.layers.9.mlp.up_proj.weight": elsewhere}):
        edit_json(folder / checks.INDEX, weight_map=weight_map | change)
        refused(folder, next(iter(change)), "index")
    edit_json(folder / checks.INDEX, weight_map=weight_map | {NORM: "../elsewhere.safetensors"})
    refused(folder, "../elsewhere.safetensors")


def test_a_folder_without_weights_is_named(tmp_path: Path, hf_folder: MakeFolder) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    _, folder = hf_folder("qwen2")
    (folder / checks.SINGLE).unlink()
    refused(folder, checks.SINGLE)


def test_a_tokenizer_of_another_model_is_refused(hf_folder: MakeFolder, tmp_path: Path, qwen25_tokenizer: Path) -> None:
    _, folder = hf_folder("qwen2", hidden_size=16, vocab_size=151_680, eos_token_id=151_645)
    config, _, params = from_hf(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((qwen25_tokenizer / file).read_bytes())
    from_hf(folder)
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    refused(folder, "<|endoftext|>", "151643", "151645")
    with pytest.raises(UserError, match="eos_token"):
        to_hf(config, params, tmp_path / "out", tokenizer_folder=folder)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(hf_folder: MakeFolder, qwen25_tokenizer: Path) -> None:
    _, folder = hf_folder("qwen2")
    (folder / "tokenizer.json").write_bytes((qwen25_tokenizer / "tokenizer.json").read_bytes())
    refused(folder, "151664", "vocab_size is 132")


def test_a_mesh_that_does_not_divide_the_heads_is_refused(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2", num_key_value_heads=1)
    with pytest.raises(UserError, match="num_key_value_heads"):
        from_hf(folder, make_mesh({"fsdp": 4, "tensor": 2}))


def test_an_export_never_replaces_a_folder_unasked(hf_folder: MakeFolder, tmp_path: Path) -> None:
    _, folder = hf_folder("qwen2")
    config, _, params = from_hf(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        to_hf(config, params, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    to_hf(config, params, tmp_path / "out", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", checks.SINGLE,
    ]  # fmt: skip


def test_a_full_disk_leaves_nothing_under_the_name(hf_folder: MakeFolder, tmp_path: Path) -> None:
    _, folder = hf_folder("qwen2")
    config, _, params = from_hf(folder)
    out = tmp_path / "place" / "out"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a file may not grow past this: write() fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(UserError, match="nothing is left"):
            to_hf(config, params, out, "float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(out.parent.iterdir())


def test_a_disk_without_room_is_refused_before_writing(
    hf_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = hf_folder("qwen2")
    config, _, params = from_hf(folder)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("cogpo_jax.student.weights.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="GB free"):
        to_hf(config, params, tmp_path / "place" / "out")
    assert not list((tmp_path / "place").iterdir())


def test_every_byte_of_a_bucket_is_downloaded_once(hf_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = hf_folder("qwen2")
    expected, tensors = from_hf(folder)[2], checks.find_tensors(folder)
    downloaded, read = [], RemoteTensor.__getitem__

    def counted(self: RemoteTensor, index: Any) -> np.ndarray:
        entry, data = self._entry, read(self, index)
        first, stop, _ = (index if isinstance(index, tuple) else (index,))[0].indices(entry.shape[0])
        downloaded.append((stop - first) * (entry.end - entry.start) // entry.shape[0])  # whole rows
        return data

    monkeypatch.setattr(RemoteTensor, "__getitem__", counted)
    monkeypatch.setattr(TensorEntry, "array", lambda entry: RemoteTensor(entry))  # as for a path with ://
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    params = from_hf(folder, mesh)[2]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(a, b)
    assert params["layers"]["mlp"]["up_proj"]["weight"].sharding.spec == jax.P(None, "tensor", "fsdp")
    size = sum(entry.end - entry.start for entry in tensors.values())
    assert size <= sum(downloaded) < 1.1 * size  # what no device count divides is small


def test_a_bucket_keeps_no_weights_of_an_earlier_export(
    hf_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = hf_folder("qwen2")
    config, _, params = from_hf(folder)
    monkeypatch.setattr(weights.epath, "Path", lambda path: tmp_path / str(path).removeprefix("gs://"))
    to_hf(config, params, "gs://bucket/out", "float32", max_shard_bytes=50_000)
    to_hf(config, params, "gs://bucket/out", "float32", overwrite=True)
    files = {p.name for p in (tmp_path / "bucket" / "out").iterdir()}
    assert files == {"config.json", "generation_config.json", checks.SINGLE}


def test_a_single_file_counts_before_an_old_index(hf_folder: MakeFolder, tmp_path: Path) -> None:
    _, folder = hf_folder("qwen2", shard=SHARD)
    config, _, params = from_hf(folder)
    new = jax.tree.map(lambda x: np.asarray(x) + 1, params)
    to_hf(config, new, tmp_path / "new", "float32")
    (folder / checks.SINGLE).write_bytes((tmp_path / "new" / checks.SINGLE).read_bytes())
    _, _, read = from_hf(folder)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(new), strict=True))


def test_a_git_lfs_pointer_says_how_to_fetch_the_file(hf_folder: MakeFolder) -> None:
    _, folder = hf_folder("qwen2", shard=SHARD)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name in (sorted(folder.glob("model-*.safetensors"))[0].name, checks.INDEX, "config.json"):
        (folder / name).write_bytes(pointer)
        refused(folder, name, "git lfs pull")


def test_an_adapter_or_a_hub_name_says_what_to_do(hf_folder: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "adapter", "merge it first")
    _, folder = hf_folder("qwen2")
    (folder / "adapter_config.json").write_text("{}")
    from_hf(folder)
    (folder / checks.SINGLE).unlink()
    refused(folder, "merge it first")
    with pytest.raises(UserError, match=r"hf download Qwen/Qwen2\.5-0\.5B-Instruct"):
        from_hf("Qwen/Qwen2.5-0.5B-Instruct")


def test_an_end_of_text_in_config_json_alone_ends_a_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, 9]}')
    assert checks.stop_token_ids(tmp_path) == [7, 9]
    (tmp_path / "generation_config.json").write_text("{}")
    assert checks.stop_token_ids(tmp_path) == [7, 9]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert checks.stop_token_ids(tmp_path) == [3]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(UserError, match="eos_token_id"):
        checks.stop_token_ids(tmp_path)


def test_an_export_from_read_only_files_can_be_changed(
    hf_folder: MakeFolder, tmp_path: Path, qwen25_tokenizer: Path
) -> None:
    _, folder = hf_folder("qwen2", hidden_size=16, vocab_size=151_680, eos_token_id=151_645)
    config, _, params = from_hf(folder)
    (tmp_path / "t").mkdir()
    for file in qwen25_tokenizer.iterdir():
        (tmp_path / "t" / file.name).write_bytes(file.read_bytes())
        (tmp_path / "t" / file.name).chmod(0o444)
    to_hf(config, params, tmp_path / "out", "float32", tmp_path / "t")
    assert all(file.stat().st_mode & 0o200 for file in (tmp_path / "out").iterdir())


def test_a_bucket_gets_its_config_last(hf_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = hf_folder("qwen2")
    config, _, params = from_hf(folder)
    monkeypatch.setattr(weights.epath, "Path", lambda path: tmp_path / str(path).removeprefix("gs://"))
    written = []
    monkeypatch.setattr(weights.shutil, "copyfileobj", lambda source, target, _: written.append(Path(target.name).name))
    to_hf(config, params, "gs://bucket/out", "float32")
    assert sorted(written) == sorted(p.name for p in (tmp_path / "bucket" / "out").iterdir())
    assert written[-1] == "config.json"
    with pytest.raises(UserError, match="not empty"):
        to_hf(config, params, "gs://bucket/out", "float32")


def test_a_header_is_read_as_safetensors_writes_it(tmp_path: Path) -> None:
    save_file({"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(3, np.float16)}, tmp_path / "x")
    entries = read_header(tmp_path / "x")
    assert {k: (e.dtype, e.shape) for k, e in entries.items()} == {"a": ("F16", (3,)), "b": ("F32", (2, 3))}
    assert np.array_equal(entries["b"].array(), [[0, 1, 2], [3, 4, 5]])
