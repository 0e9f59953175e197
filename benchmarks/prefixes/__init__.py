"""Parts of the claim of Prefix Grouper: batches, arms, and memory in a process of its own."""
