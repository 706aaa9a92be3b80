"""serve_pool on a machine without GPUs: two tiny random models in real SGLang servers (see server/README.md).

The environment variables LANE_PYTHON and LANE_MODEL give the lane's interpreter and the model's folder.
"""

import os
from pathlib import Path

from cogpo_jax.configs import serve_pool

HERE = Path(__file__).parent


def get_config():
    c = serve_pool.get_config()
    python = os.environ["LANE_PYTHON"]
    c.model, c.served_name = os.environ["LANE_MODEL"], "student"
    c.workers, c.gpus_per_worker, c.port = 2, 0, 30100
    c.startup_seconds = 1500.0  # a busy machine: half a minute on a quiet one
    c.server_command = (python, "-W", "ignore", str(HERE / "server" / "serve.py"))
    c.server_args = (
        *c.server_args,
        *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
        *("--grammar-backend", "xgrammar", "--disable-overlap-schedule", "--max-total-tokens", "65536"),
        *("--skip-server-warmup", "--sleep-on-idle"),  # else a server without work keeps a core busy
    )
    c.router_command = (python, "-m", "sglang_router.launch_router")
    c.router_args = ("--health-check-interval-secs", "2", "--health-failure-threshold", "2", "--disable-retries")
    c.environment = {
        "PYTHONPATH": str(HERE / "server" / "shim"),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return c
