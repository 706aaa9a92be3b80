"""Mutants of the student's rooms: each breaks a promise that the named test holds."""

_S, _T = "cogpo_jax/student", "tests/student"

MUTANTS = [
    (
        "a row's end is not seen: its slot decodes on",
        f"{_S}/decoding.py",
        "& (slots.made + 1 < slots.limit)",
        "& (slots.made + 9 < slots.limit)",
        f"{_T}/test_sampler.py::test_rows_come_as_they_finish_and_their_slots_are_filled_again",
    ),
    (
        "a repeated prompt is prefilled for every sample",
        f"{_S}/decoding.py",
        "if self._ready is None or any(",
        "if True or any(",
        f"{_T}/test_sampler.py::test_a_repeated_prompt_and_a_shared_prefix_are_computed_once",
    ),
    (
        "a query sees the index behind its own",
        f"{_S}/kv_cache.py",
        "visible = (i * BLOCK + jnp.arange(BLOCK)) <= last_seen[:, :, None]",
        "visible = (i * BLOCK + jnp.arange(BLOCK)) <= last_seen[:, :, None] + 1",
        f"{_T}/test_sampler.py::test_greedy_is_transformers_token_for_token",
    ),
    (
        "a row draws by its slot's step, not its own",
        f"{_S}/sampling.py",
        "return jax.vmap(draw)(keys, steps, logits)",
        "return jax.vmap(draw)(keys, steps * 0 + steps.max(), logits)",
        f"{_T}/test_sampler.py::test_a_repeated_prompt_and_a_shared_prefix_are_computed_once",
    ),
    (
        "an opened thought is opened again",
        "cogpo_jax/text.py",
        "body = body.lstrip()[begun.end() :]",
        "body = body.lstrip()",
        "tests/test_text.py::test_a_thought_that_the_prompt_opens_is_opened_once",
    ),
    (
        "other tags than the prompt's close its thought",
        "cogpo_jax/text.py",
        "if opened and thought and opened[1] != _TAGS.get(text_format.response):",
        "if False:",
        "tests/test_text.py::test_a_thought_in_other_tags_than_the_prompts_is_refused",
    ),
    (
        "a part of a head is turned",
        f"{_S}/config.py",
        'for partial in (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor")):',
        'for partial in (rope.get("partial_rotary_factor"),):',
        f"{_T}/test_student_config.py::test_what_would_be_computed_wrongly_is_refused_by_name",
    ),
    (
        "eos_token before the template's end of a turn",
        "cogpo_jax/text.py",
        "        if fitting:\n",
        "        if False:\n",
        "tests/test_text.py::test_the_end_token_is_found_where_the_default_is_none",
    ),
    (
        "a raw prompt drops its history",
        "cogpo_jax/text.py",
        'if system or turns != [{"role": "user", "content": prompt}]:',
        "if system:",
        "tests/test_text.py::test_a_raw_prompt_drops_nothing",
    ),
    (
        "an old index counts before a new single file",
        f"{_S}/hf_folder.py",
        "if (folder / SINGLE).is_file():\n        return",
        "if (folder / SINGLE).is_file() and not index_path.is_file():\n        return",
        f"{_T}/test_weights.py::test_a_single_file_counts_before_an_old_index",
    ),
    (
        "a bucket's replicas are downloaded again",
        f"{_S}/weights.py",
        "_once(reader) if remote else reader",
        "reader",
        f"{_T}/test_weights.py::test_every_byte_of_a_bucket_is_downloaded_once",
    ),
    (
        "config.json's eos_token_id is not looked at",
        f"{_S}/hf_folder.py",
        'if not ids and (folder / "config.json").is_file():',
        "if False:",
        f"{_T}/test_weights.py::test_an_end_of_text_in_config_json_alone_ends_a_text",
    ),
    (
        "Llama 3's ramp upside down",
        f"{_S}/layers.py",
        "keep = np.clip((turns - low) / (high - low), 0, 1)",
        "keep = np.clip((high - turns) / (high - low), 0, 1)",
        f"{_T}/test_student_config.py::test_llama3_frequencies_are_transformers",
    ),
    (
        "what other engines read in rope_scaling is dropped",
        f"{_S}/config.py",
        "**fields, **carried}",
        "**fields}",
        f"{_T}/test_student_config.py::test_what_other_engines_read_in_rope_scaling_is_carried",
    ),
]
