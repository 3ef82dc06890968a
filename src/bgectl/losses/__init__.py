"""Losses: functions from tensors to one value a query. They know no model, no rank and no log.

Letters: B queries, G passages of a query's group (the positive first), N candidate passages, D dimensions. The
group of query i stands at the columns (first+i)·G … (first+i)·G+G-1 of a (B, N) matrix, where `first` counts the groups
of other processes that stand before. Everything is computed in float32 or better.
"""
