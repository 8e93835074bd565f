# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether EPLB changes answers: the same questions with and without it, judged in pairs."""
