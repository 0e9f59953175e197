"""Records, protocols, errors, the event log, budgets, randomness: what every room stands on."""
