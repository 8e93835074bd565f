# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner beside those of others: how good its answers are, how long it takes, and what it moves.

A case is a `Problem`, a policy is a `Peer`, and every peer's answer is scored by `scoring`, which shares no code
with any of them. `python -m harness.bench.planner --help` names the outputs.
"""
