"""Parts of the claim of collaboration mechanisms."""
