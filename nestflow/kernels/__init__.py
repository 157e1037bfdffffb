"""Kernels for matrix memories on a GPU. Each module needs a package that nestflow does not: imported on demand only."""
