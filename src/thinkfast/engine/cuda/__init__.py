"""The engine on an NVIDIA GPU: the same verbs as engine.runner, a decode step captured as one graph per batch size."""
