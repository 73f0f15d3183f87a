"""Measuring this machine: what the datasheet promises, and what steps of real models take.

A process like the engine's own (same environment, threads, kernels) measures; everything that is
concluded from its readings is pure and needs no torch.
"""
