"""Trained models in the layouts of other libraries: PEFT folders of LoRA, and plain transformers models."""
