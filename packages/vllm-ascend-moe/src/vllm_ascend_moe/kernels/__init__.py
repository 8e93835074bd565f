# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels behind the ops where plain torch is slow: Numba on a CPU, Triton on a GPU. Each has a twin in ops/.

Nothing is compiled at import: a module here is loaded by the first call that needs it, and Numba keeps what it
has compiled on disk. On an NPU only the Triton kernel can be reached.
"""
