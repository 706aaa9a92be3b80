"""A training run, from a config and a workdir to its last checkpoint. The same call goes on with a run that stopped."""

import dataclasses
import json
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from cogpo_jax import text
from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.data.feed import Feed, prefetch
from cogpo_jax.data.plan import EpochPlan, StepPlan, default_shapes
from cogpo_jax.data.tokens import TokenizedData, length_summary, load_tokens
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.objective import metrics as metric_sums
from cogpo_jax.objective.cogpo import PreferenceOptions
from cogpo_jax.progress import Bar, say
from cogpo_jax.records import verify_manifest
from cogpo_jax.sharding import make_mesh, param_shardings, row_shards
from cogpo_jax.student.model import ForwardOptions, abstract_params
from cogpo_jax.training import evaluate, settings
from cogpo_jax.training.checkpoint import Checkpoints, with_shardings
from cogpo_jax.training.checksum import tree_digest
from cogpo_jax.training.initial import STUDENT_FILE, TOKENIZER_FOLDER, Initial, resolve
from cogpo_jax.training.log import MetricsLog
from cogpo_jax.training.optimizer import learning_rate_schedule, make_optimizer
from cogpo_jax.training.reference import ReferenceCache, reference_key
from cogpo_jax.training.scoring import drift, fill_reference, score_all
from cogpo_jax.training.step import Programs, StepSettings, make_programs


def train(config: config_dict.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains (or goes on training) in `workdir` and returns what done.json holds.

    Raises UserError for bad input, before any long work; RunError where the run cannot go on (NaN, Inf).
    """
    settings.check(config)
    workdir = Path(workdir)
    if (workdir / "config.json").is_file():
        settings.check_same_run(config, workdir / "config.json")
    verify_manifest(config.data)
    initial = resolve(
        config.init_from, config.model, config.tokenizer, seed=config.seed, param_dtype=config.param_dtype, say=say
    )
    if config.compile_cache.dir:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache.dir)
    return Run(config, workdir, initial).train()


class Run:
    """One run's state on this process: data, plan, programs, parameters, logs."""

    def __init__(self, config: config_dict.ConfigDict, workdir: Path, initial: Initial):
        self.config, self.workdir, self.initial = config, workdir, initial
        self.main = jax.process_index() == 0
        self.mesh = make_mesh(config.mesh.to_dict())
        self.tokenizer = text.load_tokenizer(initial.tokenizer_folder)
        if len(self.tokenizer) > initial.student.vocab_size:
            raise UserError(
                f"tokenizer: {initial.tokenizer_folder}: has {len(self.tokenizer)} tokens, "
                f"the student's vocab_size is {initial.student.vocab_size}; must not be more"
            )
        self.data = self._tokens(config.data, "train")
        self.plan = self._plan(self.data, shuffle=True)
        self.pairwise = config.objective != "sft"
        self.betas = settings.beta_by_gap(config) if self.pairwise else None
        self.total_steps = self._total_steps()
        self._write_run_files()
        forward = ForwardOptions(config.compute_dtype, _attention(config.attention), config.remat, self.mesh)
        self.settings = StepSettings(
            student=initial.student,
            forward=forward,
            objective=config.objective,
            loss=PreferenceOptions(**config.loss.to_dict()),
            logits_chunk=config.logits_chunk,
            max_slots=self.plan.max_slots,
        )
        schedule_steps = config.epochs * self.plan.steps_per_epoch or config.max_steps
        self.learning_rate = learning_rate_schedule(config.optimizer, schedule_steps)
        self.optimizer = make_optimizer(config.optimizer, schedule_steps)
        abstract = abstract_params(initial.student, config.param_dtype)
        self.abstract = {"params": abstract, "opt_state": jax.eval_shape(self.optimizer.init, _wide(abstract))}
        self.programs: Programs = make_programs(self.settings, self.optimizer, abstract, self.abstract["opt_state"])
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep, say=say)
        self._leaving = threading.Event()

    # Data -------------------------------------------------------------------------------------------------------------

    def _tokens(self, folder: str, split: str) -> TokenizedData:
        config = self.config
        cache = config.token_cache.dir or self.workdir / "token_cache"
        with Bar(f"tokenising {split}", 1, quiet=not self.main) as bar:
            return load_tokens(
                folder, split, config.objective, self.tokenizer, settings.text_format(config), cache, bar.at
            )

    def _plan(self, data: TokenizedData, *, shuffle: bool) -> EpochPlan:
        config, shards = self.config, row_shards(self.mesh)
        shapes = default_shapes(config.rows.per_device * shards, config.rows.length, shards)
        return EpochPlan(
            data.lengths,
            data.response_offsets,
            data.pair_offsets,
            data.chosen,
            data.rejected,
            groups_per_step=config.batch.groups,
            shapes=shapes[: config.rows.shapes],
            seed=config.seed,
            pairwise=config.objective != "sft",
            shuffle=shuffle,
        )

    def _total_steps(self) -> int:
        steps = self.config.epochs * self.plan.steps_per_epoch or self.config.max_steps
        return min(steps, self.config.max_steps) if self.config.max_steps else steps

    def _write_run_files(self) -> None:
        """What says which run this workdir is; refuses records that changed since it began."""
        path = self.workdir / "plan.json"
        dropped = {reason: count for reason, count in self.plan.drops.items() if count}
        plan = {
            "data_digest": self.data.digest,
            "lengths": length_summary(self.data),
            "groups": len(self.plan.groups),
            "dropped": dropped,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "total_steps": self.total_steps,
            "shapes": [[s.rows, s.length] for s in self.plan.shapes],
        }
        if path.is_file() and (old := json.loads(path.read_text())["data_digest"]) != self.data.digest:
            raise UserError(
                f"data: {self.config.data}: changed since this run began (digest {old[:12]} then, "
                f"{self.data.digest[:12]} now); take a new workdir"
            )
        if not self.main:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)
        write_json(self.workdir / "config.json", self.config.to_dict())
        write_json(self.workdir / STUDENT_FILE, self.initial.student.to_hf())
        own = self.workdir / TOKENIZER_FOLDER
        if not own.is_dir():
            staging = own.with_name(f".{own.name}.new")
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(self.initial.tokenizer_folder, staging, ignore=_not_tokenizer)
            staging.rename(own)
        say(f"{len(self.plan.groups)} groups, {self.total_steps} steps; dropped: {dropped or 'nothing'}")

    # State ------------------------------------------------------------------------------------------------------------

    def _load_state(self) -> int:
        """Fills params and opt_state, from the newest good checkpoint or from the start; returns the steps done."""
        shardings = {name: param_shardings(self.mesh, tree) for name, tree in self.abstract.items()}
        if self.checkpoints.steps():
            abstract = {name: with_shardings(tree, shardings[name]) for name, tree in self.abstract.items()}
            step, items, self.meta = self.checkpoints.restore(abstract)
            if self.meta["objective"] != self.config.objective:
                raise UserError(
                    f"objective: {self.config.objective}: {self.workdir} holds a run of {self.meta['objective']}"
                )
            self.params, self.opt_state = items["params"], items["opt_state"]
            say(f"goes on after step {step}")
            return step
        self.params = self.initial.load(self.mesh)
        init = jax.jit(lambda p: self.optimizer.init(_wide(p)), out_shardings=shardings["opt_state"])
        self.opt_state = init(self.params)
        self.meta = {
            "objective": self.config.objective,
            "param_dtype": self.config.param_dtype,
            "data_digest": self.data.digest,
            "reference": tree_digest(self.params) if self.pairwise else "",
        }
        return 0

    def _save(self, step: int) -> None:
        self.checkpoints.save(step, self.params, self.opt_state, self.meta)

    # Reference --------------------------------------------------------------------------------------------------------

    def _reference_params(self) -> Any:
        """The reference's weights: the run's own first ones, loaded again where training has moved on."""
        if self.start == 0 and self.done == 0:
            return self.params
        params = self.initial.load(self.mesh)
        if tree_digest(params) != self.meta["reference"]:
            raise UserError(f"init_from: {self.config.init_from}: its weights changed since this run began")
        return params

    def _fill_reference(self, data: TokenizedData, plan: EpochPlan, steps: int, what: str) -> np.ndarray:
        """Reference log-probs [R] for the first `steps` steps of a plan, from the cache or computed into it."""
        config = self.config
        folder = config.reference_cache.dir or self.workdir / "reference_cache"
        key = reference_key(self.meta["reference"], config.compute_dtype, self.settings.forward.attention)
        cache = ReferenceCache(folder, key, say)
        feed = Feed(data, plan, self.mesh, slots=plan.max_slots)
        with Bar(f"reference, {what}", 1, quiet=not self.main) as bar:
            return fill_reference(cache, self._score(plan), self._reference_params, data, plan, feed, steps, bar.at)

    def _score(self, plan: EpochPlan) -> Any:
        if plan.max_slots == self.settings.max_slots:
            return self.programs.score
        other = dataclasses.replace(self.settings, max_slots=plan.max_slots)
        return make_programs(other, self.optimizer, self.abstract["params"], self.abstract["opt_state"]).score

    def _check_drift(self, reference: np.ndarray) -> None:
        """Before the first step policy and reference are one model: cached and live log-probs must agree."""
        feed = Feed(self.data, self.plan, self.mesh, slots=self.plan.max_slots)
        found, most = (
            drift(self.programs.score, self.params, feed, self.plan, reference),
            self.config.reference_cache.max_drift,
        )
        say(f"reference: cached log-probs are within {found:.2g} nats of live ones (at most {most} accepted)")
        if not found <= most:
            raise UserError(
                f"reference_cache.max_drift: {most}: cached log-probs differ from live ones by {found:.3g} nats; "
                "raise the bound, or give an empty reference_cache.dir"
            )

    # The loop ---------------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Runs the steps that are left, evaluates, saves, and returns done.json's content."""
        self.done = 0
        self.start = self.done = self._load_state()
        reference = live = None
        if self.pairwise and self.config.reference == "cached":
            steps = min(self.total_steps, self.plan.steps_per_epoch)
            reference = self._fill_reference(self.data, self.plan, steps, "training")
            if self.start == 0:
                self._check_drift(reference)
        elif self.pairwise:
            live = self._live_reference()
        self.log = MetricsLog(
            self.workdir, "metrics.jsonl", tensorboard=self.config.log.tensorboard, resume_step=self.start
        )
        feed = Feed(
            self.data, self.plan, self.mesh, slots=self.plan.max_slots, beta_by_gap=self.betas, reference=reference
        )
        self._steps(feed, live)
        if self._leaving.is_set() and self.done < self.total_steps:
            say(f"stopped after step {self.done}: the same command goes on from there")
            self.checkpoints.wait()
            return {"step": self.done, "finished": False}
        result = {"step": self.done, "finished": True, "evaluation": self._evaluate()}
        self.checkpoints.wait()
        self.log.close()
        if self.main:
            write_json(self.workdir / "done.json", result)
        return result

    def _live_reference(self) -> Any:
        # A copy: the policy's own buffers are donated by the first update.
        return jax.tree.map(jnp.copy, self._reference_params()) if self.start == 0 else self._reference_params()

    def _prepare(self, feed: Feed, step: StepPlan) -> tuple[list[dict[str, jax.Array]], float]:
        return [feed.batch(m) for m in step.micro_batches], sum(feed.normalizer(m) for m in step.micro_batches)

    def _steps(self, feed: Feed, live: Any) -> None:
        every, profiled = self.config.checkpoint.every, settings.profile_steps(self.config)
        plans = (self.plan.step(k) for k in range(self.start, self.total_steps))
        self._waiting: tuple[StepPlan, Any, Any] | None = None
        self._clock = time.perf_counter()
        with (
            Bar("training", self.total_steps, start=self.start, quiet=not self.main) as self.bar,
            _on_sigterm(self._leaving),
        ):
            for step, (batches, normalizer) in prefetch(plans, lambda step: self._prepare(feed, step)):
                if step.step in profiled and step.step == max(profiled.start, self.start):
                    jax.profiler.start_trace(str(self.workdir / "profile"))
                if not self._step(step, batches, normalizer, live):
                    break
                if profiled and step.step == profiled[-1]:
                    self._report_waiting()
                    jax.profiler.stop_trace()
                if self.done % every == 0 or self.done == self.total_steps:
                    self._report_waiting()  # a NaN must be seen before it is saved
                    self._save(self.done)
                if self.config.eval.every and self.done % self.config.eval.every == 0 and self.done < self.total_steps:
                    self._report_waiting()
                    self._evaluate()
            self._report_waiting()
            if self._leaving.is_set() and self.done not in self.checkpoints.steps():
                self._save(self.done)

    def _step(self, step: StepPlan, batches: list[dict[str, jax.Array]], normalizer: float, live: Any) -> bool:
        """One optimizer step; False where it was left unfinished because the run was asked to stop."""
        gradients, sums = self.programs.start(self.params)
        divisor = jnp.float32(normalizer)
        for batch in batches:
            if self._leaving.is_set():
                return False
            if live is not None:
                batch["reference_logps"], _ = self.programs.score(live, batch)
            gradients, sums = self.programs.accumulate(self.params, gradients, sums, batch, divisor)
        self.params, self.opt_state, norm = self.programs.apply(
            self.params, self.opt_state, gradients, jnp.int32(step.step)
        )
        self.done = step.step + 1
        # The step before is reported now, while this one runs on the device.
        waiting, self._waiting = self._waiting, (step, sums, norm)
        self._report(waiting)
        return True

    def _report_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        self._report(waiting)

    def _report(self, waiting: tuple[StepPlan, Any, Any] | None) -> None:
        if waiting is None:
            return
        step, sums, norm = waiting
        record = self._record(step, *jax.device_get((sums, norm)))
        self.log_step(record)
        if not np.isfinite([record["loss"], record["grad_norm"]]).all():
            names = [self.data.names[g] for g in step.groups]
            good = self.checkpoints.steps()[-1:] or ["none"]
            raise RunError(
                f"step {record['step']}: loss {record['loss']}, gradient norm {record['grad_norm']}: not finite; "
                f"groups {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}; last good checkpoint: step {good[0]}"
            )

    def log_step(self, record: dict[str, Any]) -> None:
        if self.main:
            self.log.write(record)
        self.bar.at(record["step"], note=f"loss {record['loss']:.4f}, {record['tokens_per_second']:.0f} tok/s")

    def _record(self, step: StepPlan, sums: Any, norm: Any) -> dict[str, Any]:
        """The metrics line of a step."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        micro = step.micro_batches
        tokens = sum(m.tokens for m in micro)
        means = metric_sums.finish({k: v for k, v in sums.items() if k not in ("objective", "nll")})
        responses = sum(len(m.placements) for m in micro)
        weight = float(sums["nll"]["all"][1] if "nll" in sums else sums["loss"]["all"][1])
        means["pair_loss"] = means.pop("loss", {})
        return {
            "step": step.step + 1,
            "epoch": step.epoch,
            "loss": float(sums["objective"]["all"][0]) / weight,
            "pairs": sum(len(m.pairs) for m in micro),
            "groups": len(step.groups),
            "responses": responses,
            "tokens": tokens,
            "response_tokens": int(sum(self.data.counted_lengths[p.response] for m in micro for p in m.placements)),
            "micro_batches": len(micro),
            "fill": tokens / sum(m.shape.tokens for m in micro),
            "learning_rate": float(self.learning_rate(step.step)),
            "grad_norm": float(norm),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            **{name: gaps for name, gaps in means.items() if gaps},
        }

    # Evaluation -------------------------------------------------------------------------------------------------------

    def _evaluate(self) -> dict[str, Any]:
        """Scores the held-out records; writes eval.jsonl and, for pairs, eval_pairs.jsonl."""
        config = self.config
        if not config.eval.data:
            return {}
        data = self._tokens(config.eval.data, config.eval.split)
        plan = self._plan(data, shuffle=False)
        feed = Feed(data, plan, self.mesh, slots=plan.max_slots)
        logps, tokens = score_all(self._score(plan), self.params, data, plan, feed)
        dropped = {reason: count for reason, count in plan.drops.items() if count}
        if self.betas is None:
            unigram = evaluate.unigram_nll(self.data, data, self.initial.student.vocab_size)
            summary = evaluate.sft_summary(logps, tokens, unigram)
        else:
            reference = self._fill_reference(data, plan, plan.steps_per_epoch, "held-out")
            rows = evaluate.pair_rows(data, logps, reference, tokens)
            summary = evaluate.pair_summary(rows, self.betas)
            if self.main:
                lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
                write_atomic(self.workdir / "eval_pairs.jsonl", lines)
        summary = {"step": self.done, "dropped": dropped, **summary}
        if self.main:
            log = MetricsLog(self.workdir, "eval.jsonl", tensorboard=False, resume_step=self.done - 1)
            log.write(summary)
            log.close()
        return summary


def _attention(name: str) -> str:
    return {"tpu": "splash", "gpu": "gpu"}.get(jax.default_backend(), "xla") if name == "auto" else name


def _wide(params: Any) -> Any:
    """Parameters as the optimizer sees them: float32."""
    return jax.tree.map(
        lambda p: (
            jax.ShapeDtypeStruct(p.shape, jnp.float32) if isinstance(p, jax.ShapeDtypeStruct) else p.astype(jnp.float32)
        ),
        params,
    )


def _not_tokenizer(folder: str, names: list[str]) -> list[str]:
    kept = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template", "generation_config")
    return [name for name in names if not name.startswith(kept)]


class _on_sigterm:  # noqa: N801 (reads as a statement)
    """While inside, SIGTERM sets the event; only the main thread can listen."""

    def __init__(self, event: threading.Event):
        self._event = event
        self._listens = threading.current_thread() is threading.main_thread()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._event.set()

    def __enter__(self) -> None:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._handle)

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)
