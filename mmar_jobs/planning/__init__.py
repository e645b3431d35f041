"""What a run will take before it is started: GPU hours, wall time, storage, requests, price.

Not here: what it did take (report/plan_view.py compares).
"""
