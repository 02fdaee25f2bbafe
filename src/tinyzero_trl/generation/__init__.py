"""Who writes the completions: batched sampling with transformers, for training and evaluation alike."""
