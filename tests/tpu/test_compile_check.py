"""launch/compile_check.py's bad input, and its programs and verdicts without the TPU compiler."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.errors import JaxRuntimeError

from cogpo_jax.configs import cogpo_tpu
from cogpo_jax.errors import UserError
from cogpo_jax.sharding import make_mesh
from cogpo_jax.tpu import check, programs, topology
from cogpo_jax.training.log import Flops

ROOT = Path(__file__).parents[2]


def shipped(size):
    return cogpo_tpu.get_config(size)


@pytest.fixture
def config():
    made = shipped("0.5b")
    made.model = "configs/models/tiny.json"
    made.rows.length = 256
    made.attention = "xla"  # lowers here; the TPU's kernel would not
    return made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v5p:3x3x3"], "no such topology; known are v5e:{1x1,2x2,"),
        (["--topology=v5litepod-16"], "no such topology"),
        ([], "--topology: missing"),
        (["--topology=v5e:4x4", "--num_slices=0"], "--num_slices: 0"),
        (["--topology=v5e:4x4", "--programs=apply,sample"], "--programs: sample: known are micro-step"),
        (["--config=configs/cogpo_tpu.py:8b"], "configs/cogpo_tpu.py:8b: no such size; known are 0.5b,"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, words):
    command = [sys.executable, "launch/compile_check.py", "--config=configs/cogpo_tpu.py:0.5b", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_programs_are_those_of_a_run_and_say_what_is_resident(config):
    mesh = make_mesh({"fsdp": -1}, jax.devices())
    found = {p.name: p for p in programs.programs(config, mesh)}
    assert list(found) == ["micro-step", "apply", "reference"]
    weights = 1_300_000
    assert found["micro-step"].tokens == 8 * 256
    moments = programs.device_bytes(found["micro-step"].beside)
    assert 8 * weights / 8 * 0.8 < moments < 8 * weights / 8 * 1.3  # two float32 moments, split over 8
    for program in found.values():
        program.function.lower(*program.arguments)
    config.objective = "sft"
    assert [p.name for p in programs.programs(config, mesh)] == ["micro-step", "apply"]


def test_a_live_reference_is_resident(config):
    mesh = make_mesh({"fsdp": -1}, jax.devices())
    cached = programs.programs(config, mesh)[0]
    config.reference = "live"
    live = programs.programs(config, mesh)[0]
    params = programs.device_bytes(cached.arguments[0])
    assert programs.device_bytes(live.beside) - programs.device_bytes(cached.beside) == params


def test_a_mesh_that_does_not_divide_the_student_is_refused(config):
    with pytest.raises(UserError, match=r"mesh.tensor: 8: .*num_attention_heads \(4\)"):
        programs.programs(config, make_mesh({"tensor": 8}, jax.devices()))


def test_a_row_length_that_the_kernel_cannot_tile_is_refused(config):
    config.rows.length, config.attention = 1000, "splash"
    with pytest.raises(UserError, match=r"rows.length: 1000: .*multiple of 128"):
        programs.programs(config, make_mesh({"fsdp": -1}, jax.devices()))


def test_flops_stand_by_part_in_json_and_whole_in_the_table(config):
    flops = Flops(layers=30, attention=12, head=10)
    step = check.Compiled("micro-step", 1.0, 0.0, 1.0, 2, flops, (), True)
    apply = check.Compiled("apply", 1.0, 0.0, 1.0, 0, Flops(), (), True)
    result = check.Check(topology.find("v5e:4x4"), {"fsdp": 16}, (step, apply), ())
    first, second = check.to_json(result, config)["programs"]
    assert first["flops_per_token"] == {"layers": 15, "attention": 6, "head": 5}
    assert second["flops_per_token"] == {}
    lines = check.table(result).splitlines()
    assert lines[2].split()[4:] == ["GFLOP/token", "compile"]
    assert lines[4].split()[-3] == "-"


def verdict(peak, beside, config, **fields):
    for name, value in fields.items():
        config[name] = value
    v5e = topology.find("v5e:4x4")
    program = check.Compiled("micro-step", peak, beside, 1.0, 100, Flops(1, 1, 1), (), True)
    mesh = make_mesh({"fsdp": -1}, jax.devices())
    over = peak + beside - v5e.chip.hbm
    student = dataclasses.replace(programs.student_of(config), num_key_value_heads=4)
    advice = check._advice(config, student, mesh, over) if over > 0 else ()
    return check.Check(v5e, dict(mesh.shape), (program,), advice)


def test_what_is_resident_counts_and_the_excess_and_knobs_are_named(config):
    gib = topology.GIB
    assert verdict(15 * gib, 0.5 * gib, config).fits
    config.rows.per_device = 2
    over = verdict(15 * gib, 2 * gib, config, reference="live", remat="dots")
    assert not over.fits
    text = check.table(over)
    assert "DOES NOT FIT: over by 1.25 GiB a chip" in text
    for knob in ("remat=full", "rows.per_device=1", "mesh.tensor=2", "reference=cached", "a larger slice"):
        assert knob in text


def test_the_compilers_refusal_is_read_for_what_it_asked():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (214.69G) "
        "exceeds available HBM (15.75G)."
    )
    assert check._asked_for(JaxRuntimeError(message)) == 214.69 * topology.GIB
    other = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G."
    assert check._asked_for(JaxRuntimeError(other)) == 17.5 * topology.GIB
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        check._asked_for(JaxRuntimeError("INTERNAL: Mosaic failed to compile"))


def test_a_kernel_that_outgrows_a_memory_of_the_chip_does_not_fit():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space smem. Used 2.00M of 1.00M smem. Exceeded by 1.00M."
    refused = check._on_chip(JaxRuntimeError(message))
    assert refused == "needs 2.00M of a chip's 1.00M of smem"
    assert not check._on_chip(JaxRuntimeError(message.replace("smem", "hbm")))
    program = check.Compiled("reference", 0.0, 0.0, 1.0, 2, Flops(1, 1, 1), (), False, refused)
    result = check.Check(topology.find("v5e:4x4"), {"fsdp": 16}, (program,), (refused,))
    assert result.over < 0
    assert not result.fits
    assert f"DOES NOT FIT: {refused}" in check.table(result)
