"""Where models come from: folders, the catalogue, a hub, package registries, GGUF files; and where they are kept.

Usage: ``from thinkfast.models.sources.resolve import find_model; find_model("smollm2")``.
"""
