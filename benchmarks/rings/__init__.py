"""Parts of the claim of PCCL."""
