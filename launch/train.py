"""Trains a student: SFT, CogPO or DPO, by `config.objective`; the same command again goes on where it stopped.

    python launch/train.py --config=configs/tiny_cpu.py --config.data=DATA --config.tokenizer=DIR --workdir=runs/tiny
    python launch/train.py --config=configs/cogpo_tpu.py:7b --config.data=DATA --config.init_from=SFT --workdir=gs://...

All fields stand, with their meaning, in configs/tiny_cpu.py. Leaves in the workdir: checkpoints/, metrics.jsonl (one
object a step), eval.jsonl and eval_pairs.jsonl (held-out), plan.json (what was dropped), tensorboard/, done.json.
"""

import json

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.training import settings

CONFIG = cli.define_config()
PRINT_SHARDINGS = flags.DEFINE_bool("print_shardings", False, "Print where every parameter and Adam moment lives.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same folder again goes on with it.")
EXIT_CODE_IF_STOPPED = flags.DEFINE_integer(
    "exit_code_if_stopped",
    0,
    "Exit code where SIGTERM or a preemption stopped the run before its last step. Schedulers that restart only what "
    "failed (a Kubernetes Job) need another than 0.",
    lower_bound=0,
    upper_bound=255,
)


def main() -> int:
    config = cli.load_config(CONFIG)
    if not WORKDIR.value:
        raise UserError("--workdir: missing; give the folder that the run shall live in")
    settings.check(config)  # before jax is imported: a mistyped field should not wait for an accelerator
    from cogpo_jax.training.train import train

    result = train(config, WORKDIR.value, print_shardings=PRINT_SHARDINGS.value)
    print(json.dumps(result))
    return 0 if result["finished"] else EXIT_CODE_IF_STOPPED.value


if __name__ == "__main__":
    cli.run(main)
