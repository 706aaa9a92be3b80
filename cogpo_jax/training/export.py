"""A run's checkpoint as a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import jax
from etils import epath

from cogpo_jax.errors import UserError
from cogpo_jax.progress import say
from cogpo_jax.sharding import make_mesh
from cogpo_jax.student.weights import PARAM_DTYPES, to_hf
from cogpo_jax.text import TextFormat, load_tokenizer, resolved
from cogpo_jax.training.initial import STUDENT_FILE, TOKENIZER_FOLDER, load_params


def export_checkpoint(
    workdir: str, output: str, *, step: int | None = None, dtype: str = "bfloat16", overwrite: bool = False
) -> dict[str, Any]:
    """Restores the newest undamaged checkpoint (or exactly `step`) on one device and writes it; returns what it wrote.

    Raises UserError where the workdir holds no such checkpoint, or the output exists.
    """
    if dtype not in PARAM_DTYPES:
        raise UserError(f"--dtype: {dtype!r}: must be one of {', '.join(PARAM_DTYPES)}")
    run = epath.Path(workdir)
    if not (run / STUDENT_FILE).is_file():
        raise UserError(f"--workdir: {workdir}: holds no {STUDENT_FILE}; give the workdir of a run of launch/train.py")
    target = epath.Path(output)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output: {output}: exists and is not empty; give another name, or --overwrite")
    tokenizer_folder = Path(run / TOKENIZER_FOLDER)
    text_format = TextFormat(**json.loads((run / "config.json").read_text())["text"])
    end_token = resolved(load_tokenizer(tokenizer_folder), text_format).end_token
    mesh = make_mesh({}, jax.devices()[:1])
    config, params, found = load_params(workdir, mesh, step=step, say=say)
    to_hf(config, params, output, dtype, tokenizer_folder, end_token=end_token, overwrite=overwrite)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return {"step": found, "output": output, "dtype": dtype, "parameters": parameters}
