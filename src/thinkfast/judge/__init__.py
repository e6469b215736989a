"""Chains to one answer: extract and key an answer, check it against gold, vote.

Usage: ``from thinkfast.judge.answer import judge; judge("… \\\\boxed{5}", "5").correct``.
"""
