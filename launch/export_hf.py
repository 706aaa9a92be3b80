"""Writes a checkpoint of a run as a Hugging Face folder: weights, config, tokenizer, chat template, generation config.

    python launch/export_hf.py --workdir=runs/cogpo --output=runs/hf [--step=400] [--dtype=float32] [--overwrite]

Runs on the CPU whatever the run was trained on; needs memory for the parameters once. The folder appears whole or not
at all. Prints one JSON object: step, output, dtype, parameters.
"""

import json
from pathlib import Path

from absl import flags

from cogpo_jax import cli
from cogpo_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run of launch/train.py.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to export; default: the newest undamaged one.", lower_bound=0)
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "bfloat16 | float32.")
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace an existing output folder.")


def main() -> None:
    for name, value in (("workdir", _WORKDIR.value), ("output", _OUTPUT.value)):
        if not value:
            raise UserError(f"--{name}: missing")
    if not Path(_WORKDIR.value).is_dir() and "://" not in _WORKDIR.value:
        raise UserError(f"--workdir: {_WORKDIR.value}: no such folder; give the workdir of a run of launch/train.py")
    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy with the run itself
    from cogpo_jax.training.export import export_checkpoint

    report = export_checkpoint(
        _WORKDIR.value, _OUTPUT.value, step=_STEP.value, dtype=_DTYPE.value, overwrite=_OVERWRITE.value
    )
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
