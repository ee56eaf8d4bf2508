"""The vocabulary is divided by the ranks without padding."""

VOCAB_PADDING = 1
