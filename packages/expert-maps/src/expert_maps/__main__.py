# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m expert_maps`."""

from __future__ import annotations

from expert_maps.cli import main

main()
