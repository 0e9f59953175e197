"""Parts of the claim of FoldGPT."""
