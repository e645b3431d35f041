"""Benchmarks: speed and memory as JSON lines that name the machine they were measured on.

Not here: tests. A figure belongs to its device; nothing here compares two machines.
"""
