# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Hostile input for everything that reads what others wrote: files, settings, configurations, records, the planner.

An input is right where it is read or refused with an error of the documented family, in one line that is safe to print,
in a second and a GiB. Four sources of inputs: files kept in `harness/fuzz`, mutations of valid ones, Hypothesis, and, where it
is installed, atheris, which looks for inputs that reach new code.
"""
