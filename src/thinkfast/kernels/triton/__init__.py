"""The decode step's kernels for NVIDIA GPUs. Modules in here import triton; import them where a GPU was chosen.

Usage: ``from thinkfast.kernels.available import triton_works; triton_works(torch.device("cuda"))``.
"""
