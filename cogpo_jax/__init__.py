"""CRV + CogPO in JAX: small reasoning models that think in a way they can follow.

Names are loaded on first use, so that the data half (`crv`, `cogpo_jax.records`) runs on machines without jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogpo_jax.objective.cogpo import cogpo_loss, sft_loss
    from cogpo_jax.objective.logps import token_logps
    from cogpo_jax.student.config import StudentConfig
    from cogpo_jax.student.model import ForwardOptions, Student

__version__ = "0.2.0"

_EXPORTS = {
    "cogpo_loss": "cogpo_jax.objective.cogpo",
    "sft_loss": "cogpo_jax.objective.cogpo",
    "token_logps": "cogpo_jax.objective.logps",
    "Student": "cogpo_jax.student.model",
    "ForwardOptions": "cogpo_jax.student.model",
    "StudentConfig": "cogpo_jax.student.config",
}
__all__ = ["ForwardOptions", "Student", "StudentConfig", "cogpo_loss", "sft_loss", "token_logps"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'cogpo_jax' has no attribute {name!r}")
