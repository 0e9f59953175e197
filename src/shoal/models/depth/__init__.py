"""Depth that folds: blocks removed, blocks that share weights, and a cure (FoldGPT).

A :class:`~shoal.models.depth.plan.DepthPlan` says which blocks of an untouched base are executed
and with whose weights; :func:`~shoal.models.depth.compress.compress` makes one, and
:func:`~shoal.models.depth.arrange.planned` runs it.
"""
