"""What a backbone of two towers does in one step: contrast and matching, answers, captions, comparisons, rankings."""
