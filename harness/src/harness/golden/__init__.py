# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Golden maps: check the data in `golden/`, or regenerate it and say what changed."""
