"""Scripts that other programs' own interpreters run; they import nothing of ours.

Usage: ``OTHER_PYTHON llama_peer.py job.json answer.json``.
"""
