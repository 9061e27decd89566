"""Full-size recipes: what their headers say, and whether they do it."""
