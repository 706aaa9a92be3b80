"""`cogpo evaluate`: what a student can do on a task, and two runs against each other."""

import json
from pathlib import Path
from typing import Any

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.text import END_OF_TURN, TextFormat


def evaluate() -> cli.Main:
    """Accuracy of a student on a task, with intervals; two evaluations against each other.

        cogpo evaluate --task=gsm8k --data=test.jsonl --model=runs/hf --output=runs/gsm8k
        cogpo evaluate --task=math500 --data=math500.jsonl --pool.url=http://127.0.0.1:30000 --output=runs/m500
        cogpo evaluate --task=math --data=rows.jsonl --responses=responses.jsonl --output=runs/graded
        cogpo evaluate --compare=runs/before,runs/after --output=runs/comparison
        cogpo evaluate --regrade --output=runs/gsm8k

    Exactly one of --model, --pool.url, --responses gives the texts. The same command again goes on where it stopped.
    The folder then holds samples.jsonl, summary.json (also printed) and report.html. See docs/evaluation.md.
    """
    text, number, whole = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
    task = text("task", None, "Name of a task (configs/tasks), or a .toml file.")
    data = text("data", None, "The task's rows: a file, or hf:NAME.")
    output = text("output", None, "Folder of this evaluation.")
    columns = flags.DEFINE_list(
        "columns", [], "NAME:COLUMN,...: columns of the rows, before those that the task names."
    )
    limit = whole("limit", 0, "The first so many problems; 0: all.", 0)
    few_shot = text("few_shot", "", "File of worked examples: rows like the data's, or a .txt.")
    seed = whole("seed", 0, "Decides the draws, and the order of options.")
    of_task = {
        "few_shot": whole("shots", None, "Worked examples before each problem; default: the task's.", 0),
        "samples": whole("samples", None, "Samples per problem; default: the task's.", 1),
        "temperature": number("temperature", None, "0: greedy; default: the task's.", 0),
        "top_p": number("top_p", None, "Default: the task's."),
        "max_new_tokens": whole("max_new_tokens", None, "Tokens of a response at most; default: the task's.", 1),
        "system": text("system", None, "System message; default: the task's."),
    }
    responses = text("responses", "", "Texts from elsewhere: rows {id, sample, response}.")
    tokenizer = text("tokenizer", "", "Tokenizer folder that counts the tokens of --responses.")
    allow_code = flags.DEFINE_bool("allow_code", False, "Run programs that a model wrote, in a sandbox, to grade them.")
    workers = whole("workers", 2, "Responses that are graded at a time.", 1)
    regrade = flags.DEFINE_bool("regrade", False, "Grade the responses in --output anew, by today's rules.")
    compare = flags.DEFINE_list("compare", None, "Two folders, A,B: differences B - A, paired by problem.")
    common = flags.DEFINE_bool("common", False, "Compare the problems that both have, whatever the prompts.")
    engine = _define_engine()

    def main() -> None:
        if compare.value is not None:
            _compare(compare.value, common.value, output.value)
            return
        (folder,) = cli.require(output)
        from cogpo_jax.evaluation import run
        from cogpo_jax.evaluation.tasks import load_task

        if regrade.value:
            print(json.dumps(run.regrade(folder, allow_code.value, workers.value), ensure_ascii=False))
            return
        (name,) = cli.require(task)
        request = run.Evaluation(
            task=load_task(name, columns.value, **{field: flag.value for field, flag in of_task.items()}),
            data=data.value or "",
            output=folder,
            engine=engine(responses.value),
            responses=responses.value,
            few_shot=few_shot.value,
            limit=limit.value,
            seed=seed.value,
            allow_code=allow_code.value,
            workers=workers.value,
            tokenizer=tokenizer.value,
        )
        print(json.dumps(run.evaluate(request), ensure_ascii=False))

    return main


def _define_engine() -> Any:
    """The flags of both engines; returns what makes the one that they name, or None where texts are given."""
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    model = text("model", "", "Hugging Face folder: answers in this process.")
    form = flags.DEFINE_enum("prompt_format", "chat", ["chat", "raw"], "chat: the tokenizer's template; raw: as it is.")
    end_token = text("end_token", END_OF_TURN, "The token that ends a response.")
    of_student: dict[str, Any] = {
        "compute_dtype": flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "Default: float32 on a CPU."),
        "tensor": whole("tensor", 1, "Devices over which heads and vocabulary are split.", 1),
        "slots": whole("slots", 16, "Responses that are decoded at a time.", 1),
    }
    of_pool: dict[str, Any] = {
        "url": text("pool.url", "", "Servers of one model, with commas between: they answer over HTTP."),
        "model": text("pool.model", "", "Its served name; default: the only one that is served."),
        "kind": flags.DEFINE_enum("pool.kind", "openai", ["openai", "sglang"], "openai: any OpenAI-compatible server."),
        "tokenizer": text("pool.tokenizer", "", "The model's tokenizer folder (kind sglang needs it)."),
        "concurrency": whole("pool.concurrency", 16, "Calls at a time to each server.", 1),
        "timeout": flags.DEFINE_float("pool.timeout", 1800.0, "Seconds for one call.", 0),
        "api_key": text("pool.api_key", "", "Environment variable that holds the key."),
    }

    def make(responses: str) -> Any:
        from cogpo_jax.evaluation.engines import PoolEngine, StudentEngine
        from crv.options import PoolOptions

        url = of_pool["url"].value
        given = [n for n, v in (("--model", model.value), ("--pool.url", url), ("--responses", responses)) if v]
        if len(given) != 1:
            raise UserError(
                f"--model, --pool.url, --responses: {' and '.join(given) or 'none'} given; give exactly one"
            )
        if model.value:
            text_format = TextFormat(prompt=form.value, end_token=end_token.value)
            fields = {name: flag.value for name, flag in of_student.items()}
            return StudentEngine(model.value, **fields, text_format=text_format)
        if not url:
            return None
        return PoolEngine(PoolOptions(**{name: flag.value for name, flag in of_pool.items()}))

    return make


def _compare(folders: list[str], common: bool, output: str | None) -> None:
    if len(folders) != 2:
        raise UserError(f"--compare: {','.join(folders)}: give two folders, as A,B")
    from cogpo_jax.atomic import write_json
    from cogpo_jax.evaluation.summary import compare, runs_in, sentence
    from cogpo_jax.progress import say
    from cogpo_jax.report.evaluations import write_page

    comparison = compare(folders[0], folders[1], common)
    for name, result in [*comparison["tasks"].items(), ("overall", comparison["overall"])]:
        say(f"{name}: {sentence(result)}")
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_json(Path(output, "comparison.json"), comparison)
        runs = [run for folder in folders for run in runs_in(folder).values()]
        write_page(Path(output, "report.html"), runs, comparison)
    print(json.dumps(comparison, ensure_ascii=False))
