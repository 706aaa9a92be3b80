"""Step 0 of CogPO: the loss is ln 2 and every margin exactly 0, for any reference mode, student and remat policy."""

import math

import pytest


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize(
    ("student", "remat", "per_device"),
    [("qwen2", "none", 4), ("qwen2", "full", 16), ("qwen3", "none", 4)],
)
def test_step_zero_has_loss_ln_2_and_margins_of_exactly_zero(
    tmp_path, run, models, student, remat, per_device, reference
):
    _, metrics = run(
        tmp_path,
        model=models[student],
        remat=remat,
        reference=reference,
        max_steps=1,
        **{"rows.per_device": per_device, "beta.small": 0.07, "beta.large": 1.7},
    )
    first = metrics[0]
    assert (first["micro_batches"] == 1) == (per_device == 16)
    assert abs(first["loss"] - math.log(2)) < 1e-6
    assert first["pairs"] == 18
    for name in ("margin", "chosen_logratio", "rejected_logratio", "kl"):
        assert set(first[name]) == {"small", "medium", "large", "all"}
        assert all(value == 0 for value in first[name].values()), first[name]
