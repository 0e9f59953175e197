"""Parts of the claim of ToolRL: the world and its policies, what is told of runs, and BFCL."""
