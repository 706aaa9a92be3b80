"""A world where what a student can follow is known: chains of additions modulo a number, with texts by rule.

A problem is a start and steps with names: `17 a +3 b -8 c +5 d -1 =`. Words are tokens, so a text's length in words is
its length in tokens. Texts of one problem, each ending in `The answer is N`:

    fitting     a +3 20 b -8 12 c +5 17 d -1 16                    one step at a time: a table of facts
    terse       b 12 d 16                                           two steps at once: facts of another size
    convoluted  a +3 20 check -3 17 a +3 20 b -8 12 check +8 ...    each step, back again, and once more
    wrong       a +3 20 b -8 13 c +5 18 d -1 17                     one result altered, and carried through
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from cogpo_jax.atomic import write_atomic, write_json
from cogpo_jax.text import CHAT_TEMPLATE, END_OF_TURN, PAD, TURN_START

NAMES = "abcdefghijkl"


@dataclass(frozen=True)
class World:
    """The size of the world: states are 0 .. modulus - 1, a problem has `steps` steps (even) of 1 .. largest."""

    modulus: int = 40
    steps: int = 8
    largest: int = 9


@dataclass(frozen=True)
class Chain:
    """A problem: the start and the signed steps, in `world`."""

    world: World
    start: int
    steps: tuple[int, ...]

    @property
    def states(self) -> list[int]:
        """The start and the state after each step."""
        states = [self.start]
        for step in self.steps:
            states.append((states[-1] + step) % self.world.modulus)
        return states

    @property
    def problem(self) -> str:
        """The prompt."""
        return " ".join(
            [str(self.start), *(f"{name} {step:+d}" for name, step in zip(NAMES, self.steps, strict=False)), "="]
        )

    @property
    def answer(self) -> str:
        """The last state."""
        return str(self.states[-1])

    def text(self, kind: str, slip: int = -1, by: int = 0) -> str:
        """The chain of thought of a kind; with `slip`, the state after that step is `by` too large from there on."""
        states = [(s + (by if 0 <= slip < i else 0)) % self.world.modulus for i, s in enumerate(self.states)]
        words = []
        for i, step in enumerate(self.steps):
            before, after = states[i], states[i + 1]
            done = f"{NAMES[i]} {step:+d} {after}"
            if kind == "fitting":
                words.append(done)
            elif kind == "convoluted":
                words.append(f"{done} check {-step:+d} {before} {done}")
            elif i % 2:
                words.append(f"{NAMES[i]} {after}")
        return f"{' '.join(words)}\nThe answer is {states[-1]}"

    def wrong(self, kind: str, rng: random.Random) -> str:
        """The text with one result altered by at most 3 either way, and carried through."""
        return self.text(kind, rng.randrange(len(self.steps)), rng.choice((-3, -2, -1, 1, 2, 3)))


def chains(world: World, count: int, seed: str) -> list[Chain]:
    """`count` different problems, the same for the same seed."""
    rng, found = random.Random(seed), {}
    sizes = [size for size in range(-world.largest, world.largest + 1) if size]
    while len(found) < count:
        chain = Chain(world, rng.randrange(world.modulus), tuple(rng.choices(sizes, k=world.steps)))
        found[chain.problem] = chain
    return list(found.values())


def write_student(world: World, folder: Path, hidden: int = 128, layers: int = 2) -> None:
    """A tokenizer whose tokens are the world's words, and a config.json beside it, into `folder`."""
    sizes = [f"{sign}{size}" for sign in "+-" for size in range(1, world.largest + 1)]
    words = [PAD, TURN_START, END_OF_TURN, "<unk>", "The", "answer", "is", "check", "=", *NAMES, *sizes]
    words += [str(state) for state in range(world.modulus)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, TURN_START, END_OF_TURN])
    write_atomic(folder / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str()), indent=1))
    write_atomic(folder / "chat_template.jinja", CHAT_TEMPLATE)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TURN, "pad_token": PAD}
    write_json(folder / "tokenizer_config.json", settings | {"unk_token": "<unk>", "model_max_length": 512})
    write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
            "use_sliding_window": False,
            "vocab_size": -(-len(words) // 8) * 8,
            "torch_dtype": "float32",
        },
    )
