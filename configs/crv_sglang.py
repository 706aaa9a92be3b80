"""CRV on a pool of SGLang servers (launch/serve_pool.py), or on any OpenAI-compatible server (pool.kind=openai).

    python launch/crv.py --config=configs/crv_sglang.py --workdir=DIR \\
        --config.input=problems.jsonl --config.pool.url=http://127.0.0.1:30000 --config.pool.tokenizer=MODEL_FOLDER

A problem costs about 7 calls: a critique, 1.3 rethinks, 3 to 4 blind re-solves, a corruption.
"""

import importlib.util
from pathlib import Path

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """configs/crv_recorded.py, which explains the fields, with a real pool and the stricter verifier."""
    spec = importlib.util.spec_from_file_location("crv_recorded", Path(__file__).with_name("crv_recorded.py"))
    assert spec is not None
    assert spec.loader is not None
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    c: config_dict.ConfigDict = base.get_config()
    c.input = ""
    c.student = "a model with 1.5 billion parameters"
    c.pool.kind = "sglang"
    c.pool.url = "http://127.0.0.1:30000"
    c.pool.model = "teacher"
    c.pool.tokenizer = ""  # must be given: the served model's own folder
    c.pool.recordings = ""
    c.pool.concurrency = 512
    c.sampling.max_tokens = 8192
    c.agents.critic = config_dict.ConfigDict({"temperature": 0.0, "max_tokens": 512})
    c.agents.verifier = config_dict.ConfigDict({"temperature": 0.6, "max_tokens": 2048})
    c.hygiene.repair = True
    c.hygiene.duplicates, c.hygiene.near_duplicates = True, 0.85
    c.recritique = True
    c.solver.attempts, c.solver.for_wrong = 2, 2
    c.judge = True
    c.agents.judge = config_dict.ConfigDict({"temperature": 0.0, "max_tokens": 64})
    c.verifier.asked, c.verifier.needed = 4, 3
    c.corrupter.attempts = 2
    c.heldout = 0.02
    c.shards = 16
    c.problems_in_flight = 1024
    c.grader.workers = 4
    return c
