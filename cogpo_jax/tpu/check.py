"""Whether a config fits a TPU slice, by the real compiler: memory, FLOPs, traffic, compile time of its programs."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

from jax.errors import JaxRuntimeError
from jax.sharding import Mesh
from ml_collections import config_dict

from cogpo_jax.sharding import make_mesh
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.tpu.collectives import Collective, collectives
from cogpo_jax.tpu.programs import Program, device_bytes, programs, student_of
from cogpo_jax.tpu.topology import GIB, Topology
from cogpo_jax.training.log import Flops, model_flops

_OVER = re.compile(r"(?:Used|temporaries \()\s*([\d.]+)([KMGT]).*?(?:of|HBM \()\s*([\d.]+)([KMGT])", re.DOTALL)
_ON_CHIP = re.compile(r"memory space (?!hbm)(\w+)\. Used ([\d.]+[KMGT]) of ([\d.]+[KMGT])")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program, per chip; sizes in bytes."""

    name: str
    peak: float  # arguments, results and temporaries at the worst moment; what it asked for where it does not fit
    beside: float  # stays in memory while the program runs, untouched
    compile_seconds: float
    tokens: int  # row tokens of a call, all chips together
    flops: Flops  # of a call, all chips together, recomputation included; by formula (tests count them in the jaxpr)
    exchanges: tuple[Collective, ...]
    compiled: bool
    refused: str = ""  # a kernel that needs more of the chip's own memories than there is; peak is then unknown, 0

    @property
    def needed(self) -> float:
        """HBM that must be there while the program runs."""
        return self.peak + self.beside


@dataclasses.dataclass(frozen=True)
class Check:
    """A config on a topology: its programs, and advice where they do not fit."""

    topology: Topology
    mesh: dict[str, int]
    programs: tuple[Compiled, ...]
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Every program compiled and leaves room for what is resident beside it."""
        return self.over <= 0 and not any(p.refused for p in self.programs)

    @property
    def over(self) -> float:
        """Bytes by which the worst program exceeds a chip's HBM; negative: bytes left."""
        return max(p.needed for p in self.programs) - self.topology.chip.hbm


def check(
    config: config_dict.ConfigDict,
    topology: Topology,
    names: Sequence[str] = ("micro-step", "apply", "reference"),
    say: Any = lambda line: None,
) -> Check:
    """Compiles a run's programs of these names for the topology; UserError where the config cannot run there at all."""
    mesh = make_mesh(config.mesh.to_dict(), topology.devices())
    student, found = student_of(config), []
    for program in (p for p in programs(config, mesh) if p.name in names):
        say(f"compiling {program.name} for {topology.num_slices} x {topology.name} ...")
        found.append(_compile(program, config, student, topology, mesh))
    over = max(p.needed for p in found) - topology.chip.hbm
    advice = _advice(config, student, mesh, over) if over > 0 else ()
    advice += tuple(f"{p.name}: {p.refused}: shorter rows.length" for p in found if p.refused)
    return Check(topology, dict(mesh.shape), tuple(found), advice)


def _compile(
    program: Program, config: config_dict.ConfigDict, student: StudentConfig, topology: Topology, mesh: Mesh
) -> Compiled:
    lowered = program.function.lower(*program.arguments)
    start = time.monotonic()
    exchanges: tuple[Collective, ...]
    refused = ""
    try:
        executable = lowered.compile()
    except JaxRuntimeError as error:
        refused, exchanges, compiled = _on_chip(error), (), False
        peak = 0.0 if refused else _asked_for(error)
    else:
        memory = executable.memory_analysis()
        peak, compiled = memory.peak_memory_in_bytes, True
        slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
        exchanges = tuple(collectives(executable.as_text(), slices))
    seconds = time.monotonic() - start
    flops = _flops(program, config, student)
    beside = device_bytes(program.beside)
    return Compiled(program.name, peak, beside, seconds, program.tokens, flops, exchanges, compiled, refused)


def _on_chip(error: JaxRuntimeError) -> str:
    """What the compiler says of a kernel's scalar or vector memory; empty where the error is about something else."""
    found = _ON_CHIP.search(str(error))
    return f"needs {found[2]} of a chip's {found[3]} of {found[1]}" if found else ""


def _asked_for(error: JaxRuntimeError) -> float:
    found = _OVER.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not found:
        raise error
    return float(found[1]) * _UNITS[found[2]]


def _flops(program: Program, config: config_dict.ConfigDict, student: StudentConfig) -> Flops:
    """For rows that each hold one segment whose tokens all count: the most there can be."""
    if not program.tokens:
        return Flops()
    length = config.rows.length
    return model_flops(
        student,
        [length] * (program.tokens // length),
        program.tokens,
        backward=program.name == "micro-step",
        remat="dots" if config.remat == "none" else config.remat,  # what the algorithm recomputes anyway is counted
    )


def _advice(config: config_dict.ConfigDict, student: StudentConfig, mesh: Mesh, over: float) -> tuple[str, ...]:
    """Knobs that would free at least part of the excess, each with its estimate."""
    tokens = config.rows.per_device * config.rows.length
    inputs = student.num_hidden_layers * tokens * student.hidden_size * 2.0
    knobs = []
    if config.remat in ("none", "dots"):
        knobs.append("remat=full: keeps only each layer's input")
    if config.rows.per_device > 1:
        knobs.append(
            f"rows.per_device={config.rows.per_device // 2}: halves the activations "
            f"(the kept layer inputs alone are {_gib(inputs)})"
        )
    elif config.rows.length > 2048:
        knobs.append(
            f"rows.length={config.rows.length // 2}: halves the activations (the kept layer inputs alone are "
            f"{_gib(inputs)}); longer responses are then dropped"
        )
    if config.remat == "full":
        knobs.append(f"remat=offload: moves {_gib(inputs)} of layer inputs to the host's memory")
    wider = mesh.shape["tensor"] * 2
    if student.num_key_value_heads % wider == 0 and student.vocab_size % wider == 0:
        knobs.append(f"mesh.tensor={wider}: splits a row's heads, MLP and vocabulary over {wider} chips")
    if config.reference == "live":
        knobs.append("reference=cached: the reference leaves memory")
    if mesh.shape["data"] > 1 or mesh.shape["replica"] > 1:
        knobs.append("mesh.fsdp: more of it, in place of mesh.data, splits the parameters and their Adam moments")
    knobs.append(
        f"a larger slice: parameters, gradients and moments are split over mesh.fsdp={mesh.shape['fsdp']} chips"
    )
    return (f"over by {_gib(over)} a chip", *knobs)


def to_json(result: Check, config: config_dict.ConfigDict) -> dict[str, Any]:
    """Everything the table shows, and more, as plain data; sizes in bytes per chip."""
    return {
        "topology": result.topology.name,
        "num_slices": result.topology.num_slices,
        "mesh": result.mesh,
        "model": config.init_from or config.model,
        "rows": {"length": config.rows.length, "per_device": config.rows.per_device},
        "remat": config.remat,
        "hbm": result.topology.chip.hbm,
        "fits": result.fits,
        "over": result.over,
        "advice": list(result.advice),
        "programs": [_program_json(p) for p in result.programs],
    }


def _program_json(p: Compiled) -> dict[str, Any]:
    return {
        "name": p.name,
        "compiled": p.compiled,
        "refused": p.refused,
        "peak": p.peak,
        "beside": p.beside,
        "compile_seconds": round(p.compile_seconds, 1),
        "tokens": p.tokens,
        "flops_per_token": {k: v / p.tokens for k, v in dataclasses.asdict(p.flops).items()} if p.tokens else {},
        "collectives": [dataclasses.asdict(c) for c in p.exchanges],
    }


def table(result: Check) -> str:
    """The check for a person: one line a program, its exchanges below, the verdict last."""
    hbm = result.topology.chip.hbm
    mesh = " x ".join(f"{axis}={n}" for axis, n in result.mesh.items() if n > 1) or "one chip"
    lines = [
        f"{result.topology.num_slices} x {result.topology.name} ({mesh}), {_gib(hbm)} of HBM a chip",
        "",
        f"{'program':<12}{'peak':>11}{'beside':>11}{'left':>11}{'GFLOP/token':>13}{'compile':>10}",
    ]
    for p in result.programs:
        rate = f"{p.flops.total / p.tokens / 1e9:.2f}" if p.tokens else "-"
        left = _gib(hbm - p.needed)
        cells = f"{_gib(p.peak):>11}{_gib(p.beside):>11}{left:>11}{rate:>13}"
        lines.append(f"{p.name:<12}{cells}{p.compile_seconds:>8.0f} s")
    for p in result.programs:
        sent = [f"{c.kind} {_mb(c.bytes)} ({c.network}, {c.count}x)" for c in p.exchanges if c.bytes >= 1e3]
        lines.append(f"{p.name}: a chip sends {', '.join(sent) or 'nothing'}")
    lines += ["", "fits" if result.fits else "DOES NOT FIT: " + "; ".join(result.advice)]
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
