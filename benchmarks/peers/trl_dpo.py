"""TRL's DPOTrainer on flat pairs, timed after the first step. Runs in its own environment: see ../against_peers.py.

    python trl_dpo.py --pairs=PAIRS.jsonl --model=HF_FOLDER --reference=live|precomputed

Every pair is trained on once, in steps of `--batch` pairs; the first step warms up and is not counted. With
`precomputed`, TRL's pass over the reference (the same pairs, each once) counts in proportion. Prints one JSON line.
"""

import argparse
import json
import os
import resource
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Clock(TrainerCallback):
    """(wall, CPU) seconds of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, *_, **__):
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, *_, **__):
        self.steps.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))


class TimedTrainer(DPOTrainer):
    """DPOTrainer that says how long its pass over the reference took."""

    reference_pass = (0.0, 0.0)

    def _precompute_ref_logps(self, *args, **kwargs):
        began = time.perf_counter(), time.process_time()
        out = super()._precompute_ref_logps(*args, **kwargs)
        self.reference_pass = (time.perf_counter() - began[0], time.process_time() - began[1])
        return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reference", choices=["live", "precomputed"], default="live")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    with open(args.pairs) as f:
        rows = [json.loads(line) for line in f]
    # Conversational rows, so that the chat template and the end token are TRL's own.
    turns = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    data = Dataset.from_list(
        [
            {
                "prompt": turns("user", row["prompt"]),
                "chosen": turns("assistant", row["chosen"]),
                "rejected": turns("assistant", row["rejected"]),
            }
            for row in rows
        ]
    )
    clock, steps = Clock(), len(rows) // args.batch
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=args.batch,
        max_length=args.max_length,
        max_steps=steps,
        learning_rate=5e-7,
        beta=0.1,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=True,
        use_cpu=True,
        precompute_ref_log_probs=args.reference == "precomputed",
        dataloader_pin_memory=False,
    )
    trainer = TimedTrainer(
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        callbacks=[clock],
    )
    trainer.train()
    counted = clock.steps[1:]
    pairs = args.batch * len(counted)
    share = pairs / len(rows)
    seconds, cpu = (sum(s[i] for s in counted) + share * trainer.reference_pass[i] for i in (0, 1))
    print(
        json.dumps(
            {
                "pairs": pairs,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "reference_seconds": share * trainer.reference_pass[0],
                "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "first_loss": trainer.state.log_history[0]["loss"],
            }
        )
    )


if __name__ == "__main__":
    main()
