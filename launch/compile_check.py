"""Compiles a config's programs with the real TPU compiler, on any machine: does it fit, what does it cost?

    python launch/compile_check.py --config=configs/cogpo_tpu.py:7b --topology=v5p:2x2x4
    python launch/compile_check.py --config=configs/cogpo_tpu.py:1.5b --topology=v5e:4x4 --num_slices=2

Micro-step, apply and reference pass, as launch/train.py runs them. For each: peak HBM a chip and what is resident
beside it against the chip's, FLOPs per token counted in the program against the model's (attention's apart), what a
chip sends inside its slice (ici) and between slices (dcn), compile seconds. Table on stderr, one JSON object on stdout.
Exit code 1 where it does not fit, saying by how much and which settings would help; 2 for bad input. Needs libtpu
(requirements/tpu.txt), no TPU, no data and no weights.
"""

import json
import sys

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError
from cogpo_jax.tpu import topology

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "Slice by generation and shape, e.g. v5e:4x4 or v5p:4x4x4.")
NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices joined by the data-centre network (axis `replica`).")
PROGRAMS = flags.DEFINE_list("programs", "micro-step,apply,reference", "Which programs to compile.")
PRINT_SHARDINGS = flags.DEFINE_bool("print_shardings", False, "Also print where every parameter lives.")


def main() -> int:
    config = cli.load_config(CONFIG)
    if not TOPOLOGY.value:
        raise UserError("--topology: missing; give a slice such as v5e:4x4")
    chosen = topology.find(TOPOLOGY.value, NUM_SLICES.value)
    if chosen.num_slices > 1 and config.mesh.replica == 1:
        config.mesh.replica = chosen.num_slices
    if unknown := set(PROGRAMS.value) - {"micro-step", "apply", "reference"}:
        raise UserError(f"--programs: {unknown.pop()}: known are micro-step, apply, reference")
    topology.prepare()  # before jax is imported
    from cogpo_jax.tpu import check, programs

    if PRINT_SHARDINGS.value:
        print(programs.describe_state(config, chosen), file=sys.stderr)
    result = check.check(config, chosen, PROGRAMS.value, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(check.table(result), file=sys.stderr)
    print(json.dumps(check.to_json(result, config)))
    return 0 if result.fits else 1


if __name__ == "__main__":
    cli.run(main)
