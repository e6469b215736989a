"""Answers to evidence: the sample log, metrics with intervals, benchmarks, and the page that shows them.

Usage: ``from thinkfast.report.metrics import pass_at_k; pass_at_k(n=10, c=3, k=1)``.
"""
