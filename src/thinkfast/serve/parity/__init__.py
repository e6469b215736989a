"""Parity: the same model in different forms and programs must say the same, and by how much it does.

Usage: ``from thinkfast.serve.parity.run import run_parity``.
"""
