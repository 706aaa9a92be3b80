"""The student: dense Qwen2, Qwen2.5 and Qwen3 in Flax NNX, in and out of Hugging Face folders."""
