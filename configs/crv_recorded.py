"""CRV on the shipped problems, with answers replayed from a file: no server, no GPU, no network.

    python launch/crv.py --config=configs/crv_recorded.py --workdir=runs/crv

Cost: seconds on a laptop. Result: 218 problems, of which 199 triangles and 11 fitting originals in `groups/`, and 210
chains of thought in `sft/`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The config; every field has its unit or choices beside it."""
    c = config_dict.ConfigDict()
    c.input = "examples/math_cots/problems.jsonl"  # JSONL file or hf:NAME[:SPLIT], see crv/problems.py
    c.limit = 0  # problems from the start of the input; 0 = all
    c.sample = 0  # a pilot: so many problems drawn from all of the input, with a forecast for the rest; 0 = off
    c.seed = 0  # of sampling and of the held-out split
    c.student = "a small language model"  # for whom the critic judges, in the prompt's words
    c.prompts = "default"  # default | authors | a folder of prompt files

    c.pool = config_dict.ConfigDict()
    c.pool.kind = "recorded"  # recorded | sglang | openai
    c.pool.url = ""  # of the router or server (sglang, openai); or of several workers, with commas between
    c.pool.recordings = "examples/math_cots/recordings.jsonl"  # recorded: the file of answers
    c.pool.model = "recorded"  # the model's name; part of every call's key
    c.pool.tokenizer = ""  # sglang: tokenizer folder that renders prompts, the server's own
    c.pool.weights = ""  # sglang: the weight version that the server must have; empty: any
    c.pool.context = 0  # sglang: tokens of context, prompt and answer; 0 = the server's
    c.pool.api_key = ""  # openai: name of the environment variable that holds the key
    c.pool.concurrency = 64  # most requests in flight, to each URL
    c.pool.timeout = 600.0  # seconds a call may take
    c.pool.gpus = 0  # behind the pool: for the count of GPU-hours
    c.pool.retries = 8  # per call, on errors of server or network

    c.sampling = config_dict.ConfigDict()
    c.sampling.temperature = 0.7
    c.sampling.top_p = 0.95
    c.sampling.max_tokens = 4096  # output tokens a call
    c.agents = config_dict.ConfigDict()  # own model, url, tokenizer, temperature, ... of an agent

    c.max_rounds = 3  # rethinks of a problem before it is dropped
    c.recritique = False  # whether a rewrite must be judged medium again
    c.asks = 3  # times a question is asked while its answer is unusable (cut off, empty, unparsable)
    # Solutions asked for where the original is missing or wrong; further ones in search of a natural wrong text.
    c.solver = config_dict.ConfigDict({"attempts": 1, "for_wrong": 0})
    c.judge = False  # a model may call answers the same that no rule can compare (it never proves a text wrong)
    # Answer-blind re-solves of a rewrite: k needed of n; brief: the output may only be the final statement.
    c.verifier = config_dict.ConfigDict({"asked": 1, "needed": 1, "brief": False})
    c.corrupter = config_dict.ConfigDict({"attempts": 1})  # tries at a wrong text that is proved wrong

    c.hygiene = config_dict.ConfigDict()  # what is dropped before any call, counted by reason
    c.hygiene.repair = False  # text that lost its backslashes (a tab and "imes" for \times) is mended, and counted
    c.hygiene.duplicates = False  # problems equal but for case, spaces and dollars: the first stays
    c.hygiene.near_duplicates = 0.0  # Jaccard similarity of 5-gram shingles from which a problem is repeated; 0 = off
    c.hygiene.against = ()  # evaluation sets, as `input` or questions without answers: overlapping problems are dropped
    c.hygiene.ngram = 8  # tokens in a row that an overlapping problem shares (words, numbers, symbols)
    c.hygiene.template_share = 0.0  # 0.3 also finds the same question with other numbers (and more innocents); 0 = off
    c.hygiene.min_characters = 0
    c.hygiene.max_characters = 0  # 0 = no limit
    c.hygiene.latin_share = 0.0  # least share of Latin letters outside formulas; 0 = any script

    c.heldout = 50.0  # validation split: number of problems, or their share if below 1
    c.shards = 2  # files a split
    c.balance = "none"  # training pairs of a gap with a longer and a shorter chosen: none | weight | drop
    # Further formats beside the records: "authors" (their JSON), "datasets" (a Hugging Face folder), "array_record".
    c.also = ()
    c.beta = config_dict.ConfigDict({"small": 0.1, "medium": 0.2, "large": 0.5})  # only written into the authors' JSON
    # Several drivers: each takes the problems whose hash modulo `drivers` is its number; --merge joins their ledgers.
    c.partition = config_dict.ConfigDict({"driver": 0, "drivers": 1})
    c.metrics_port = 0  # Prometheus reads http://127.0.0.1:PORT/metrics; 0 = off
    c.problems_in_flight = 32  # problems walked at a time
    c.grader = config_dict.ConfigDict(
        {"workers": 1, "seconds": 5.0, "megabytes": 2048}
    )  # algebra processes; CPU seconds and memory a comparison
    return c
