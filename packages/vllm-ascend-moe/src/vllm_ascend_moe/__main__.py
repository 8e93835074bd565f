# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m vllm_ascend_moe`` is the command line."""

from vllm_ascend_moe.cli import main

if __name__ == "__main__":
    main()
