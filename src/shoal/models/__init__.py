"""Models: names to weights, tokenizers, chat templates, decoders."""
