# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tests that vLLM and vllm-ascend keep for themselves, run with this project's functions in place of theirs.

Their source distributions carry these tests. They are fetched by hash and run from where they were unpacked, unchanged:
a pytest plugin of this package replaces names in their test modules. Nothing of them is kept here but names of tests.
"""
