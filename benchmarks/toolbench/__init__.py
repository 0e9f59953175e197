"""Parts of the claim of Toolshed."""
