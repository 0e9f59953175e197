"""Parts of the claims about deciding and paying in groups of models."""
