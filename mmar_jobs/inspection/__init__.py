"""What a model really sees, hears and says for one question: terminal, page, notebook.

Not here: anything that a stage reads.
"""
