"""Learners: what fits a method before it samples. One module each, with a function `learn`; methods name theirs.

What a learner finds is plain data. It is written to a record of its own, is part of the spec of every cell of the arm,
and reaches the method as `Method.found`.
"""
