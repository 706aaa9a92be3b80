"""CogPO here against the DPO trainers of TRL and Tunix: the same pairs, the same model, the same machine, one go.

    python benchmarks/against_peers.py                                            # 64 GSM8K triangles, 192 pairs
    python benchmarks/against_peers.py --pairs=benchmarks/data/long_cot_pairs.jsonl.xz --row_length=4096 \
        --trl_batch=1 --trl_length=4096 --peers=trl_live,trl_precomputed --problems=8 --groups=8

Makes an environment for each peer, pinned by benchmarks/peers/*.txt, under --cache (once, 3 GB). The model has 4 layers
of width 256 and Qwen2.5's vocabulary of 151,936, float32; the tokenizer is Qwen2.5's. Everyone trains with AdamW and
pays for the reference's log-probs of the pairs that are counted: ours and TRL's `precomputed` once, TRL's `live` and
Tunix in each step. What compiles or warms up is not counted.

Ours trains on all pairs, as groups (or on the first `--steps` steps of them); a peer on `--peer_pairs` of them, drawn
by a seed, in steps of its batch, the first of which is its warm-up. With `--problems` all of them train on the pairs
of the same problems, drawn by a seed: what counts where lengths differ much. In each of `--rounds` ours runs before
every peer and once more at the end, so that a busy machine slows all of them alike; ratios are given in wall time and
in CPU time (user and system), which other work on the machine moves less. A peer that would need more memory than is
free fails alone: it runs under a limit.
Prints a table, and one JSON line.
"""

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import shipped
from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.progress import say
from cogpo_jax.records import read_groups
from cogpo_jax.records.convert import ConvertOptions, convert_pairs
from cogpo_jax.text import TextFormat, response_text

HERE = Path(__file__).parent
PEERS = ("trl_live", "trl_precomputed", "tunix")

PAIRS = flags.DEFINE_string("pairs", str(shipped.PAIRS), "Flat preference rows, JSONL or JSONL.xz.")
CACHE = flags.DEFINE_string("cache", "~/.cache/cogpo-jax/peers", "Where the peers' environments are kept.")
WHICH = flags.DEFINE_list("peers", ",".join(PEERS), "Which peers, of the three.")
ROUNDS = flags.DEFINE_integer("rounds", 1, "How often each runs.")
PROBLEMS = flags.DEFINE_integer("problems", 0, "Only the pairs of so many problems, for ours and the peers; 0: all.")
PEER_PAIRS = flags.DEFINE_integer("peer_pairs", 0, "Pairs that a peer trains on in each round; 0: all.")
GROUPS = flags.DEFINE_integer("groups", 32, "Ours: groups per optimizer step.")
STEPS = flags.DEFINE_integer("steps", 0, "Ours: optimizer steps; 0: all.")
ROW_LENGTH = flags.DEFINE_integer("row_length", 1536, "Ours: tokens per row, two rows at a time.")
TRL_BATCH = flags.DEFINE_integer("trl_batch", 4, "TRL: pairs per step.")
TRL_LENGTH = flags.DEFINE_integer("trl_length", 1024, "TRL: longer sequences are cut, which saves it work.")
TUNIX_BATCH = flags.DEFINE_integer("tunix_batch", 4, "Tunix: pairs per step.")
TUNIX_LENGTHS = flags.DEFINE_list("tunix_lengths", "256,768", "Tunix: tokens of prompt and response; longer are cut.")

_MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_MAKE_MODEL = """
import sys
from cogpo_jax.student.config import StudentConfig
from cogpo_jax.student.model import init_params
from cogpo_jax.student.weights import to_hf
config = StudentConfig.from_hf(sys.argv[1])
to_hf(config, init_params(config, 0), sys.argv[2], "float32", sys.argv[3])
"""


def environment(name: str) -> Path:
    """The Python of a peer's environment, made or renewed where its pins have changed."""
    pins = HERE / "peers" / f"{name}.txt"
    folder = Path(CACHE.value).expanduser() / name
    stamp, digest = folder / "stamp", hashlib.sha256(pins.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != digest:
        say(f"installing {pins.name} into {folder} (minutes, once)")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", pins], check=True)
        stamp.write_text(digest)
    return python


def prepare(folder: Path) -> None:
    """Records for ours, flat pairs with the very same texts for the peers, tokenizer and model, all in `folder`."""
    if not Path(PAIRS.value).is_file():
        raise UserError(f"--pairs: {PAIRS.value}: no such file; give JSONL rows of prompt, chosen, rejected")
    given = shipped.unpack(Path(PAIRS.value), folder / "given.jsonl")
    if PROBLEMS.value:
        keep_problems(given, PROBLEMS.value)
    convert_pairs(str(given), str(folder / "records"), ConvertOptions())
    plain = TextFormat(response="plain")
    rows = []
    for group in read_groups(folder / "records"):
        texts = [response_text(r.thought, r.solution, r.text, text_format=plain) for r in group.responses]
        rows += [
            {"prompt": group.prompt, "chosen": texts[p.chosen], "rejected": texts[p.rejected]} for p in group.pairs
        ]
    random.Random(0).shuffle(rows)
    chosen = rows[: PEER_PAIRS.value or len(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    tokenizer = shipped.unpack(shipped.TOKENIZER, folder / "tokenizer")
    (folder / "model.json").write_text(json.dumps(_MODEL))
    # In a process of its own: this one never starts jax.
    subprocess.run([sys.executable, "-c", _MAKE_MODEL, folder / "model.json", folder / "hf", tokenizer], check=True)


def keep_problems(file: Path, count: int) -> None:
    """Leaves only the rows of `count` prompts in a file of flat rows."""
    lines = file.read_text().splitlines(keepends=True)
    prompts = [json.loads(line)["prompt"] for line in lines]
    kept = set(random.Random(0).sample(sorted(set(prompts)), count))
    file.write_text("".join(line for line, prompt in zip(lines, prompts, strict=True) if prompt in kept))


def command(name: str, folder: Path) -> list[str]:
    """What runs one trainer and prints its JSON line."""
    if name == "ours":
        config = {
            "data": folder / "records",
            "init_from": folder / "hf",
            "batch.groups": GROUPS.value,
            "rows.length": ROW_LENGTH.value,
            "rows.per_device": 2,
            "rows.shapes": 1,
            "compile_cache.dir": folder / "compiled",  # compiled in the first round, read in the others
            "text.response": "plain",
            "logits_chunk": 256,
            "remat": "full",
        }
        fields = [f"--config.{field}={value}" for field, value in config.items()]
        return [sys.executable, str(HERE / "train_step.py"), f"--steps={STEPS.value}", *fields]
    shared = [f"--pairs={folder / 'pairs.jsonl'}", f"--model={folder / 'hf'}"]
    if name == "tunix":
        prompt, response = TUNIX_LENGTHS.value
        sizes = [f"--batch={TUNIX_BATCH.value}", f"--prompt_length={prompt}", f"--response_length={response}"]
        return [str(environment("tunix")), str(HERE / "peers" / "tunix_dpo.py"), *shared, *sizes]
    sizes = [f"--batch={TRL_BATCH.value}", f"--max_length={TRL_LENGTH.value}", f"--reference={name[4:]}"]
    return [str(environment("trl")), str(HERE / "peers" / "trl_dpo.py"), *shared, *sizes]


def free_memory() -> int:
    """Bytes that can be had without pressing others."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/meminfo: says no MemAvailable: this benchmark runs on Linux")


def run(name: str, folder: Path) -> dict[str, Any]:
    """One run's measurements; {"failed": last line of what it said} where it did not finish."""
    limit = free_memory() - 2**30
    say(f"{name} ... (memory limit {limit / 1e9:.1f} GB)")
    # Caches of datasets and log-probs go into the run's own folder: nothing is free because an earlier run paid for it.
    with tempfile.TemporaryDirectory(dir=folder) as own:
        done = subprocess.run(
            command(name, folder),
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(shipped.ROOT),
                "HF_HOME": own,
                "HF_HUB_OFFLINE": "1",
                "JAX_PLATFORMS": "cpu",
                "MALLOC_ARENA_MAX": "2",  # else glibc keeps an arena for every thread that compiled
            },
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        say(f"{name} failed: {said[-1]}")
        return {"failed": said[-1][:300]}
    say(f"{name}: {lines[-1]}")
    return json.loads(lines[-1])


def total(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds of one trainer together: rates over all of them, the highest peak."""
    good = [r for r in runs if "failed" not in r]
    if not good:
        return {"failed": runs[0]["failed"]}
    pairs = sum(r["pairs"] for r in good)
    return {
        "pairs": pairs,
        "pairs_per_second": pairs / sum(r["seconds"] for r in good),
        "pairs_per_cpu_second": pairs / sum(r["cpu_seconds"] for r in good),
        "peak_rss_gb": max(r["peak_rss_gb"] for r in good),
        "first_loss": good[0]["first_loss"],
        "runs": len(good),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as lines of text."""
    lines = [f"{'':18}{'pairs/s':>10}{'pairs/CPU-s':>13}{'peak GB':>9}{'ours: wall':>12}{'CPU':>8}{'first loss':>12}"]
    for name, r in results.items():
        if "failed" in r:
            lines.append(f"{name:18}failed: {r['failed']}")
            continue
        ratios = r.get("ours_faster", {"wall": 1.0, "cpu": 1.0})
        lines.append(
            f"{name:18}{r['pairs_per_second']:10.4f}{r['pairs_per_cpu_second']:13.4f}{r['peak_rss_gb']:9.2f}"
            f"{ratios['wall']:11.1f}x{ratios['cpu']:7.1f}x{r['first_loss']:12.6f}"
        )
    return "\n".join(lines)


def main() -> int:
    unknown = [name for name in WHICH.value if name not in PEERS]
    if unknown:
        raise UserError(f"--peers: {unknown[0]}: known are {', '.join(PEERS)}")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *WHICH.value)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        for name in WHICH.value:
            command(name, folder)  # environments first: installing would disturb the clock
        for _ in range(ROUNDS.value):
            for name in WHICH.value:
                runs["ours"].append(run("ours", folder))
                runs[name].append(run(name, folder))
        runs["ours"].append(run("ours", folder))
    results = {name: total(of) for name, of in runs.items()}
    ours = results["ours"]
    for name, r in results.items():
        if name != "ours" and "failed" not in r and "failed" not in ours:
            r["ours_faster"] = {
                "wall": ours["pairs_per_second"] / r["pairs_per_second"],
                "cpu": ours["pairs_per_cpu_second"] / r["pairs_per_cpu_second"],
            }
    print(table(results), file=sys.stderr)
    print(json.dumps({"pairs": PAIRS.value, "cores": os.cpu_count(), "load": os.getloadavg()[0], "results": results}))
    return 1 if any("failed" in r for r in results.values()) else 0


if __name__ == "__main__":
    cli.run(main)
