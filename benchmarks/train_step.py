"""Times training steps of a config: one JSON line, on whatever platform jax finds.

    python benchmarks/train_step.py                                # the shipped GSM8K triangles, a tiny student
    python benchmarks/train_step.py --config=configs/cogpo_tpu.py:1.5b --config.data=DATA --config.init_from=HF
    python benchmarks/train_step.py --synthetic=64:1200            # 64 groups of random words, about 1,200 tokens each

Takes any training config. Without `data` the records are benchmarks/data/gsm8k_pairs.jsonl.xz (64 triangles), or
with --synthetic random ones; without `tokenizer` and `init_from` the tokenizer is Qwen2.5's, and without `init_from`
too the weights are random. Every program runs once before the clock starts: what that took is `compile_seconds`, XLA's
share of it `xla_seconds` (next to nothing where `compile_cache.dir` has the programs). Timed is what training costs:
the reference pass over the responses of the timed steps (objective cogpo and dpo, reference=cached; live runs it inside
the steps), then the steps, AdamW included.

`pairs_per_second` and `tokens_per_second` are over reference pass and steps; cpu_seconds is the process's (user and
system), of use on a shared machine; model_flops by formula (training/log.py: causal attention per segment, the head
for counted tokens, no recomputation), of the steps alone.
"""

import dataclasses
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shipped
from absl import flags
from ml_collections import config_dict

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.records.convert import ConvertOptions, convert_pairs

CONFIG = cli.define_config(str(shipped.ROOT / "configs" / "tiny_cpu.py"))
STEPS = flags.DEFINE_integer("steps", 0, "Timed optimizer steps; 0: one epoch.")
SYNTHETIC = flags.DEFINE_string("synthetic", "", "GROUPS:TOKENS, instead of real records.")
KEEP_NOTHING = flags.DEFINE_bool("keep_nothing", False, "Freed memory goes back to the system, unlike in training.")
LARGEST = flags.DEFINE_integer("largest_ops", 0, "How many of the largest device operations of a step to name.")
PEAK = flags.DEFINE_float("peak_tflops", 0.0, "The device's peak, for `mfu`; 0: left out.")


def synthetic_pairs(groups: int, tokens: int) -> Iterator[dict[str, str]]:
    """Triangles of random words, one token each; lengths spread as real ones do (log-normal, sigma 0.8)."""
    rng = random.Random(0)
    words = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not")
    for group in range(groups):
        texts = [
            " ".join(rng.choices(words, k=max(8, round(rng.lognormvariate(0, 0.8) * tokens * 0.72)))) for _ in range(3)
        ]
        for chosen, rejected, gap in ((0, 1, "small"), (1, 2, "medium"), (0, 2, "large")):
            yield {"prompt": f"Question {group}", "chosen": texts[chosen], "rejected": texts[rejected], "gap": gap}


def complete(config: config_dict.ConfigDict, folder: Path, synthetic: str = "") -> None:
    """Fills in the records and the tokenizer where the config names none."""
    if not config.data:
        pairs = folder / "pairs.jsonl"
        if synthetic:
            try:
                groups, tokens = (int(part) for part in synthetic.split(":"))
            except ValueError:
                raise UserError(f"--synthetic: {synthetic}: must be GROUPS:TOKENS, as 64:1200") from None
            pairs.write_text("".join(json.dumps(row) + "\n" for row in synthetic_pairs(groups, tokens)))
        else:
            shipped.unpack(shipped.PAIRS, pairs)
        config.data = str(folder / "records")
        convert_pairs(str(pairs), config.data, ConvertOptions())
    if not config.tokenizer and not config.init_from:
        config.tokenizer = str(shipped.unpack(shipped.TOKENIZER, folder / "tokenizer"))
        if config.model.endswith("configs/models/tiny.json"):  # its vocabulary is smaller than the tokenizer's
            model = json.loads((shipped.ROOT / "configs" / "models" / "tiny.json").read_text()) | {"vocab_size": 151936}
            (folder / "model.json").write_text(json.dumps(model))
            config.model = str(folder / "model.json")


def largest_ops(folder: Path, count: int) -> list[tuple[str, float]]:
    """(name, share of the device's time) of the operations that took longest in the profile of `folder`."""
    import jax

    (file,) = folder.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    spent: dict[str, float] = {}
    for line in (line for plane in devices for line in plane.lines):
        for event in line.events:
            spent[event.name] = spent.get(event.name, 0.0) + event.duration_ns
    total = sum(spent.values()) or 1.0
    return [(name, spent[name] / total) for name in sorted(spent, key=lambda name: -spent[name])[:count]]


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(wall, CPU) seconds."""
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


def measure(config: config_dict.ConfigDict, folder: Path, steps: int) -> dict[str, Any]:
    """Prepares a run in `folder`, compiles by running every program once, then times reference pass and steps."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from etils import epath

    from cogpo_jax.data.batches import Feed, prefetch
    from cogpo_jax.progress import say
    from cogpo_jax.training.log import Flops, model_flops
    from cogpo_jax.training.scoring import ReferenceCache, fill_reference
    from cogpo_jax.training.setup import as_float32, keep_freed_memory, prepare, resolve_initial

    if config.compile_cache.dir:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache.dir)
    compiling: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiling.append(seconds) if "backend_compile" in event else None
    )
    initial = resolve_initial(config)
    if not KEEP_NOTHING.value:
        keep_freed_memory(initial.student)
    setup = prepare(config, epath.Path(folder / "run"), initial)
    plan, programs, data = setup.plan, setup.programs, setup.data
    plans = [plan.step(k) for k in range(steps or plan.steps_per_epoch)]
    cached, live = setup.pairs and config.reference == "cached", setup.pairs and config.reference == "live"
    feed = Feed(data, plan, setup.mesh, slots=plan.max_slots, pairs=setup.pairs)

    def fresh() -> tuple[Any, Any]:
        params = initial.load(setup.mesh)
        placed = jax.tree.map(lambda x: x.sharding, setup.abstract["opt_state"])
        return params, jax.jit(lambda p: setup.optimizer.init(as_float32(p)), out_shardings=placed)(params)

    def step(params: Any, opt_state: Any, batches: list[Any], normalizer: float, k: int) -> tuple[Any, Any, Any]:
        gradients, sums = programs.start(params)
        for batch in batches:
            if live:
                batch = dataclasses.replace(batch, reference_logps=programs.score(reference_params, batch.rows)[0])
            gradients, sums = programs.accumulate(params, gradients, sums, batch, jnp.float32(normalizer))
        params, opt_state, _ = programs.apply(params, opt_state, gradients, jnp.int32(k))
        return params, opt_state, sums

    clock = Clock()
    params, opt_state = fresh()
    reference_params = jax.tree.map(jnp.copy, params) if live else None
    by_shape = {m.shape: m for p in plans for m in p.micro_batches}
    if cached:
        jax.block_until_ready([programs.score(params, feed.rows(m)) for m in by_shape.values()])
    warm = step(params, opt_state, [feed.batch(m) for m in by_shape.values()], 1.0, 0)
    jax.block_until_ready(warm)
    del params, opt_state, warm  # the steps that are timed start from the first weights
    compile_seconds = clock.read()[0]

    params, opt_state = fresh()
    clock = Clock()
    if cached:
        cache = ReferenceCache(folder / "reference", {}, say)
        steps_of_epoch = min(len(plans), plan.steps_per_epoch)
        rows = Feed(data, plan, setup.mesh, slots=plan.max_slots, pairs=False)
        reference = fill_reference(cache, programs.score, lambda: params, data, plan, rows, steps_of_epoch)
        feed = Feed(data, plan, setup.mesh, slots=plan.max_slots, pairs=setup.pairs, reference=np.asarray(reference))
    reference_seconds, reference_cpu = clock.read()
    clock, losses, step_seconds = Clock(), [], []
    ready = prefetch(
        plans, lambda p: ([feed.batch(m) for m in p.micro_batches], sum(feed.normalizer(m) for m in p.micro_batches))
    )
    for p, (batches, normalizer) in ready:
        before = clock.read()[0]
        params, opt_state, sums = step(params, opt_state, batches, normalizer, p.step)
        objective = jax.device_get(sums["objective"]["all"][0])
        losses.append(float(objective) / normalizer)
        step_seconds.append(clock.read()[0] - before)
    jax.block_until_ready(params)
    seconds, cpu_seconds = clock.read()

    ops = []
    if LARGEST.value:
        with jax.profiler.trace(str(folder / "profile")):
            batches = [feed.batch(m) for m in plans[0].micro_batches]
            jax.block_until_ready(step(params, opt_state, batches, 1.0, 0))
        ops = largest_ops(folder / "profile", LARGEST.value)

    micro = [m for p in plans for m in p.micro_batches]
    needed = sum(
        (
            model_flops(
                initial.student,
                [int(data.lengths[r.response]) - 1 for r in m.placements],
                sum(int(data.counted_lengths[r.response]) for r in m.placements),
            )
            for m in micro
        ),
        Flops(),
    )
    tokens, pairs = sum(m.tokens for m in micro), sum(len(m.pairs) for m in micro)
    memory = jax.local_devices()[0].memory_stats() or {}
    device = jax.devices()[0]
    out = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "objective": config.objective,
        "steps": len(plans),
        "pairs": pairs,
        "tokens": tokens,
        "fill": tokens / sum(m.shape.tokens for m in micro),
        "seconds": reference_seconds + seconds,
        "cpu_seconds": reference_cpu + cpu_seconds,
        "reference_seconds": reference_seconds,
        "step_seconds": step_seconds,
        "pairs_per_second": pairs / (reference_seconds + seconds),
        "tokens_per_second": tokens / (reference_seconds + seconds),
        "compile_seconds": compile_seconds,
        "xla_seconds": sum(compiling),
        "model_flops": needed.total,
        "model_tflops_per_second": needed.total / seconds / 1e12,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "peak_device_gb": memory.get("peak_bytes_in_use", 0) / 1e9 or None,
        "first_loss": losses[0],
    }
    if ops:
        out["largest_ops"] = ops
    if PEAK.value:
        out["mfu"] = needed.total / seconds / jax.device_count() / (PEAK.value * 1e12)
    return out


def main() -> None:
    from cogpo_jax.training import settings

    config = cli.load_config(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        complete(config, Path(folder), SYNTHETIC.value)
        settings.check(config)
        print(json.dumps(measure(config, Path(folder), STEPS.value)))


if __name__ == "__main__":
    cli.run(main)
