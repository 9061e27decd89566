"""What a run would need: memory, communication and time, from shapes alone."""
