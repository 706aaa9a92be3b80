"""SGLang workers behind sglang-router, on one machine with GPUs.

    pip install .[crv]
    python launch/serve_pool.py --config=configs/serve_pool.py --config.model=MODEL_FOLDER --config.workers=8

Ready when it prints {"url": ..., "workers": [...]}; then CRV's pool.url is that url. Stops cleanly on Ctrl-C.
"""

import sys

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The config; every field has its unit or choices beside it."""
    c = config_dict.ConfigDict()
    c.model = ""  # a Hugging Face model folder, tokenizer included
    c.served_name = "teacher"  # the name that CRV's pool.model gives
    c.workers = 1  # servers
    c.gpus_per_worker = 1  # tensor-parallel size; worker i takes the GPUs from i * this on; 0 = no GPUs
    c.host = "127.0.0.1"  # address to listen on
    c.port = 30000  # of the router; the workers take the ports after it
    c.router_policy = "cache_aware"  # calls of one problem go where its prefix is cached
    c.startup_seconds = 1800.0  # until every worker is healthy
    c.output = "runs/pool"  # folder for pool.json and the logs
    c.server_command = (sys.executable, "-m", "sglang.launch_server")
    c.server_args = ("--enable-cache-report", "--enable-metrics", "--constrained-json-disable-any-whitespace")
    c.router_command = (sys.executable, "-m", "sglang_router.launch_router")
    c.router_args = ("--max-concurrent-requests", "4096", "--queue-size", "4096", "--request-timeout-secs", "1800")
    c.environment = config_dict.ConfigDict()  # more environment variables
    return c
