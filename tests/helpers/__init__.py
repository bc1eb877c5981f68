"""Helpers that tests share: oracles, the accuracy bar, exact bounds. No test is in here."""
