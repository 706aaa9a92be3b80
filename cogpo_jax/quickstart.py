"""The quickstart: every stage as the command a person would type, run once, then its checks and the report."""

import hashlib
import importlib.util
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import crv
from cogpo_jax import config_files
from cogpo_jax.atomic import write_json
from cogpo_jax.errors import RunError
from cogpo_jax.progress import say
from cogpo_jax.report.run_files import MINI_TASKS, Training, heldout_table, read_training

# In a checkout configs and the folders of examples are links: a search from cogpo_jax would not enter them.
_EXAMPLES = sorted((config_files.PACKAGE / "examples").iterdir())
_CODE = (config_files.PACKAGE, config_files.CONFIGS, *_EXAMPLES, Path(crv.__path__[0]))
_SUFFIXES = (".py", ".toml", ".json", ".jsonl", ".txt", ".md", ".html")


@dataclass(frozen=True)
class Stage:
    """A command of `cogpo` with its flags, and the folder or file below the run that it writes (None: only prints).

    `salt` adds to what makes it stale.
    """

    name: str
    command: tuple[str, ...]
    output: str | None
    salt: str = ""


@dataclass(frozen=True)
class Finished:
    """What a stage left: its seconds, the last JSON line on its stdout, and whether it had been done before."""

    seconds: float
    result: dict[str, Any]
    skipped: bool


def run_stage(stage: Stage, run: Path, before: str) -> tuple[Finished, str]:
    """Runs a stage from the working folder unless it is done; returns what it left and its key.

    The key hashes the command, the project's code and the stages before (`before` is the last one's key). Output of
    another key is removed first; that of the same key is what the command goes on from. Raises RunError where it fails.
    """
    digest = hashlib.sha256(json.dumps([stage.name, stage.command, stage.salt, before]).encode())
    key = digest.hexdigest()
    marker = run / ".stages" / f"{stage.name}.json"
    old = json.loads(marker.read_text()) if marker.is_file() else {}
    output = run / stage.output if stage.output else None
    same = old.get("key") == key
    if same and old["done"] and (output is None or output.exists()):
        return Finished(old["seconds"], old["result"], skipped=True), key
    if output and not same:
        _remove(output)
    spent = old["seconds"] if same and not old["done"] else 0.0
    write_json(marker, {"key": key, "done": False, "seconds": spent, "result": {}})
    began = time.monotonic()
    try:
        result = _run(stage)
    finally:  # an interrupted stage goes on from here: its time counts
        seconds = spent + time.monotonic() - began
        write_json(marker, {"key": key, "done": False, "seconds": seconds, "result": {}})
    write_json(marker, {"key": key, "done": True, "seconds": seconds, "result": result})
    return Finished(seconds, result, skipped=False), key


def shown_command(stage: Stage) -> str:
    """The command as a person types it."""
    return shlex.join(("cogpo", *stage.command))


def code_digest(folders: Sequence[Path] = _CODE) -> str:
    """SHA-256 of the project's own files that decide what a stage computes."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _SUFFIXES):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(stage: Stage) -> dict[str, Any]:
    environment = {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    # stderr, with its progress bars, goes straight to the terminal.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cogpo_jax", *stage.command],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"stage {stage.name} failed with exit code {done.returncode}: {shown_command(stage)}")
    return _last_object(done.stdout.splitlines())


def _last_object(lines: Sequence[str]) -> dict[str, Any]:
    for line in reversed(lines):
        if line.startswith("{"):
            value = json.loads(line)
            return value if isinstance(value, dict) else {}
    return {}


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


LN2 = math.log(2)


def summarise(run: Path, results: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The summary of the run folder, from its files and from what each stage printed; `checks` say what passed."""
    sft, cogpo = read_training(run / "sft"), read_training(run / "cogpo")
    heldout = sft.evaluations[-1]
    summary = {
        "problems": {**results["crv"]["problems"], **_problems(cogpo, results)},
        "pairs": {gap: results["crv"]["pairs"].get(gap, 0) for gap in MINI_TASKS},
        "student": {"parameters": results["export"]["parameters"]},
        "sft": {
            **_losses(sft),
            "heldout_nll": heldout["heldout_nll"],
            "unigram_nll": heldout["unigram_nll"],
        },
        "cogpo": _losses(cogpo),
        "heldout": heldout_table(cogpo.pairs),
        "hf_max_logit_diff": results["compare"].get("max_logit_diff"),
        "seconds": {**seconds, "total": sum(seconds.values())},
    }
    summary["checks"] = checks(summary, cogpo.metrics[0], (run / "hf" / "chat_template.jinja").is_file())
    return summary


def checks(summary: Mapping[str, Any], first: Mapping[str, Any], chat_template: bool) -> list[dict[str, Any]]:
    """[{name, value, passed}], passed None where a check was skipped; `first` is the metrics line of CogPO's step 1."""
    sft, small = summary["sft"], summary["heldout"]["small"]
    margins = [abs(value) for value in first.get("margin", {}).values()]
    difference = summary["hf_max_logit_diff"]
    balanced, low = small["balanced_accuracy"], small["balanced_low"]
    seen = balanced is not None and low is not None
    return [
        _check("CogPO starts at loss ln 2", f"{first['loss']:.6f}", abs(first["loss"] - LN2) <= 1e-3),
        _check("CogPO starts with every margin 0", f"{max(margins, default=math.nan):g}", max(margins, default=1) == 0),
        _check(
            "SFT: held-out NLL at least 0.5 nats below the unigram's",
            f"{sft['heldout_nll']:.2f} against {sft['unigram_nll']:.2f}",
            sft["heldout_nll"] <= sft["unigram_nll"] - 0.5,
        ),
        _check(
            "at least 40 problems held out", str(summary["problems"]["heldout"]), summary["problems"]["heldout"] >= 40
        ),
        _check(
            "small gap: accuracy averaged over the two lengths at least 0.60, interval above 0.5",
            f"{balanced:.2f}, from {low:.2f}" if seen else "none",
            seen and balanced >= 0.6 and low > 0.5,
        ),
        _check("small gap: mean margin above 0.1 nats", f"{small['margin_nats']:.2f}", small["margin_nats"] > 0.1),
        _check(
            "transformers gives the same logits (at most 2e-4 apart)",
            "skipped: torch is not installed" if difference is None else f"{difference:.2g}",
            None if difference is None else difference <= 2e-4,
        ),
        _check("the exported tokenizer has its chat template", "yes" if chat_template else "no", chat_template),
    ]


def _check(name: str, value: str, passed: bool | None) -> dict[str, Any]:
    return {"name": name, "value": value, "passed": None if passed is None else bool(passed)}


def _losses(run: Training) -> dict[str, float]:
    return {"loss_first": run.metrics[0]["loss"], "loss_last": run.metrics[-1]["loss"]}


def _problems(cogpo: Training, results: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    heldout = {row["problem_id"] for row in cogpo.pairs}
    kept = results["crv"]["problems"]["total"] - results["crv"]["problems"].get("dropped", 0)
    return {"train": kept - len(heldout), "heldout": len(heldout)}


def stages(folder: str) -> list[Stage]:
    """The stages of quickstart.toml, with their outputs in `folder` (as given on the command line)."""
    table = tomllib.loads(Path(__file__).with_name("quickstart.toml").read_text(encoding="utf-8"))
    torch = "with torch" if importlib.util.find_spec("torch") else "without torch"
    found = []
    for name, stage in table.items():
        command = tuple(word.replace("{folder}", folder) for word in stage["command"].split())
        found.append(Stage(name, command, stage.get("output"), salt=torch if name == "compare" else ""))
    return found


def quickstart(folder: str) -> int:
    """Runs all stages from the working folder; 0 if every check passed.

    Writes summary.json and report.html into `folder`.
    """
    console, run = Console(), Path(folder)
    finished: dict[str, Finished] = {}
    key = code_digest()
    *todo, last = stages(folder)
    for number, stage in enumerate(todo, 1):
        console.rule(f"[bold]{number}/{len(todo) + 1} {stage.name}", align="left")
        console.print(shown_command(stage), style="dim", highlight=False, soft_wrap=True)
        finished[stage.name], key = run_stage(stage, run, key)
        console.print(_said(finished[stage.name]))
    results = {name: done.result for name, done in finished.items()}
    seconds = {name: done.seconds for name, done in finished.items()}
    write_json(run / "summary.json", summarise(run, results, seconds))
    console.rule(f"[bold]{len(todo) + 1}/{len(todo) + 1} {last.name}", align="left")
    (run / "report.html").unlink(missing_ok=True)  # cheap, and the summary it shows may be new
    seconds["report"] = run_stage(last, run, key)[0].seconds
    summary = summarise(run, results, seconds)
    write_json(run / "summary.json", summary)
    return _tell(console, summary, folder)


def _said(done: Finished) -> str:
    return f"done before, in {done.seconds:.0f} s" if done.skipped else f"done in {done.seconds:.0f} s"


def _tell(console: Console, summary: dict[str, Any], folder: str) -> int:
    words = {True: "[green]passed", False: "[red]failed", None: "[yellow]skipped"}
    table = Table("check", "value", "", title=f"quickstart, {summary['seconds']['total']:.0f} s", title_justify="left")
    for check in summary["checks"]:
        table.add_row(check["name"], check["value"], words[check["passed"]])
    console.print(table)
    console.print(f"The report: {folder}/report.html; the figures: {folder}/summary.json", highlight=False)
    return 1 if any(check["passed"] is False for check in summary["checks"]) else 0


def max_logit_difference(workdir: str | Path, hf_folder: str | Path, texts: list[str], length: int = 512) -> float:
    """Is the exported folder the student that was trained? Largest |difference| of float32 logits.

    Compared over the first `length` tokens of each text: the newest checkpoint of `workdir` beside `hf_folder` as
    transformers reads it, its tokenizer included. Needs torch.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    from flax import nnx
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cogpo_jax.sharding import make_mesh
    from cogpo_jax.student.model import ForwardOptions, graphdef_of
    from cogpo_jax.text import load_tokenizer
    from cogpo_jax.training.checkpoint import load_params

    own, theirs = load_tokenizer(Path(workdir) / "tokenizer"), AutoTokenizer.from_pretrained(hf_folder)
    model = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32).eval()
    mesh = make_mesh({"replica": 1, "data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    config, params, _ = load_params(workdir, mesh, "float32", say=say)

    @jax.jit
    def logits_of(params: Any, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
        student = nnx.merge(graphdef_of(config), params)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return student.logits(student(tokens, segment_ids, positions, ForwardOptions()))

    largest = 0.0
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"][:length]
        if ids != own(text, add_special_tokens=False)["input_ids"][:length]:
            raise ValueError(f"{hf_folder}: its tokenizer gives other ids than the training's for {text[:60]!r}")
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(logits_of(params, padded, np.int32(np.arange(length)[None] < len(ids))))
        largest = max(largest, float(np.abs(logits[0, : len(ids)] - expected).max()))
    return largest
