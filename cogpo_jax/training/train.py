"""A training run, from a config and a workdir to its last checkpoint. The same call goes on with a run that stopped."""

import contextlib
import dataclasses
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import config_dict

from cogpo_jax.atomic import FolderLock, write_atomic, write_json
from cogpo_jax.data.batches import Batch, Feed, PreferenceBatch, prefetch
from cogpo_jax.data.plan import StepPlan
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.progress import Bar, say
from cogpo_jax.records import verify_manifest
from cogpo_jax.sharding import describe
from cogpo_jax.tracking import Trackers
from cogpo_jax.training import hosts, scoring, settings
from cogpo_jax.training.checkpoint import Checkpoints, tree_digest
from cogpo_jax.training.log import MetricsLog, Speedometer, last_step, step_record
from cogpo_jax.training.setup import Setup, as_float32, keep_freed_memory, prepare, resolve_initial


def train(
    config: config_dict.ConfigDict, workdir: str | os.PathLike[str], *, print_shardings: bool = False
) -> dict[str, Any]:
    """Trains (or goes on training) in `workdir` and returns what done.json holds.

    print_shardings: also prints where every parameter and Adam moment lives.

    SIGTERM stops it in order, wherever it is; then `finished` is False in what it returns. Raises UserError for bad
    input, before any long work, and where another process trains in `workdir`; RunError where the run cannot go on
    (NaN, Inf).
    """
    config, folder = settings.resolved(config), settings.folder("--workdir", workdir)
    settings.check(config)
    hosts.connect(config.distributed)
    with hosts.Leaving() as leaving, contextlib.ExitStack() as held:
        try:
            hosts.check_same(settings.same_on_all_hosts(config) | {"code": hosts.code_digest()})
            hosts.check_shared(folder)
            settings.check_workdir(folder)
            hosts.on_first(lambda: held.enter_context(FolderLock(folder)))
            return Run(_set_up(config, folder, print_shardings), leaving).train()
        except hosts.Left:
            say("stopped before it trained: nothing is lost, the same command goes on from there")
            return {"finished": False}


def _set_up(config: config_dict.ConfigDict, workdir: epath.Path, print_shardings: bool) -> Setup:
    """Checks that the workdir, the data and the first weights fit together, and prepares the run."""
    if (workdir / "config.json").is_file():
        settings.check_same_run(config, workdir / "config.json")
    verify_manifest(config.data)
    if config.eval.data:
        with settings.named("eval.data"):
            verify_manifest(config.eval.data)
    initial = resolve_initial(config)
    keep_freed_memory(initial.student)
    if config.compile_cache.dir:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache.dir)
    setup = prepare(config, workdir, initial)
    hosts.check_same({"data": setup.data.digest})
    if print_shardings and setup.main:
        say(describe(setup.abstract))
    return setup


class Run:
    """What changes while a run trains: parameters, optimizer state, steps done, logs."""

    def __init__(self, setup: Setup, leaving: hosts.Leaving):
        self.setup, self.config, self._leaving = setup, setup.config, leaving
        self.watchdog = hosts.Watchdog(self.config.watchdog.seconds)
        self.speed = Speedometer(setup.initial.student, setup.settings.forward)
        self.checkpoints = Checkpoints(setup.workdir, setup.config.checkpoint.keep, say=say)
        self.start = self.done = self._load_state()
        self.reference = scoring.ReferenceModel(setup, self.meta["reference"], self._first_params, self._micro_batch)
        self._waiting: tuple[StepPlan, Any, Any] | None = None  # a step whose metrics were not fetched yet

    def train(self) -> dict[str, Any]:
        """The reference pass, the steps that are left, the last evaluation; returns done.json's content."""
        setup, config = self.setup, self.config
        self._leaving.at_ticks = True  # from here on there may be something to save first
        evaluation: dict[str, Any] | None = None
        with contextlib.ExitStack() as closed_at_the_end:
            closed_at_the_end.callback(self.checkpoints.close)
            closed_at_the_end.enter_context(self.watchdog)
            with contextlib.suppress(hosts.Left):
                cached, live = self._reference_logps()
                feed = Feed(
                    setup.data,
                    setup.plan,
                    setup.mesh,
                    slots=setup.plan.max_slots,
                    pairs=setup.pairs,
                    reference=cached,
                )
                # Closed however the run ends: the line of a NaN must not be lost.
                self.log = closed_at_the_end.enter_context(self._open_log())
                self.bar = closed_at_the_end.enter_context(
                    Bar("training", setup.total_steps, start=self.start, quiet=not setup.main)
                )
                profile = closed_at_the_end.enter_context(_Profile(settings.profile_steps(config), self))
                if (
                    last_step(setup.workdir / "eval.jsonl") < self.start
                ):  # stopped after the step, before its evaluation
                    self._evaluate_if_due()
                plans = (setup.plan.step(k) for k in range(self.start, setup.total_steps))
                self.speed.mark()
                for step, (batches, normalizer) in prefetch(plans, lambda step: _prepare(feed, step)):
                    profile.before(step.step)
                    if not self._step(step, batches, normalizer, live):
                        break
                    profile.after(step.step)
                    if self.done % config.checkpoint.every == 0 or self.done == setup.total_steps:
                        self._save()
                    self._evaluate_if_due()
                if self._leaving.due and self.done not in self.checkpoints.steps():
                    self._save()
                if self.done == setup.total_steps:
                    evaluation = self._evaluate()
        if evaluation is None:
            say(f"stopped after step {self.done}: nothing is lost, the same command goes on from there")
            return {"step": self.done, "finished": False}
        result = {"step": self.done, "finished": True, "evaluation": evaluation}
        if setup.main:
            write_json(setup.workdir / "done.json", result)
        return result

    def _load_state(self) -> int:
        """Fills params and opt_state, from the newest good checkpoint or from the start; returns the steps done."""
        setup = self.setup
        if self.checkpoints.steps():
            step, items, self.meta = self.checkpoints.restore(setup.abstract)
            if self.meta["objective"] != self.config.objective:
                raise UserError(
                    f"objective: {self.config.objective}: {setup.workdir} holds a run of {self.meta['objective']}"
                )
            self.params, self.opt_state = items["params"], items["opt_state"]
            say(f"goes on after step {step}")
            return step
        self.params = setup.initial.load(setup.mesh)
        placed = jax.tree.map(lambda x: x.sharding, setup.abstract["opt_state"])
        self.opt_state = jax.jit(lambda p: setup.optimizer.init(as_float32(p)), out_shardings=placed)(self.params)
        self.meta = {
            "objective": self.config.objective,
            "param_dtype": self.config.param_dtype,
            "data_digest": setup.data.digest,
            "reference": tree_digest(self.params) if setup.pairs else "",
        }
        return 0

    def _first_params(self) -> Any:
        """The policy's weights while they are still the reference's, else None."""
        return self.params if self.done == 0 else None

    def _micro_batch(self) -> None:
        """Between two micro-batches that are only scored: raises Left where the run should stop."""
        self.watchdog.alive()
        self._leaving.leave_if_due()

    def _reference_logps(self) -> tuple[np.ndarray | None, Any]:
        """(cached log-probs [R], None), (None, the live reference's weights), or (None, None) for SFT."""
        setup = self.setup
        if not setup.pairs:
            return None, None
        if self.config.reference == "live":
            return None, self.reference.live()
        self.watchdog.at(self.done, "the reference pass")
        steps = min(setup.total_steps, setup.plan.steps_per_epoch)
        cached = self.reference.logps(setup.data, setup.plan, setup.programs.score, steps, "training")
        if self.start == 0:
            self.reference.check_drift(cached)
        return cached, None

    def _step(self, step: StepPlan, batches: list[Batch], normalizer: float, live: Any) -> bool:
        """One optimizer step; False where it was left unfinished because the run was asked to stop."""
        programs = self.setup.programs
        self.watchdog.at(self.done, f"step {step.step + 1}")
        gradients, sums = programs.start(self.params)
        divisor = jnp.float32(normalizer)
        for batch in batches:
            if self._leaving.tick():
                return False
            if live is not None:
                batch = _with_reference(batch, programs.score(live, batch.rows)[0])
            gradients, sums = programs.accumulate(self.params, gradients, sums, batch, divisor)
        self.params, self.opt_state, norm = programs.apply(self.params, self.opt_state, gradients, jnp.int32(step.step))
        self.done = step.step + 1
        # The step before is reported now, while this one runs on the device.
        before, self._waiting = self._waiting, (step, sums, norm)
        self._report(before)
        return True

    def report(self) -> None:
        """Waits for the last step and writes its metrics."""
        waiting, self._waiting = self._waiting, None
        self._report(waiting)

    def _report(self, waiting: tuple[StepPlan, Any, Any] | None) -> None:
        """Writes a step's metrics line; RunError where its loss or gradient is not finite."""
        if waiting is None:
            return
        step, setup = waiting[0], self.setup
        sums, norm = jax.device_get(waiting[1:])
        speed = self.speed.step(step, setup.data)
        record = step_record(step, sums, float(norm), float(setup.learning_rate(step.step)), speed, setup.data)
        if self.log:
            self.log.write(record)
        self.watchdog.at(record["step"], "the next step")
        self.bar.at(record["step"], note=f"loss {record['loss']:.4f}, {record['tokens_per_second']:.0f} tok/s")
        if not np.isfinite([record["loss"], record["grad_norm"]]).all():
            names = [setup.data.names[g] for g in step.groups]
            self.checkpoints.wait()
            saved = self.checkpoints.steps()
            raise RunError(
                f"step {record['step']}: loss {record['loss']}, gradient norm {record['grad_norm']}: not finite; "
                f"groups {', '.join(names[:32])}{' ...' if len(names) > 32 else ''}; last good checkpoint: "
                f"{f'step {saved[-1]}' if saved else 'none'}"
            )

    def _save(self) -> None:
        self.report()  # a NaN must be seen before it is saved
        if self.log:
            self.log.sync()
        self.watchdog.at(self.done, f"the checkpoint of step {self.done}")
        self.checkpoints.save(self.done, self.params, self.opt_state, self.meta)
        self.watchdog.at(self.done, "the next step")
        self.speed.mark()

    def _evaluate_if_due(self) -> None:
        """The evaluation every `eval.every` steps; left out where the run is asked to stop meanwhile."""
        done, ends = self.done, self.done == self.setup.total_steps  # the last evaluation comes by itself
        every, generate_every = self.config.eval.every, self.config.eval.generate.every
        held_out = bool(every and done and done % every == 0 and not ends)
        answers = bool(generate_every and done and done % generate_every == 0 and not ends)
        if held_out or answers:
            self.report()
            with contextlib.suppress(hosts.Left):  # the next step asks again, and saves
                self._evaluate(held_out=held_out, answers=answers)
            self.watchdog.at(self.done, "the next step")
            self.speed.mark()

    def _evaluate(self, *, held_out: bool = True, answers: bool = True) -> dict[str, Any]:
        """Scores the held-out records, and lets the student answer `eval.generate`'s problems: a line of eval.jsonl."""
        setup = self.setup
        self.watchdog.at(self.done, f"the evaluation after step {self.done}")
        summary = self._held_out() if held_out and setup.held_out else {}
        if answers and setup.answers:
            summary["generate"] = setup.answers(self.params)
        if summary:
            summary = {"step": self.done} | summary
            if setup.main:
                board = self.config.log.tensorboard and "generate" in summary
                folder = setup.workdir
                with MetricsLog(folder, "eval.jsonl", tensorboard=board, resume_step=self.done - 1) as log:
                    log.write(summary)
        return summary

    def _held_out(self) -> dict[str, Any]:
        """Loss, accuracy and margin (SFT: NLL) of the held-out records; for pairs also writes eval_pairs.jsonl."""
        setup = self.setup
        assert setup.held_out is not None
        data, plan, score = setup.held_out
        feed = Feed(data, plan, setup.mesh, slots=plan.max_slots, pairs=False)
        logps, tokens = scoring.score_all(score, self.params, data, plan, feed, self._micro_batch)
        summary: dict[str, Any] = {"dropped": {reason: n for reason, n in plan.drops.items() if n}}
        if setup.pairs:
            reference = self.reference.logps(data, plan, score, plan.steps_per_epoch, "held-out")
            rows = scoring.pair_rows(data, logps, reference, tokens)
            summary |= scoring.pair_summary(rows)
            if setup.main:
                lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
                write_atomic(setup.workdir / "eval_pairs.jsonl", lines)
        else:
            unigram = scoring.unigram_nll(setup.data, data, setup.initial.student.vocab_size)
            summary |= scoring.sft_summary(logps, tokens, unigram)
        return summary

    def _open_log(self) -> Any:
        """metrics.jsonl, cut back to the step that the run goes on from; None on all processes but the first."""
        if not self.setup.main:
            return contextlib.nullcontext()
        return MetricsLog(
            self.setup.workdir,
            "metrics.jsonl",
            tensorboard=self.config.log.tensorboard,
            resume_step=self.start,
            trackers=Trackers(self.config.to_dict(), self.setup.workdir),
        )


def _prepare(feed: Feed, step: StepPlan) -> tuple[list[Batch], float]:
    return [feed.batch(m) for m in step.micro_batches], sum(feed.normalizer(m) for m in step.micro_batches)


def _with_reference(batch: Batch, logps: jax.Array) -> Batch:
    assert isinstance(batch, PreferenceBatch)
    return dataclasses.replace(batch, reference_logps=logps)


class _Profile:
    """Traces the steps of `profile.steps` into workdir/profile."""

    def __init__(self, steps: range, run: Run):
        self._steps, self._run, self._on = steps, run, False

    def before(self, step: int) -> None:
        if step in self._steps and not self._on:
            self._run.report()
            jax.profiler.start_trace(str(self._run.setup.workdir / "profile"))
            self._on = True

    def after(self, step: int) -> None:
        if self._on and step + 1 not in self._steps:
            self._run.report()
            jax.profiler.stop_trace()
            self._on = False

    def __enter__(self) -> "_Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            jax.profiler.stop_trace()
