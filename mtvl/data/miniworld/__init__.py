"""The embedded data: small synthetic pictures with the four benchmarks in their official file formats."""
