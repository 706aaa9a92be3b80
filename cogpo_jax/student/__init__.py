"""The student: dense Qwen2, Qwen2.5, Qwen3 and Llama in Flax NNX, in and out of Hugging Face folders."""
