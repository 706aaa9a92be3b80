"""What a student can do on a task: responses, verdicts, accuracies with intervals, and two runs against each other.

    python launch/evaluate.py --task=gsm8k --data=test.jsonl --model=runs/hf --output=runs/gsm8k
    python launch/evaluate.py --task=math500 --data=math500.jsonl --pool.url=http://127.0.0.1:30000 --output=runs/m500
    python launch/evaluate.py --task=math --data=rows.jsonl --responses=responses.jsonl --output=runs/graded
    python launch/evaluate.py --compare=runs/before,runs/after --output=runs/comparison
    python launch/evaluate.py --regrade --output=runs/gsm8k

Exactly one of --model, --pool.url, --responses gives the texts. The same command goes on where it was stopped. The
folder then holds samples.jsonl, summary.json (also printed) and report.html. Tasks: configs/tasks, docs/evaluation.md.
"""

import json
import sys
from pathlib import Path

sys.path.pop(0)  # this folder, in which crv.py would stand for the package crv

from absl import flags

from cogpo_jax import cli
from cogpo_jax.atomic import write_json
from cogpo_jax.errors import UserError
from cogpo_jax.evaluation.engines import Engine, PoolEngine, StudentEngine
from cogpo_jax.evaluation.run import Evaluation, evaluate, regrade
from cogpo_jax.evaluation.summary import compare, runs_in
from cogpo_jax.evaluation.tasks import load_task
from cogpo_jax.progress import say
from cogpo_jax.report.evaluations import write_page
from cogpo_jax.text import TextFormat

_TASK = flags.DEFINE_string("task", None, "Name of a task in configs/tasks, or a .toml file.")
_DATA = flags.DEFINE_string("data", None, "The task's rows: a file, or hf:NAME.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of this evaluation.")
_COLUMNS = flags.DEFINE_list(
    "columns", [], "Columns of the rows, as problem:COL,answer:COL; they go before the task's own."
)
_LIMIT = flags.DEFINE_integer("limit", 0, "The first so many problems; 0: all.", 0)
_FEW_SHOT = flags.DEFINE_string("few_shot", None, "File of worked examples: rows like the data's, or a .txt.")
_SHOTS = flags.DEFINE_integer("shots", None, "So many worked examples; default: the task's.", 0)
_SAMPLES = flags.DEFINE_integer("samples", None, "Samples per problem; default: the task's.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0: greedy; default: the task's.", 0)
_TOP_P = flags.DEFINE_float("top_p", None, "Default: the task's.")
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", None, "Tokens of a response at most; default: the task's.", 1)
_SYSTEM = flags.DEFINE_string("system", None, "System message; default: the task's.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides the draws, and the order of options.")
_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder: answers in this process.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: float32 on a CPU, else bfloat16.")
_TENSOR = flags.DEFINE_integer("tensor", 1, "Devices over which heads and vocabulary are split.", 1)
_SLOTS = flags.DEFINE_integer("slots", 16, "Responses that are decoded at a time.", 1)
_FORMAT = flags.DEFINE_enum("prompt_format", "chat", ["chat", "raw"], "chat: the tokenizer's template; raw: as it is.")
_END = flags.DEFINE_string("end_token", TextFormat().end_token, "The token that ends a response.")
_URL = flags.DEFINE_string("pool.url", None, "Servers of one model, with commas between: answer over HTTP.")
_POOL_MODEL = flags.DEFINE_string("pool.model", "", "Its served name; default: the only one that is served.")
_KIND = flags.DEFINE_enum("pool.kind", "openai", ["openai", "sglang"], "openai: any OpenAI-compatible server.")
_TOKENIZER = flags.DEFINE_string("pool.tokenizer", "", "The model's tokenizer folder (kind sglang needs it).")
_CONCURRENCY = flags.DEFINE_integer("pool.concurrency", 16, "Calls at a time to each server.", 1)
_TIMEOUT = flags.DEFINE_float("pool.timeout", 1800.0, "Seconds for one call.", 0)
_KEY = flags.DEFINE_string("pool.api_key", "", "Environment variable that holds the key.")
_RESPONSES = flags.DEFINE_string("responses", None, "Texts from elsewhere: rows {id, sample, response}.")
_COUNTS = flags.DEFINE_string("tokenizer", "", "Tokenizer folder that counts the tokens of --responses.")
_ALLOW_CODE = flags.DEFINE_bool("allow_code", False, "Run programs that a model wrote (in a sandbox) to grade them.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Responses that are graded at a time.", 1)
_REGRADE = flags.DEFINE_bool("regrade", False, "Grade the responses in --output anew, by today's rules.")
_COMPARE = flags.DEFINE_list("compare", None, "Two folders, as A,B: paired differences B - A.")
_COMMON = flags.DEFINE_bool("common", False, "Compare the problems that both have, whatever the prompts.")


def main() -> None:
    if _COMPARE.value is not None:
        _compare(_COMPARE.value)
        return
    if not _OUTPUT.value:
        raise UserError("--output: missing: the folder of the evaluation")
    if _REGRADE.value:
        print(json.dumps(regrade(_OUTPUT.value, _ALLOW_CODE.value, _WORKERS.value), ensure_ascii=False))
        return
    if not _TASK.value:
        raise UserError("--task: missing: a name in configs/tasks, or a .toml file")
    changes = {
        "samples": _SAMPLES.value,
        "temperature": _TEMPERATURE.value,
        "top_p": _TOP_P.value,
        "max_new_tokens": _MAX_NEW.value,
        "few_shot": _SHOTS.value,
        "system": _SYSTEM.value,
    }
    summary = evaluate(
        Evaluation(
            task=load_task(_TASK.value, _COLUMNS.value, **changes),
            data=_DATA.value or "",
            output=_OUTPUT.value,
            engine=_engine(),
            responses=_RESPONSES.value or "",
            few_shot=_FEW_SHOT.value or "",
            limit=_LIMIT.value,
            seed=_SEED.value,
            allow_code=_ALLOW_CODE.value,
            workers=_WORKERS.value,
            tokenizer=_COUNTS.value,
        )
    )
    print(json.dumps(summary, ensure_ascii=False))


def _engine() -> Engine | None:
    given = [name for name in ("model", "pool.url", "responses") if flags.FLAGS[name].value]
    if len(given) != 1:
        raise UserError(f"--model, --pool.url, --responses: {' and '.join(given) or 'none'} given; give exactly one")
    if _MODEL.value:
        text_format = TextFormat(prompt=_FORMAT.value, end_token=_END.value)
        return StudentEngine(_MODEL.value, _DTYPE.value or "", _TENSOR.value, _SLOTS.value, text_format)
    if _URL.value:
        names = (_URL.value, _POOL_MODEL.value, _KIND.value, _TOKENIZER.value)
        return PoolEngine(*names, _CONCURRENCY.value, _TIMEOUT.value, api_key=_KEY.value)
    return None


def _compare(folders: list[str]) -> None:
    if len(folders) != 2:
        raise UserError(f"--compare: {','.join(folders)}: give two folders, as A,B")
    comparison = compare(*folders, _COMMON.value)
    for name, result in [*comparison["tasks"].items(), ("overall", comparison["overall"])]:
        needed = result["problems_needed"]
        say(
            f"{name}: {100 * result['a']:.1f} -> {100 * result['b']:.1f}, {100 * result['difference']:+.1f} points "
            f"({100 * result['low']:+.1f} to {100 * result['high']:+.1f}), {result['test']} p = {result['p']:.3g}; "
            f"{result['better_with_b']} problems better, {result['worse_with_b']} worse; "
            + (f"about {needed:,} problems show a difference like that" if needed else "no difference to show")
        )
    if _OUTPUT.value:
        output = Path(_OUTPUT.value)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "comparison.json", comparison)
        write_page(output / "report.html", [run for folder in folders for run in runs_in(folder).values()], comparison)
    print(json.dumps(comparison, ensure_ascii=False))


if __name__ == "__main__":
    cli.run(main)
