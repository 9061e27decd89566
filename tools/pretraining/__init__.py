"""Parts of the recipe in tools/pretrain_tiny.py."""
