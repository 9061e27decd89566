"""Sides of a comparison that run in processes (and environments) of their own."""
