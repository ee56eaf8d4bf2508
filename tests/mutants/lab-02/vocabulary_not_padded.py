"""The vocabulary is divided by the ranks as it is."""

VOCAB_PADDING = 1
