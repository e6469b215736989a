"""One model, many chains of thought: prefill once, fork, decode ragged batches before a deadline.

Usage: ``from thinkfast.engine.llm import LLM; LLM("tiny").generate(["1 + 1 = ?"], SamplingParams(n=8), seconds=2)``.
"""
