"""Triton kernels of training, one file for each thing they compute.

Written for SM80 and newer, measured on SM90. Nothing here is imported on a machine without a GPU;
tests run every kernel in Triton's interpreter too. Not here: autograd, and what is saved (one level
up).

Legend for all files: T tokens, K experts per token, S = T·K routed rows sorted by expert, E
experts, I in-features, O out-features, G branches, R rank.
"""
