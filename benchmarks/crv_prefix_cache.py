"""How much of what CRV's prompts share does the server's prefix cache really serve?

    python benchmarks/crv_prefix_cache.py --url=http://127.0.0.1:30000 --model=student --tokenizer=MODEL_FOLDER

Walks the shipped problems through the loop against a real SGLang server, once with our prompt order and once with the
authors', with the recorded answers forced word for word (`ebnf`), so that any model serves. Shareable: what a trie over
the token ids sent before holds of each prompt. Prints one JSON object a preset.
"""

import json
import tempfile
from typing import Any

from absl import flags
from scripted_sglang import ScriptedSglangPool, forget

from cogpo_jax import cli
from crv.driver import run
from crv.options import Options

_URL = flags.DEFINE_string("url", "http://127.0.0.1:30000", "An SGLang server, or the router before several.")
_MODEL = flags.DEFINE_string("model", "student", "The served model's name.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "The served model's folder.", required=True)
_PROBLEMS = flags.DEFINE_integer("problems", 100, "How many of the shipped problems.")
_IN_FLIGHT = flags.DEFINE_integer("in_flight", 8, "Problems walked at a time.")
_CONFIG = cli.define_config("crv_recorded")


class Trie:
    """Token sequences by their prefixes."""

    def __init__(self) -> None:
        self._root: dict[int, Any] = {}

    def add(self, ids: list[int]) -> int:
        """Adds a sequence; returns how many of its first tokens were known."""
        node, known = self._root, 0
        for place, token in enumerate(ids):
            if token in node:
                known = place + 1 if known == place else known
            node = node.setdefault(token, {})
        return known


def measure(
    url: str, model: str, tokenizer: str, preset: str, problems: int, in_flight: int, config: Any
) -> dict[str, Any]:
    """Prompt, shareable and cached tokens of a whole run with one prompt preset."""
    config = config.copy_and_resolve_references()
    config.limit, config.prompts, config.problems_in_flight = problems, preset, in_flight
    config.pool.concurrency = in_flight
    options = Options.from_config(config)
    forget(url)
    pool = ScriptedSglangPool(url, model, tokenizer, options.pool.recordings, concurrency=in_flight)
    with tempfile.TemporaryDirectory() as workdir:
        summary = run(options, workdir, pool)
    trie = Trie()
    # At least one token of every prompt is always computed.
    shareable = sum(min(trie.add(ids), len(ids) - 1) for ids, _ in pool.calls)
    prompt, cached = sum(len(ids) for ids, _ in pool.calls), sum(answer.cached_tokens for _, answer in pool.calls)
    return {
        "preset": preset,
        "problems": summary["problems"]["total"],
        "calls": len(pool.calls),
        "prompt_tokens": prompt,
        "shareable": round(shareable / prompt, 4),
        "cached": round(cached / prompt, 4),
        "cached_of_shareable": round(cached / shareable, 4),
    }


def main() -> None:
    """Measures both presets."""
    for preset in ("default", "authors"):
        figures = measure(
            _URL.value,
            _MODEL.value,
            _TOKENIZER.value,
            preset,
            _PROBLEMS.value,
            _IN_FLIGHT.value,
            cli.load_config(_CONFIG),
        )
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    cli.run(main)
