"""Hiring agents whose effort nobody sees: contracts that make working and telling the truth pay."""
