"""Commands around a student: training, what would fit, export, scoring, generation."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from cogpo_jax import cli
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.text import TextFormat


def train(given: cli.Flags) -> int:
    """Trains a student: SFT, CogPO or DPO, by `config.objective`; the same command again goes on where it stopped."""
    config = given.load_config()
    (folder,) = given.require("workdir")
    from cogpo_jax.training import settings

    settings.check(config)  # before jax is imported: a mistyped field should not wait for an accelerator
    from cogpo_jax.training import train

    result = train.train(config, folder, print_shardings=given.print_shardings)
    print(json.dumps(result))
    return 0 if result["finished"] else given.exit_code_if_stopped


def compile_check(given: cli.Flags) -> int:
    """Compiles a config's programs with the real TPU compiler, on any machine: does it fit, what does it cost?"""
    config = given.load_config()
    from cogpo_jax.tpu import topology

    if not given.topology:
        raise UserError("--topology: missing; give a slice such as v5e:4x4")
    chosen = topology.find(given.topology, given.num_slices)
    if chosen.num_slices > 1 and config.mesh.replica == 1:
        config.mesh.replica = chosen.num_slices
    if unknown := set(given.programs) - {"micro-step", "apply", "reference"}:
        raise UserError(f"--programs: {unknown.pop()}: known are micro-step, apply, reference")
    topology.prepare()  # before jax is imported
    from cogpo_jax.tpu import check, programs

    if given.print_shardings:
        print(programs.describe_state(config, chosen), file=sys.stderr)
    result = check.check(config, chosen, given.programs, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(check.table(result), file=sys.stderr)
    print(json.dumps(check.to_json(result, config)))
    return 0 if result.fits else 1


def export(given: cli.Flags) -> None:
    """Writes a checkpoint of a run as a Hugging Face folder, with its card."""
    run, folder = given.require("workdir", "output")
    if not Path(run).is_dir() and "://" not in run:
        raise UserError(f"--workdir: {run}: no such folder; give the workdir of a run of `cogpo train`")
    for path in given.evaluation:
        if not Path(path).is_file():
            raise UserError(f"--evaluation: {path}: no such file; give the summary.json of `cogpo evaluate`")
    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy with the run itself
    from cogpo_jax import model_card
    from cogpo_jax.training.checkpoint import export_checkpoint

    report = export_checkpoint(run, folder, step=given.step, dtype=given.dtype, overwrite=given.overwrite)
    licences = model_card.Licences(given.license, given.data_license, given.base_model)
    report |= model_card.write_card(folder, run, report, licences, given.evaluation)
    if given.push_to_hub:
        report["hub"] = model_card.push_to_hub(folder, given.push_to_hub, private=given.private, dry_run=given.dry_run)
    print(json.dumps(report))


def compare_hf(given: cli.Flags) -> None:
    """Compares an exported Hugging Face folder with the checkpoint it came from: token ids and float32 logits."""
    run, folder, records = given.require("workdir", "model", "data")
    if importlib.util.find_spec("torch") is None:
        print(json.dumps({"skipped": "torch is not installed (make venv installs it)"}))
        return
    from cogpo_jax.quickstart import max_logit_difference
    from cogpo_jax.records import read_sft
    from cogpo_jax.text import load_tokenizer, prompt_text, response_text

    tokenizer, text_format = load_tokenizer(folder), TextFormat()
    texts = []
    for row in itertools.islice(read_sft(records, "validation"), given.texts):
        prompt = prompt_text(tokenizer, row.prompt, row.system, row.messages, text_format=text_format)
        whole = row.thought, row.solution, row.text
        texts.append(prompt + response_text(*whole, text_format=text_format, prompt=prompt))
    difference = max_logit_difference(run, folder, texts)
    print(json.dumps({"max_logit_diff": difference, "texts": len(texts)}))
    if not difference <= given.tolerance:
        raise RunError(f"logits differ by {difference:.3g}, above {given.tolerance:g}: {folder} is another model")


def score(given: cli.Flags) -> None:
    """Log-probs of responses under a student, by the code path of training."""
    (model, rows, output), alike = given.require("model", "input", "output"), _row_options(given, "plain")
    from cogpo_jax.training.score_rows import ScoreOptions, score_file

    options = ScoreOptions(
        row_length=given.row_length,
        batch_tokens=given.batch_tokens,
        window=given.window,
        by_step=given.by_step,
        **alike,
    )
    print(json.dumps(score_file(model, rows, output, options)))


def generate(given: cli.Flags) -> None:
    """Responses of a student to a file of prompts, by the in-process sampler (no server)."""
    (model, rows, output), alike = given.require("model", "input", "output"), _row_options(given)
    from cogpo_jax.student.generate_rows import GenerateOptions, generate_file
    from cogpo_jax.student.sampling import Sampling

    options = GenerateOptions(
        max_new_tokens=given.max_new_tokens,
        batch=given.batch,
        seed=given.seed,
        sampling=Sampling(given.temperature, given.top_k, given.top_p),
        stop=tuple(given.stop),
        **alike,
    )
    print(json.dumps(generate_file(model, rows, output, options)))


def _row_options(given: cli.Flags, response: str = "think") -> dict[str, Any]:
    """What scoring and generation take alike: how a row becomes tokens, and where it is computed."""
    text_format = TextFormat(given.prompt_format, response, given.system, given.end_token, given.template_kwargs)
    return dict(compute_dtype=given.dtype or "", tensor=given.tensor, text_format=text_format)
