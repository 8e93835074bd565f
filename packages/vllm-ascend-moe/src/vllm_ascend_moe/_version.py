# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The version of this package, alone, because the build reads it."""

__version__ = "0.1.0"
