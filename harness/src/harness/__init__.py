# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Golden checks, benchmarks and demonstrations; installed only inside this repository."""
