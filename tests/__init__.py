# Copyright (c) the PLAN bundle contributors
# SPDX-License-Identifier: Apache-2.0
# A package, so that its helpers are found before a package of this name that a dependency installs.
