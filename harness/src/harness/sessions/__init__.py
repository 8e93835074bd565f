# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What nox's sessions are made of: `noxfile.py` has a few lines for each. Nothing here needs more than nox."""
