"""Solvers: which level of sparsity each site of a plan has, at a given total.

`knapsack` is exact, for costs that add up; `genetic` and `random_search` are for costs measured on a whole plan.
"""
