"""Parts of the claim of KVShare: texts, an engine turned by hand, and what it measures."""
