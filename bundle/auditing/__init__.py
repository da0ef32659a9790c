# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
"""Privacy and utility measures of any cohort, with the controls that prove them; no walk and no gate has seen them."""
