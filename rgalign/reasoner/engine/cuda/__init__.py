"""The engine's forward on a GPU, of the kernels in ``rgalign.kernels``.

``matrix.py`` a weight matrix in each type, ``decoder.py`` the forward, ``pack.py`` its inputs, ``runner.py`` a CUDA
graph for each token bucket, ``reasoner.py`` the engine's directory behind the reasoner's protocol. All but the last
import torch, Triton and NumPy only.
"""
