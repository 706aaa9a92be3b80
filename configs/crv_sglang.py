"""CRV on a pool of SGLang servers (launch/serve_pool.py), or on any OpenAI-compatible server (pool.kind=openai).

    python launch/crv.py --config=configs/crv_sglang.py --workdir=DIR \\
        --config.input=problems.jsonl --config.pool.url=http://127.0.0.1:30000 --config.pool.tokenizer=MODEL_FOLDER

A problem costs about 7 calls: a critique, 1.3 rethinks, 3 to 4 blind re-solves, a corruption.
"""

from ml_collections import config_dict

from crv.config import default_config
from crv.options import Options


def get_config() -> config_dict.ConfigDict:
    """Every field at its default (crv/options.py explains them), but a real pool and the stricter verifier."""
    c = default_config(Options)
    c.input = ""  # must be given
    c.student = "a model with 1.5 billion parameters"

    c.pool.kind = "sglang"
    c.pool.url = "http://127.0.0.1:30000"
    c.pool.model = "teacher"
    c.pool.tokenizer = ""  # must be given: the served model's own folder
    c.pool.concurrency = 512
    c.problems_in_flight = 1024

    c.sampling.max_tokens = 8192  # output tokens a call
    c.agents.critic.temperature, c.agents.critic.max_tokens = 0.0, 512
    c.agents.verifier.temperature, c.agents.verifier.max_tokens = 0.6, 2048
    c.agents.judge.temperature, c.agents.judge.max_tokens = 0.0, 64

    c.hygiene.repair = True
    c.hygiene.duplicates, c.hygiene.near_duplicates = True, 0.85

    c.recritique = True
    c.solver.attempts, c.solver.for_wrong = 2, 2
    c.judge = True
    c.verifier.asked, c.verifier.needed = 4, 3
    c.corrupter.attempts = 2

    c.heldout = 0.02  # share of the problems
    c.shards = 16
    c.grader.workers = 4
    return c
