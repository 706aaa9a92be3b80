"""An exported student says where it comes from and how it is run, and goes to a hub only when told to."""

import json
from pathlib import Path

import pytest

from cogpo_jax import model_card
from cogpo_jax.configs import tiny_cpu
from cogpo_jax.errors import UserError
from cogpo_jax.model_card import Licences, ollama_modelfile, push_to_hub, write_card
from cogpo_jax.text import train_tokenizer

DATA = Path(__file__).parent / "data"
REPORT = {"step": 9, "dtype": "bfloat16", "parameters": 1234567}


@pytest.fixture
def folder(tmp_path):
    train_tokenizer(["the cat sat on the mat, the hat on the cat"] * 3, tmp_path / "hf", 272)
    return tmp_path / "hf"


def workdir(place, **fields):
    config = tiny_cpu.get_config()
    config.update_from_flattened_dict(fields)
    (place / "checkpoints").mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config.to_dict()))
    (place / "done.json").write_text('{"step": 9, "finished": true}')
    return str(place)


def card(folder, run, licences=None, evaluations=()):
    write_card(str(folder), run, REPORT, licences or Licences(), evaluations)
    return (folder / "README.md").read_text()


def test_the_card_tells_every_stage_its_data_and_betas(folder, tmp_path):
    (tmp_path / "crv").mkdir()
    (tmp_path / "crv" / "manifest.json").write_text('{"datasets": {"groups": {"train": {"records": 2500}}}}')
    data = str(tmp_path / "crv")
    sft = workdir(tmp_path / "sft", objective="sft", init_from="/models/Qwen2.5-1.5B-Instruct", data=data)
    run = workdir(tmp_path / "run", init_from=sft, data=data, **{"beta.small": 0.3, "loss.displacement_penalty": 1.0})
    text = card(folder, run)
    assert text.index("1. Supervised fine-tuning") < text.index("2. CogPO")
    assert "| base model | Qwen2.5-1.5B-Instruct |" in text
    assert "| data | crv: 2,500 groups; manifest d6a0179138789544 |" in text
    assert "| beta by gap | small 0.3, medium 0.2, large 0.5 |" in text
    assert "| further terms of the loss | displacement_penalty 1 |" in text
    assert "| license of this model | not stated" in text


def test_the_cards_head_holds_what_a_hub_reads(folder, tmp_path):
    run = workdir(tmp_path / "run")
    head = card(folder, run, Licences("apache-2.0", "mit", "Qwen/Qwen2.5-0.5B")).split("---\n")[1]
    assert "license: apache-2.0\nbase_model: Qwen/Qwen2.5-0.5B\n" in head
    assert "license" not in card(folder, run).split("---\n")[1]


def test_an_evaluation_stands_with_its_interval(folder, tmp_path):
    summary = {
        "task": "gsm8k",
        "problems": 1319,
        "samples": 1319,
        "accuracy": {"value": 0.5, "low": 0.473, "high": 0.527},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    run = workdir(tmp_path / "run")
    assert "| gsm8k | 1319 | 1319 | 50.0% | 47.3% to 52.7% |" in card(
        folder, run, evaluations=[tmp_path / "summary.json"]
    )
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="not a summary"):
        card(folder, run, evaluations=[tmp_path / "summary.json"])


@pytest.mark.parametrize(
    ("template", "system"), [("qwen2.5", "You are Qwen, created by Alibaba Cloud. "), ("qwen3", "")]
)
def test_a_modelfile_has_the_templates_turns_system_message_and_stop(folder, template, system):
    (folder / "chat_template.jinja").write_text((DATA / template / "chat_template.jinja").read_text())
    text, reason = ollama_modelfile(str(folder), "<|im_end|>")
    assert reason == ""
    assert text.startswith(
        'FROM .\nTEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}'
        '<|im_start|>assistant\n"""\n'
    )
    assert text.endswith('PARAMETER stop "<|im_end|>"\n')
    assert (f'SYSTEM """{system}' in text) == bool(system)
    assert ("SYSTEM" in text) == bool(system)


def test_the_end_token_of_training_stops_too(folder):
    assert 'PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"' in ollama_modelfile(folder, "<|endoftext|>")[0]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", "none that is known"),
        (
            "{% if messages|length == 1 %}Today is Friday.{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
            "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}",
            "of its own",
        ),
    ],
)
def test_a_template_that_is_not_known_gives_no_modelfile_and_says_why(folder, tmp_path, template, why):
    (folder / "chat_template.jinja").write_text(template)
    said = write_card(str(folder), workdir(tmp_path / "run"), REPORT, Licences())
    assert said["modelfile"] is None
    assert why in said["modelfile_reason"]
    assert not (folder / "Modelfile").exists()
    assert "Ollama" not in (folder / "README.md").read_text()


class Hub:
    """Stands for huggingface_hub.HfApi: keeps what it was told."""

    said = ()

    def create_repo(self, name, **options):
        Hub.said = [("create", name, options["private"])]

    def upload_folder(self, repo_id, folder_path, **_):
        Hub.said.append(("upload", repo_id, sorted(p.name for p in Path(folder_path).iterdir())))


def test_a_dry_run_lists_the_files_and_reaches_no_hub(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("a dry run asks no hub"))
    said = push_to_hub(str(folder), "me/student", private=True, dry_run=True)
    assert (said["repository"], said["pushed"]) == ("me/student", False)
    assert said["files"]["tokenizer.json"] == (folder / "tokenizer.json").stat().st_size


def test_a_push_makes_the_repository_and_uploads_the_folder(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push_to_hub(str(folder), "me/student", private=True, dry_run=False)["pushed"]
    assert Hub.said == [
        ("create", "me/student", True),
        ("upload", "me/student", sorted(p.name for p in folder.iterdir())),
    ]


def test_a_bad_repository_name_is_refused(folder):
    with pytest.raises(UserError, match="--push_to_hub: a/b/c"):
        push_to_hub(str(folder), "a/b/c", private=True, dry_run=True)


def test_every_known_chat_form_renders_as_its_go_template_says():
    for chat in model_card._CHATS:
        turn = chat.go().partition("{{- range .Messages }}")[2].partition("{{ end }}")[0]
        said = turn.replace("{{ .Role }}", "user").replace("{{ .Content }}", "Hello")
        assert said + chat.go().partition("{{ end }}")[2] == chat.text([("user", "Hello")])
