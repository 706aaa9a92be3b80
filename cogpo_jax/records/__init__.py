"""Records: what CRV writes and the trainer reads. No jax and no TensorFlow here."""

from cogpo_jax.records.schema import (
    GAPS,
    KINDS,
    MINI_TASKS,
    ORIGINS,
    Group,
    Pair,
    Response,
    SftExample,
    validate_group,
    validate_sft,
)
from cogpo_jax.records.shards import load_manifest, read_groups, read_sft, splits, verify_manifest, write_data

__all__ = [
    "GAPS",
    "KINDS",
    "MINI_TASKS",
    "ORIGINS",
    "Group",
    "Pair",
    "Response",
    "SftExample",
    "load_manifest",
    "read_groups",
    "read_sft",
    "splits",
    "validate_group",
    "validate_sft",
    "verify_manifest",
    "write_data",
]
