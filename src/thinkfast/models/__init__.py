"""What a teacher and a student are: sizes, mixers, decoder, transfer, checkpoints.

Usage: ``from thinkfast.models.loading import load_model; load_model("tiny")``.
"""
