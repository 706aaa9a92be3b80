"""Checkpoints come back bit-equal on any mesh; damage is named, and the last good one used."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogpo_jax.errors import RunError, UserError
from cogpo_jax.sharding import make_mesh, param_shardings
from cogpo_jax.training.checkpoint import Checkpoints, array_checksums, tree_digest, with_shardings

META = {"objective": "cogpo", "param_dtype": "float32"}


def on(sizes, devices=None, width=16):
    """Abstract {params, opt_state} on a mesh; the optimizer's state is like another set of parameters."""
    mesh = make_mesh(sizes, devices)
    params = {
        "embed_tokens": {"weight": jax.ShapeDtypeStruct((64, width), jnp.float32)},
        "norm": {"weight": jax.ShapeDtypeStruct((width,), jnp.float32)},
    }
    tree = with_shardings(params, param_shardings(mesh, params))
    return {"params": tree, "opt_state": {"mu": tree, "count": jax.ShapeDtypeStruct((), jnp.int32)}}


def state(seed, sizes, devices=None):
    """(params, opt_state) on a mesh."""
    rng = np.random.default_rng(seed)
    make = lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding)  # noqa: E731
    mu, params = (jax.tree.map(make, on(sizes, devices)["params"]) for _ in range(2))
    return params, {"mu": mu, "count": jnp.int32(seed)}


ONE = {"sizes": {}, "devices": jax.devices()[:1]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, *state(step, **ONE), META)
    checkpoints.close()
    return workdir


@pytest.fixture
def saved(original, tmp_path):
    """A workdir with checkpoints of steps 1, 2 and 3 from one device."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def assert_is_step(items, step):
    jax.tree.map(np.testing.assert_array_equal, (items["params"], items["opt_state"]), state(step, **ONE))


def flip(path, byte, bit=3):
    data = bytearray(path.read_bytes())
    data[byte % len(data)] ^= 1 << bit
    path.write_bytes(data)


def arrays_file(workdir, step, item):
    """The file that holds most of an item's bytes."""
    return max((workdir / "checkpoints" / str(step) / item / "d").iterdir(), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}], ids=str)
def test_what_one_mesh_saved_another_restores_bit_equal(saved, sizes):
    checkpoints = Checkpoints(saved)
    step, items, meta = checkpoints.restore(on(sizes))
    assert step == 3
    assert meta["objective"] == "cogpo"
    assert items["params"]["embed_tokens"]["weight"].sharding.mesh.shape["fsdp"] == sizes["fsdp"]
    assert_is_step(items, 3)
    checkpoints.save(4, items["params"], items["opt_state"], META)
    checkpoints.close()
    assert_is_step(Checkpoints(saved).restore(on(**ONE))[1], 3)


@pytest.mark.parametrize("item", ["params", "opt_state", "meta"])
@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_used(saved, item, where):
    path = saved / "checkpoints" / "3" / "meta" / "metadata" if item == "meta" else arrays_file(saved, 3, item)
    flip(path, int(where * path.stat().st_size))
    said = []
    checkpoints = Checkpoints(saved, say=said.append)
    step, items, _ = checkpoints.restore(on(**ONE))
    assert step == 2
    assert_is_step(items, 2)
    assert "step 3" in said[0]
    assert item in said[0] or "metadata" in said[0]
    assert said[1] == "checkpoint of step 2 is used instead"


def test_the_flipped_array_is_named(saved, monkeypatch):
    checkpoints = Checkpoints(saved, say=(said := []).append)

    def restore(step, args, original=checkpoints._manager.restore):
        restored = original(step, args=args)
        if step == 3 and "params" in restored:
            weight = np.array(restored["params"]["norm"]["weight"])
            weight.view(np.uint32)[5] ^= 1
            restored["params"]["norm"]["weight"] = jnp.asarray(weight)
        return restored

    monkeypatch.setattr(checkpoints._manager, "restore", restore)
    assert checkpoints.restore(on(**ONE))[0] == 2
    assert "params: norm.weight: checksum differs" in said[0]


def test_a_damaged_step_can_be_written_again(saved):
    path = arrays_file(saved, 3, "params")
    flip(path, path.stat().st_size // 2)
    checkpoints = Checkpoints(saved, keep=3, say=lambda line: None)
    assert checkpoints.restore(on(**ONE))[0] == 2
    checkpoints.save(3, *state(3, **ONE), META)
    checkpoints.close()
    assert (saved / "damaged_checkpoints" / "3").is_dir()
    assert_is_step(Checkpoints(saved).restore(on(**ONE))[1], 3)


@pytest.mark.parametrize("missing", ["params", "params/d", "opt_state/manifest.ocdbt", "meta/metadata"])
def test_a_checkpoint_with_something_missing_is_not_used(saved, missing):
    (saved / "checkpoints" / "3" / missing).rename(saved / "gone")
    checkpoints = Checkpoints(saved, say=lambda line: None)
    step, items, _ = checkpoints.restore(on(**ONE))
    assert step == 2
    assert_is_step(items, 2)
    checkpoints.save(3, *state(3, **ONE), META)
    checkpoints.close()
    assert Checkpoints(saved).restore(on(**ONE))[0] == 3


def test_what_a_killed_process_was_writing_is_removed(saved):
    half = saved / "checkpoints" / "3.orbax-checkpoint-tmp"  # the name it has until it is whole
    (saved / "checkpoints" / "3").rename(half)
    checkpoints = Checkpoints(saved)
    assert checkpoints.steps() == [1, 2]
    checkpoints.save(3, *state(3, **ONE), META)
    checkpoints.close()
    assert not half.exists()
    assert Checkpoints(saved).restore(on(**ONE))[0] == 3


def test_nothing_left_is_an_error_that_names_each(saved):
    for step in (1, 2, 3):
        path = arrays_file(saved, step, "params")
        flip(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"none can be restored \(step 3: .*; step 2: .*; step 1: .*\)"):
        Checkpoints(saved, say=lambda line: None).restore(on(**ONE))
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_a_checkpoint_of_another_model_is_refused(saved):
    with pytest.raises(UserError, match="none can be restored"):
        Checkpoints(saved, say=lambda line: None).restore(on(**ONE, width=32))


def test_a_step_that_orbax_would_pass_over_is_an_error(saved):
    with pytest.raises(RunError, match="checkpoint 2: not written"):
        Checkpoints(saved).save(2, *state(2, **ONE), META)


def test_the_oldest_checkpoints_are_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, *state(1, **ONE), META)
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [20, 30]


def test_checksums_see_every_bit_and_swap_and_no_mesh():
    x = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    base = array_checksums({"x": x})
    bits = np.asarray(x).view(np.uint32)
    for bit in (0, 13, 31):
        for index in ((0, 0), (3, 5)):
            flipped = bits.copy()
            flipped[index] ^= np.uint32(1 << bit)
            assert array_checksums({"x": jnp.asarray(flipped.view(np.float32))}) != base
    assert array_checksums({"x": x[::-1]}) != base
    assert array_checksums({"x": x.T.reshape(4, 6)}) != base
    assert array_checksums({"x": x.astype(jnp.bfloat16)}) != base
    spread = jax.device_put(x, jax.sharding.NamedSharding(make_mesh({"fsdp": 2, "data": 4}), jax.P("data", "fsdp")))
    assert array_checksums({"x": spread}) == base
    assert tree_digest({"x": spread}) == tree_digest({"x": x})
