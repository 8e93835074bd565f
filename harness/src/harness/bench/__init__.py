# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks. Speed is kept in records here, never in timed tests."""
