"""SGLang workers behind sglang-router, on one machine with GPUs.

    pip install .[crv]
    python launch/serve_pool.py --config=configs/serve_pool.py --config.model=MODEL_FOLDER --config.workers=8

Ready when it prints {"url": ..., "workers": [...]}; then CRV's pool.url is that url. Stops cleanly on Ctrl-C.
"""

from ml_collections import config_dict

from crv.config import default_config
from crv.serve import ServeOptions


def get_config() -> config_dict.ConfigDict:
    """Every field at its default; crv/serve.py explains them."""
    c = default_config(ServeOptions)
    c.model = ""  # must be given
    c.workers = 1
    c.gpus_per_worker = 1
    c.port = 30000  # of the router; the workers take the ports after it
    return c
