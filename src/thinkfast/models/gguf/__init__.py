"""GGUF files in: llama.cpp's one-file models turned into stock checkpoint folders, once.

Usage: ``from thinkfast.models.gguf.convert import convert_gguf; convert_gguf(Path("m.gguf"), out, source="m.gguf")``.
"""
