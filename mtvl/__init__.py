"""mtvl: adapts large vision-language models to many tasks at once with a few per cent of trained parameters."""

__version__ = "0.1.0"
