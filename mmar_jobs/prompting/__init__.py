"""Which prompt text is best: comparing variants on held-out questions, searching for a better one.

Not here: the texts (prompt.py) and how a prompt is asked (stages/answering.py).
"""
