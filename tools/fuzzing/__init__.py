"""Generated data sets with faults, and what reading them has to end with; see tools/fuzz_inputs.py."""
