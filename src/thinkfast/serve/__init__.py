"""To the world: stock checkpoints with a model card, GGUF files, and the proof that others compute what we compute.

Usage: ``from thinkfast.serve.export import export_hf``.
"""
