"""The objective: token-chunked log-probs, CogPO / DPO and SFT losses, metrics as (sum, weight)."""
