"""Our own CPU engine: a Hugging Face decoder as packed fp32 or int8 weights, computed in C++ (csrc/engine).

``build.py`` makes the directory that ``artifact.py`` reads and ``reasoner.py`` runs.
"""
