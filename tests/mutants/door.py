"""Mutants of the command line, configs, tracking and the model card: each breaks what its test promises."""

MUTANTS = [
    (
        "a shipped config's files are looked for in the working folder only",
        "cogpo_jax/config_files.py",
        "    return str(PACKAGE / path) if ours and (PACKAGE / path).exists() else path",
        "    return path",
        "tests/test_cli.py::test_a_shipped_config_and_its_files_are_found_from_any_folder",
    ),
    (
        "the first setting of a field is shown as its place",
        "cogpo_jax/config_files.py",
        '        where = found[-1][0] if found else ""',
        '        where = found[0][0] if found else ""',
        "tests/test_cli.py::test_the_place_is_that_of_the_last_setting",
    ),
    (
        "a run that goes on gets a new id",
        "cogpo_jax/tracking.py",
        "        ids = json.loads(path.read_text()) if path.exists() else {}",
        "        ids: dict[str, str] = {}",
        "tests/test_tracking.py::test_a_run_that_goes_on_keeps_its_id_and_another_has_another",
    ),
    (
        "a dry run pushes",
        "cogpo_jax/model_card.py",
        "    if not dry_run:",
        "    if True:",
        "tests/test_model_card.py::test_a_dry_run_lists_the_files_and_reaches_no_hub",
    ),
    (
        "any template is taken for ChatML",
        "cogpo_jax/model_card.py",
        "    chat = next((c for c in _CHATS if _rendered(tokenizer, _PROBE) == c.text(_PROBE)), None)",
        "    chat = _CHATS[0]",
        "tests/test_model_card.py::test_a_template_that_is_not_known_gives_no_modelfile_and_says_why",
    ),
    (
        "the training's end token is no stop",
        "cogpo_jax/model_card.py",
        "    stops = dict.fromkeys([end_token, chat.after.strip()])",
        "    stops = dict.fromkeys([chat.after.strip()])",
        "tests/test_model_card.py::test_the_end_token_of_training_stops_too",
    ),
    (
        "the first field of the command line is named, whether it is there or not",
        "cogpo_jax/cli.py",
        "            if not isinstance(node, config_dict.ConfigDict) or part not in node:",
        "            if True:",
        "tests/test_cli.py::test_of_the_fields_given_the_one_that_is_not_there_is_named[config0]",
    ),
    (
        "an error in a person's config file is a traceback",
        "cogpo_jax/config_files.py",
        "    except Exception as error:  # whatever a person's file raises",
        "    except ValueError as error:  # whatever a person's file raises",
        "tests/test_cli.py::test_what_is_wrong_with_ones_own_config_file_is_said",
    ),
]
