"""The mesh and the one table of logical axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cogpo_jax import sharding
from cogpo_jax.errors import UserError


class FakeDevice:
    """A device of a given slice: what `make_mesh` looks at."""

    platform = "cpu"

    def __init__(self, index, slice_index):
        self.id, self.slice_index, self.process_index = index, slice_index, slice_index
        self.device_kind = "fake"


def test_one_device_is_a_1x1x1x1_mesh():
    mesh = sharding.make_mesh({"replica": 1, "data": 1, "fsdp": -1, "tensor": 1}, jax.devices()[:1])
    assert mesh.shape == {"replica": 1, "data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3}, "needs 3 devices and there are 1"),
        ({"fsdp": -1, "tensor": 2}, "2 does not divide the 1 devices"),
        ({"fsdp": -1, "tensor": -1}, "only one axis may be -1"),
        ({"fsdp": 0}, "mesh.fsdp: 0"),
        ({"model": 2}, "mesh.model: no such mesh axis"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, words):
    with pytest.raises(UserError, match=words):
        sharding.make_mesh(sizes, jax.devices()[:1])


def test_replica_must_follow_the_slices():
    devices = [FakeDevice(i, i // 4) for i in range(8)]
    with pytest.raises(UserError, match="replica must be a multiple of 2"):
        sharding.make_mesh({"replica": 1, "fsdp": 8}, devices)


def test_a_mesh_that_does_not_divide_the_student_names_the_field():
    class Config:
        num_attention_heads, num_key_value_heads, intermediate_size, vocab_size, hidden_size = 12, 2, 64, 128, 96

    mesh = jax.sharding.AbstractMesh((1, 1, 1, 4), sharding.MESH_AXES)
    with pytest.raises(UserError, match=r"mesh.tensor: 4: .*num_key_value_heads \(2\); these do: 1, 2"):
        sharding.check_divides(mesh, Config)


def test_parameters_and_their_moments_share_one_table():
    mesh = jax.sharding.AbstractMesh((1, 2, 2, 2), sharding.MESH_AXES)
    table = {"mlp.up_proj.weight": ("layers", "mlp", "embed")}
    leaf = jax.ShapeDtypeStruct((3, 8, 4), jnp.float32)
    tree = {"mlp": {"up_proj": {"weight": leaf}}}
    state = {"mu": tree, "count": jax.ShapeDtypeStruct((), jnp.int32)}
    placed = sharding.param_shardings(mesh, state, table)
    assert placed["mu"]["mlp"]["up_proj"]["weight"].spec == P(None, "tensor", "fsdp")
    assert placed["count"].spec == P()
    with pytest.raises(KeyError, match=r"mu.other"):
        sharding.param_shardings(mesh, {"mu": {"other": leaf}}, table)


def test_describe_counts_the_bytes_of_one_device():
    x = jax.device_put(jnp.zeros((4, 8), jnp.float32), sharding.replicated(sharding.make_mesh({}, jax.devices()[:1])))
    assert sharding.describe({"x": x}).splitlines()[-1].split() == ["all", "128", "B", "128", "B"]


def test_gradients_stay_in_their_replica_until_someone_sums_them():
    mesh = sharding.make_mesh({"replica": 2, "fsdp": 4})
    w, x = jnp.arange(32.0).reshape(8, 4), jnp.linspace(-1, 1, 64).reshape(8, 8)

    def gradient(w, x, _):
        def loss(w):
            matmul = sharding.shard(lambda x, w: x @ w, mesh, (sharding.spec("rows"), P()), sharding.spec("rows"))
            return (sharding.constrain(matmul(x, w), mesh, "rows", None) ** 2).sum()

        return jax.grad(loss)(w)

    run = jax.jit(sharding.per_replica(gradient, mesh))
    x = jax.device_put(x, sharding.row_sharding(mesh))
    w = jax.device_put(w, sharding.sharding(mesh, "embed", None))
    apart = run(w, x, None)
    assert apart.shape == (2, 8, 4)
    whole = jax.grad(lambda w: ((x @ w) ** 2).sum())(w)
    np.testing.assert_allclose(apart.sum(0), whole, rtol=1e-5)
    assert abs(apart[0] - whole).max() > 1


def test_a_loss_of_all_replicas_gives_each_the_gradient_through_its_own_rows():
    mesh = sharding.make_mesh({"replica": 2, "fsdp": 4})
    w, x = jnp.float32(3), jnp.arange(8.0)

    def gradient(w, x, scale):
        return jax.value_and_grad(lambda w: sharding.sum_over_replicas((w * x).sum()) ** 2 * scale)(w)

    value, grad = jax.jit(sharding.per_replica(gradient, mesh))(w, x, jnp.float32(0.5))
    np.testing.assert_allclose(value, [84.0**2 / 2] * 2)
    np.testing.assert_allclose(grad, [84.0 * 6, 84.0 * 22])
