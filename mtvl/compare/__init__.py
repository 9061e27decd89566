"""Comparing methods under equal conditions: `mtvl compare` trains a list of them over seeds and writes one table."""
