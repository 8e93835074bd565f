# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The project's own tiny MoE models: word problems, a tokenizer, training, and evaluation."""
