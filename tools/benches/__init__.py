"""What `tools/bench.py` measures: a module a topic, each with `measure(rounds) -> list[Result]`."""
