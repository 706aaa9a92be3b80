"""Commands around a student: training, what would fit, export, scoring, generation."""

import importlib.util
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.text import END_OF_TURN, TextFormat


def train() -> cli.Main:
    """Trains a student: SFT, CogPO or DPO, by `config.objective`; the same command again goes on where it stopped.

        cogpo train --config=tiny_cpu --config.data=DATA --config.tokenizer=DIR --workdir=runs/tiny
        cogpo train --config=cogpo_tpu:7b --config.data=DATA --config.init_from=SFT --workdir=gs://...

    `cogpo configs show tiny_cpu` prints all fields with their meaning. Leaves in the workdir: checkpoints/,
    metrics.jsonl (one object a step), eval.jsonl and eval_pairs.jsonl (held-out), plan.json (what was dropped),
    tensorboard/, done.json.
    """
    config_flag = cli.define_config()
    print_shardings = flags.DEFINE_bool("print_shardings", False, "Print where every parameter and Adam moment lives.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run; the same folder again goes on with it.")
    exit_code_if_stopped = flags.DEFINE_integer(
        "exit_code_if_stopped",
        0,
        "Exit code where SIGTERM or a preemption stopped the run before its last step. Schedulers that restart only "
        "what failed (a Kubernetes Job) need another than 0.",
        lower_bound=0,
        upper_bound=255,
    )

    def main() -> int:
        config = cli.load_config(config_flag)
        (folder,) = cli.require(workdir)
        from cogpo_jax.training import settings

        settings.check(config)  # before jax is imported: a mistyped field should not wait for an accelerator
        from cogpo_jax.training import train

        result = train.train(config, folder, print_shardings=print_shardings.value)
        print(json.dumps(result))
        return 0 if result["finished"] else exit_code_if_stopped.value

    return main


def compile_check() -> cli.Main:
    """Compiles a config's programs with the real TPU compiler, on any machine: does it fit, what does it cost?

        cogpo compile-check --config=cogpo_tpu:7b --topology=v5p:2x2x4
        cogpo compile-check --config=cogpo_tpu:1.5b --topology=v5e:4x4 --num_slices=2

    Micro-step, apply and reference pass, as `cogpo train` runs them. For each: peak HBM a chip and what is resident
    beside it against the chip's, FLOPs per token counted in the program against the model's (attention's apart), what a
    chip sends inside its slice (ici) and between slices (dcn), compile seconds. Table on stderr, one JSON object on
    stdout. Exit code 1 where it does not fit, saying by how much and which settings would help; 2 for bad input. Needs
    libtpu (requirements/tpu.txt), no TPU, no data and no weights.
    """
    config_flag = cli.define_config()
    slice_name = flags.DEFINE_string("topology", None, "Slice by generation and shape, e.g. v5e:4x4 or v5p:4x4x4.")
    num_slices = flags.DEFINE_integer("num_slices", 1, "Slices joined by the data-centre network (axis `replica`).")
    chosen_programs = flags.DEFINE_list("programs", "micro-step,apply,reference", "Which programs to compile.")
    print_shardings = flags.DEFINE_bool("print_shardings", False, "Also print where every parameter lives.")

    def main() -> int:
        config = cli.load_config(config_flag)
        from cogpo_jax.tpu import topology

        if not slice_name.value:
            raise UserError("--topology: missing; give a slice such as v5e:4x4")
        chosen = topology.find(slice_name.value, num_slices.value)
        if chosen.num_slices > 1 and config.mesh.replica == 1:
            config.mesh.replica = chosen.num_slices
        if unknown := set(chosen_programs.value) - {"micro-step", "apply", "reference"}:
            raise UserError(f"--programs: {unknown.pop()}: known are micro-step, apply, reference")
        topology.prepare()  # before jax is imported
        from cogpo_jax.tpu import check, programs

        if print_shardings.value:
            print(programs.describe_state(config, chosen), file=sys.stderr)
        result = check.check(
            config, chosen, chosen_programs.value, say=lambda line: print(line, file=sys.stderr, flush=True)
        )
        print(check.table(result), file=sys.stderr)
        print(json.dumps(check.to_json(result, config)))
        return 0 if result.fits else 1

    return main


def export() -> cli.Main:
    """Writes a checkpoint of a run as a Hugging Face folder: weights, config, tokenizer, template, generation config.

        cogpo export --workdir=runs/cogpo --output=runs/hf [--step=400] [--dtype=float32] [--overwrite]
        cogpo export --workdir=runs/cogpo --output=runs/hf --license=apache-2.0 --evaluation=runs/gsm8k/summary.json \
            --base_model=Qwen/Qwen2.5-1.5B-Instruct --push_to_hub=OWNER/NAME --dry_run

    Runs on the CPU whatever the run was trained on; needs memory for the parameters once. The model appears whole or
    not at all; then come its card, README.md, and, for a known chat template, Ollama's Modelfile. Prints one JSON
    object: step, output, dtype, parameters, card, modelfile, and what was or would be pushed.
    """
    workdir = flags.DEFINE_string("workdir", None, "Folder of a run of `cogpo train`.")
    output = flags.DEFINE_string("output", None, "Folder to write.")
    step = flags.DEFINE_integer("step", None, "Checkpoint to export; default: the newest undamaged one.", lower_bound=0)
    dtype = flags.DEFINE_string("dtype", "bfloat16", "bfloat16 | float32.")
    overwrite = flags.DEFINE_boolean("overwrite", False, "Replace an existing output folder.")
    evaluations = flags.DEFINE_list("evaluation", [], "summary.json files of `cogpo evaluate`, for the card.")
    license_name = flags.DEFINE_string("license", "", "Licence of the model, for the card: apache-2.0, ...")
    data_license = flags.DEFINE_string("data_license", "", "Licence of the training data, for the card.")
    base_model = flags.DEFINE_string("base_model", "", "The base model's name on a hub, for the card.")
    hub_name = flags.DEFINE_string("push_to_hub", "", "Repository to upload the folder to: OWNER/NAME.")
    private = flags.DEFINE_boolean("private", True, "Whether a repository that is made for it is private.")
    dry_run = flags.DEFINE_boolean("dry_run", False, "Say what --push_to_hub would upload, and upload nothing.")

    def main() -> None:
        run, folder = cli.require(workdir, output)
        if not Path(run).is_dir() and "://" not in run:
            raise UserError(f"--workdir: {run}: no such folder; give the workdir of a run of `cogpo train`")
        for path in evaluations.value:
            if not Path(path).is_file():
                raise UserError(f"--evaluation: {path}: no such file; give the summary.json of `cogpo evaluate`")
        import jax

        jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy with the run itself
        from cogpo_jax import model_card
        from cogpo_jax.training.checkpoint import export_checkpoint

        report = export_checkpoint(run, folder, step=step.value, dtype=dtype.value, overwrite=overwrite.value)
        licences = model_card.Licences(license_name.value, data_license.value, base_model.value)
        report |= model_card.write_card(folder, run, report, licences, evaluations.value)
        if hub_name.value:
            report["hub"] = model_card.push_to_hub(folder, hub_name.value, private=private.value, dry_run=dry_run.value)
        print(json.dumps(report))

    return main


def compare_hf() -> cli.Main:
    """Compares an exported Hugging Face folder with the checkpoint it came from: token ids and float32 logits.

        cogpo compare-hf --workdir=runs/cogpo --model=runs/hf --data=runs/crv

    Runs held-out problems through transformers (needs torch; without it prints that it skipped) and through the
    student. Prints {"max_logit_diff": x, "texts": n} or {"skipped": reason}; exit code 1 if the difference is above
    --tolerance.
    """
    workdir = flags.DEFINE_string("workdir", None, "Folder of a run of `cogpo train`.")
    model = flags.DEFINE_string("model", None, "Hugging Face folder that `cogpo export` wrote from it in float32.")
    data = flags.DEFINE_string("data", None, "Folder of records, for the texts.")
    number = flags.DEFINE_integer("texts", 4, "How many texts.", lower_bound=1)
    tolerance = flags.DEFINE_float("tolerance", 2e-4, "Largest accepted difference of a logit.")

    def main() -> None:
        run, folder, records = cli.require(workdir, model, data)
        if importlib.util.find_spec("torch") is None:
            print(json.dumps({"skipped": "torch is not installed (make venv installs it)"}))
            return
        from cogpo_jax.quickstart import max_logit_difference
        from cogpo_jax.records import read_sft
        from cogpo_jax.text import load_tokenizer, prompt_text, response_text

        tokenizer, text_format = load_tokenizer(folder), TextFormat()
        texts = []
        for row in itertools.islice(read_sft(records, "validation"), number.value):
            prompt = prompt_text(tokenizer, row.prompt, row.system, row.messages, text_format=text_format)
            whole = row.thought, row.solution, row.text
            texts.append(prompt + response_text(*whole, text_format=text_format, prompt=prompt))
        difference = max_logit_difference(run, folder, texts)
        print(json.dumps({"max_logit_diff": difference, "texts": len(texts)}))
        if not difference <= tolerance.value:
            raise RunError(f"logits differ by {difference:.3g}, above {tolerance.value:g}: {folder} is another model")

    return main


def score() -> cli.Main:
    """Log-probs of responses under a student, by the code path of training.

        cogpo score --model=runs/hf --input=rows.jsonl --output=scored.jsonl

    Rows are JSON objects {prompt, response} with an optional `system`; the same rows come out, in order, with `logp`
    (natural logarithm, summed over the response and its end token) and `tokens`. A response too long for a row is not
    cut: `logp` is null and `reason` says why. Prints one JSON object with the counts. With --by_step='\\n+' a row has
    `steps` too: {end, tokens, logp} of each line (end: characters from the response's start); -logp is its surprisal.
    """
    rows = _RowFlags.define("{prompt, response[, system]}")
    by_step = flags.DEFINE_string("by_step", "", "A regular expression that ends a step; empty: whole responses only.")
    row_length = flags.DEFINE_integer("row_length", 0, "Tokens of a row; 0: what the longest response needs.")
    batch_tokens = flags.DEFINE_integer(
        "batch_tokens", 16_384, "Tokens of a micro-batch per device (at least one row)."
    )
    window = flags.DEFINE_integer("window", 1024, "Rows of the file that are packed together.")

    def main() -> None:
        files, text_format = rows.files(), rows.text_format("plain")
        from cogpo_jax.training.score_rows import ScoreOptions, score_file

        options = ScoreOptions(
            row_length=row_length.value,
            batch_tokens=batch_tokens.value,
            window=window.value,
            compute_dtype=rows.dtype.value or "",
            tensor=rows.tensor.value,
            by_step=by_step.value,
            text_format=text_format,
        )
        print(json.dumps(score_file(*files, options)))

    return main


def generate() -> cli.Main:
    """Responses of a student to a file of prompts, by the in-process sampler (no server).

        cogpo generate --model=runs/hf --input=prompts.jsonl --output=responses.jsonl --max_new_tokens=2048

    Rows are JSON objects {prompt} with an optional `system`; the same rows come out, in order, with `response`,
    `tokens` and `finish_reason` (stop | length). Greedy unless --temperature is given; with a seed a row's response
    does not depend on the batch it is in. A prompt that leaves no room gets `response` null and a `reason`. Prints one
    JSON object.
    """
    rows = _RowFlags.define("{prompt[, system]}")
    max_new = flags.DEFINE_integer("max_new_tokens", 512, "Tokens of a response at most.")
    batch = flags.DEFINE_integer("batch", 16, "Rows decoded at a time; one that ends makes room for the next.")
    temperature = flags.DEFINE_float("temperature", 0.0, "0: greedy.")
    top_k = flags.DEFINE_integer("top_k", 0, "Draw from so many likeliest tokens; 0: all.")
    top_p = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens with this probability together.")
    seed = flags.DEFINE_integer("seed", 0, "Decides the draws of every row.")
    stop = flags.DEFINE_list("stop", [], "More tokens that end a response, beside the folder's own.")

    def main() -> None:
        files, text_format = rows.files(), rows.text_format()
        from cogpo_jax.student.generate_rows import GenerateOptions, generate_file
        from cogpo_jax.student.sampling import Sampling

        options = GenerateOptions(
            max_new_tokens=max_new.value,
            batch=batch.value,
            seed=seed.value,
            sampling=Sampling(temperature.value, top_k.value, top_p.value),
            stop=tuple(stop.value),
            compute_dtype=rows.dtype.value or "",
            tensor=rows.tensor.value,
            text_format=text_format,
        )
        print(json.dumps(generate_file(*files, options)))

    return main


@dataclass(frozen=True)
class _RowFlags:
    """What scoring and generation take alike: a model, a file of rows, and how a row becomes tokens."""

    model: flags.FlagHolder[str | None]
    source: flags.FlagHolder[str | None]
    output: flags.FlagHolder[str | None]
    dtype: flags.FlagHolder[str | None]
    tensor: flags.FlagHolder[int]
    prompt: flags.FlagHolder[str]
    system: flags.FlagHolder[str]
    end_token: flags.FlagHolder[str]
    template: flags.FlagHolder[str]

    @classmethod
    def define(cls, row: str) -> "_RowFlags":
        return cls(
            flags.DEFINE_string("model", None, "Hugging Face folder."),
            flags.DEFINE_string("input", None, f"JSONL file of {row}."),
            flags.DEFINE_string("output", None, "JSONL file to write."),
            flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: float32 on a CPU, else bfloat16."),
            flags.DEFINE_integer("tensor", 1, "Devices over which heads and vocabulary are split."),
            flags.DEFINE_enum(
                "prompt_format", "chat", ["chat", "raw"], "chat: the tokenizer's template; raw: as it is."
            ),
            flags.DEFINE_string("system", "", "System message for rows without one; empty: the template decides."),
            flags.DEFINE_string(
                "end_token", END_OF_TURN, "Ends a response; found where the tokenizer has no such token."
            ),
            flags.DEFINE_string("template_kwargs", "", "For the template, as JSON: '{\"enable_thinking\": false}'."),
        )

    def files(self) -> tuple[str, str, str]:
        """Paths of the model, the rows and the output; raises UserError where one was not given."""
        return cli.require(self.model, self.source, self.output)

    def text_format(self, response: str = "think") -> TextFormat:
        return TextFormat(self.prompt.value, response, self.system.value, self.end_token.value, self.template.value)
