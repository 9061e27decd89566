"""Pictures of what a trained model does inside: frames that a text asks for, and inputs of adapters by modality."""
