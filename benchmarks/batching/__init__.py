"""Parts of the claim of BatchLLM: planner, engine over KV budgets, mixed jobs, attention."""
