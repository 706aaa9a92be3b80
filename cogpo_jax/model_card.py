"""What a published student says of itself: a model card, an Ollama Modelfile, and the way to a hub."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from etils import epath

from cogpo_jax import __version__
from cogpo_jax.atomic import is_remote, write_atomic
from cogpo_jax.errors import UserError
from cogpo_jax.records.shards import MANIFEST
from cogpo_jax.text import load_tokenizer

CARD, MODELFILE = "README.md", "Modelfile"
_TITLES = {"sft": "Supervised fine-tuning", "cogpo": "CogPO", "dpo": "DPO"}
_PROBE = (("system", "Probe system."), ("user", "Probe question?"), ("assistant", "Probe answer."), ("user", "Again?"))


@dataclass(frozen=True)
class Licences:
    """What the publisher states; empty: the card says that it is not stated. `base_model`: its name on a hub."""

    license: str = ""
    data_license: str = ""
    base_model: str = ""


def write_card(
    folder: str, workdir: str, report: Mapping[str, Any], licences: Licences, evaluations: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes README.md and, where the chat template is a known one, Modelfile into an exported folder.

    `report` is what export_checkpoint returned, `evaluations` are files of `cogpo evaluate`. Returns {card, modelfile},
    and `modelfile_reason` where there is no Modelfile. Raises UserError for an evaluation that cannot be read.
    """
    rows = [row for path in evaluations for row in _evaluation_rows(path)]
    stages = list(_stages(workdir))
    first, last = stages[0], json.loads((epath.Path(workdir) / "config.json").read_text())
    modelfile, reason = "", "the folder is remote" if is_remote(folder) else ""
    if not reason:
        modelfile, reason = ollama_modelfile(folder, last["text"]["end_token"])
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    base = epath.Path(first["base"])
    card = environment.from_string(source).render(
        license=licences.license,
        data_license=licences.data_license,
        base_model=licences.base_model,
        base_folder=base.name if first["base"] else "",
        name=epath.Path(folder).name,
        where=epath.Path(folder).name,
        parameters=f"{report['parameters']:,}",
        dtype=report["dtype"],
        step=report["step"],
        version=__version__,
        stages=stages,
        evaluations=rows,
        modelfile=modelfile,
        end_token=last["text"]["end_token"],
        thinks=last["text"]["response"] == "think",
    )
    write_atomic(epath.Path(folder) / CARD, card)
    if not modelfile:
        return {"card": CARD, "modelfile": None, "modelfile_reason": reason}
    write_atomic(epath.Path(folder) / MODELFILE, modelfile)
    return {"card": CARD, "modelfile": MODELFILE}


def _stages(workdir: str) -> Iterator[dict[str, Any]]:
    """What each run that led here did, the first one first; a run that is not there any more ends the chain."""
    config = json.loads((epath.Path(workdir) / "config.json").read_text())
    base = config["init_from"] or config["model"]
    if config["init_from"] and (epath.Path(base) / "checkpoints").is_dir():
        yield from _stages(base)
    done = epath.Path(workdir) / "done.json"
    beta = config["beta"]
    yield {
        "base": base,
        "objective": config["objective"],
        "title": _TITLES[config["objective"]],
        "data": _data(config["data"]),
        "steps": json.loads(done.read_text()).get("step", "") if done.is_file() else "not finished",
        "learning_rate": f"{config['optimizer']['learning_rate']:g}, {config['optimizer']['schedule']}",
        "row_length": f"{config['rows']['length']:,}",
        "betas": _betas(config["objective"], beta),
        "terms": ", ".join(f"{name} {value:g}" for name, value in config["loss"].items() if value),
        "commit": config.get("commit", ""),
    }


def _betas(objective: str, beta: Mapping[str, float]) -> str:
    if objective == "sft":
        return ""
    if objective == "dpo":
        return f"{beta['default']:g}"
    return ", ".join(f"{gap} {beta[gap]:g}" for gap in ("small", "medium", "large"))


def _data(folder: str) -> str:
    """A folder of records by its name, its counts, and the digest of its manifest."""
    manifest = epath.Path(folder) / MANIFEST
    if not manifest.is_file():
        return f"{epath.Path(folder).name} (not there when this card was written)"
    text = manifest.read_text()
    datasets = json.loads(text)["datasets"]
    counts = [f"{splits['train']['records']:,} {kind}" for kind, splits in datasets.items() if "train" in splits]
    return f"{epath.Path(folder).name}: {', '.join(counts)}; manifest {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _evaluation_rows(path: str) -> Iterator[dict[str, Any]]:
    try:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
        accuracy = summary["accuracy"]
        yield {
            "task": summary.get("task", Path(path).parent.name),
            "problems": summary["problems"],
            "samples": summary["samples"],
            "accuracy": f"{100 * accuracy['value']:.1f}%",
            "interval": f"{100 * accuracy['low']:.1f}% to {100 * accuracy['high']:.1f}%",
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--evaluation: {path}: not a summary.json of `cogpo evaluate` ({error!r})") from error


@dataclass(frozen=True)
class _Chat:
    """A chat template as Ollama writes it: what stands before a turn's content (`{}` is the role), and after it."""

    before: str
    after: str

    def text(self, turns: Sequence[tuple[str, str]]) -> str:
        said = "".join(self.before.format(role) + content + self.after for role, content in turns)
        return said + self.before.format("assistant")

    def go(self) -> str:
        turn = self.before.format("{{ .Role }}") + "{{ .Content }}" + self.after
        return "{{- range .Messages }}" + turn + "{{ end }}" + self.before.format("assistant")


# By the special tokens that the turns of Qwen2, Qwen2.5, Qwen3 and SmolLM2, and those of Llama 3, are written with.
_CHATS = (
    _Chat("<|im_start|>{}\n", "<|im_end|>\n"),
    _Chat("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
)


def ollama_modelfile(folder: str, end_token: str) -> tuple[str, str]:
    """(Modelfile, "") of an exported folder, or ("", why not): only for a template that is known turn by turn.

    The folder's own template renders a probe; a chat form that does not give the same text is not taken.
    """
    tokenizer = load_tokenizer(folder)
    if not getattr(tokenizer, "chat_template", None):
        return "", "the tokenizer has no chat template"
    chat = next((c for c in _CHATS if _rendered(tokenizer, _PROBE) == c.text(_PROBE)), None)
    if chat is None:
        return "", "the chat template is none that is known here (ChatML, Llama 3)"
    plain = _rendered(tokenizer, _PROBE[1:2])
    # What stands before the first turn where nobody gives a system message: the template's own.
    own = plain.removesuffix(chat.text(_PROBE[1:2]))
    head, tail = chat.before.format("system"), chat.after
    if own == plain or (own and not (own.startswith(head) and own.endswith(tail))):
        return "", "the chat template adds something of its own before the first turn"
    system = own[len(head) : len(own) - len(tail)] if own else ""
    if '"""' in system:
        return "", 'the template\'s system message holds """'
    lines = ["FROM .", f'TEMPLATE """{chat.go()}"""']
    lines += [f'SYSTEM """{system}"""'] if system else []
    stops = dict.fromkeys([end_token, chat.after.strip()])
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n", ""


def _rendered(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return text.removeprefix(tokenizer.bos_token or "")  # Ollama adds it by itself


def push_to_hub(folder: str, name: str, *, private: bool, dry_run: bool) -> dict[str, Any]:
    """Uploads an exported folder as repository `name` (`owner/model`); dry_run: only says what would go there.

    The hub's client finds the token (HF_TOKEN, or `hf auth login`). Raises UserError for a bad name, or where the hub
    refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if is_remote(folder):
        raise UserError(f"--push_to_hub: {folder}: must be a local folder; export there first")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub: {name}: {error}") from error
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(Path(folder).rglob("*")) if p.is_file()}
    if not dry_run:
        api = HfApi()
        try:
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"cogpo-jax {__version__}")
        except (HfHubHTTPError, OSError) as error:
            raise UserError(f"--push_to_hub: {name}: {' '.join(str(error).split())}") from error
    return {"repository": name, "private": private, "pushed": not dry_run, "files": files}
