# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A server whose plans fail and whose ranks are late, asked by several clients: every answer must be right all the same.

- `faults`: what is drawn for each plan, by a seed, and done to it in a worker.
- `answers`: requests, and what is right: the texts of one rank without the plugin.
- `clients`: who asks, and what came back.
- `operating`: who compares the slots meanwhile, and has the record written.
- `watching`: memory and descriptors of the server's processes, and whether they grow.
- `running`: all of it, and the verdict, an `outcome`; `python -m harness.chaos`.
"""
