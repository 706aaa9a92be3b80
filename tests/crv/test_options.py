"""CRV's options: declared once, checked by their declaration."""

import dataclasses

import pytest

from cogpo_jax import config_files
from cogpo_jax.errors import UserError
from crv.config import default_config
from crv.options import AgentOptions, Options, differences


def config(**changes):
    c = default_config(Options)
    c.pool.recordings = "answers.jsonl"
    for name, value in changes.items():
        c[name] = value
    return c


@pytest.mark.parametrize("name", ["crv_recorded", "crv_sglang", "serve_pool"])
def test_every_field_says_what_it_means(name):
    fields = config_files.describe(name)
    assert len(fields) > 10
    assert [field.name for field in fields if len(field.comment) < 4] == []


def test_the_defaults_of_the_config_are_those_of_the_dataclass():
    expected = Options(pool=dataclasses.replace(Options().pool, recordings="answers.jsonl"))
    assert Options.from_config(config()) == expected
    assert Options.from_config({"pool": {"recordings": "answers.jsonl"}}) == expected, "what is missing has its default"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("limit", -1, "limit: -1: must be a whole number of at least 0"),
        ("limit", True, "limit: True: must be a whole number"),
        ("student", 5, "student: 5: must be a text"),
        ("judge", 1, "judge: 1: must be True or False"),
        ("balance", "even", "balance: 'even': must be none or weight or drop"),
        ("also", ("parquet",), "also: 'parquet': must be authors or datasets or array_record"),
        ("also", "authors", "also: 'authors': must be a tuple of texts"),
        ("hygiene", {"latin_share": 1.5}, "hygiene.latin_share: 1.5: must be a number of at least 0.0 and at most 1.0"),
        ("heldout", float("nan"), "heldout: nan: must be a number"),
        ("agents", {"poet": {}}, "agents.poet: there is no such one"),
        ("agents", {"critic": {"temprature": 0.0}}, "agents.critic.temprature: no such config field"),
        ("verifier", {"asked": 1, "needed": 2}, "verifier.needed: 2: more than verifier.asked"),
        ("partition", {"driver": 2, "drivers": 2}, "partition.driver: 2: must be below"),
        ("pool", {"kind": "openai"}, "pool.url: '': kind openai needs a URL"),
        (
            "pool",
            {"recordings": "a", "api_key": "sk-abc"},
            "pool.api_key: not a name: give the name",
        ),
        ("colour", "red", "colour: no such config field"),
    ],
)
def test_a_bad_field_is_named_with_what_would_be_right(field, value, complaint):
    rows = config().to_dict() | {field: value}
    with pytest.raises(UserError, match=complaint):
        Options.from_config(rows)


def test_an_agent_has_of_its_own_what_is_set_and_the_rest_from_all():
    c = config()
    c.agents.critic.temperature, c.agents.critic.url = 0.0, "http://critic:1"
    options = Options.from_config(c)
    assert options.agents == {"critic": AgentOptions(temperature=0.0, url="http://critic:1")}
    assert options.sampling_of("critic").temperature == 0.0
    assert options.sampling_of("critic").max_tokens == options.sampling.max_tokens
    assert (options.pool_of("critic").url, options.pool_of("critic").model) == ("http://critic:1", "recorded")
    assert options.pool_of("solver") == options.pool


def test_a_runs_identity_is_what_comes_out_not_where_or_how_fast():
    c = config()
    before = Options.from_config(c).identity()
    c.pool.url, c.pool.concurrency, c.problems_in_flight, c.grader.workers = "http://other:1", 3, 5, 7
    c.agents.critic.url = "http://critic:1"
    assert Options.from_config(c).identity() == before
    c.max_rounds = 9
    assert differences(before, Options.from_config(c).identity()) == ["max_rounds"]


def test_a_workdir_from_before_an_option_existed_still_belongs_to_its_config():
    mine = Options.from_config(config()).identity()
    older = {name: value for name, value in mine.items() if name != "balance"}
    assert differences(older, mine) == []
    assert differences(older, mine | {"balance": "drop"}) == ["balance"]
