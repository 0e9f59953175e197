"""Whole jobs of prompts at once: what they share is found first, computed once, freed in time."""
