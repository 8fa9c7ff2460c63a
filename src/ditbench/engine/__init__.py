"""The engine: plans, selectors, fills, the loop over sites, what it traced and what that cost.

A site is one unit (a branch of a block) at one sampling step. Nothing here knows a method or a workflow.
"""
