"""Teacher to student: losses, stages with gates, and a trainer that survives a kill.

Usage: ``from thinkfast.distill.run import distill; distill(recipe, out)``.
"""
