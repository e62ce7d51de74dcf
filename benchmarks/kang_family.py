"""Every variant of MTAe on real cells: seven cell types held out in turn, three realisations, several seeds.

Run: python benchmarks/kang_family.py [--minutes 90] [--workers 2]
Jobs, records and tables are those of `_kang_grid.py`: benchmarks/results/kang_family_<file>*.csv.
"""

from __future__ import annotations

import sys

from _kang_grid import main

MODELS = ("MTAe", "MTAeED", "MTAeAdv", "MTAeAdvG", "MTAeOT", "MTAePlusOT", "MTVae", "MTVaeOT", "MTVaePlusOT")

if __name__ == "__main__":
    sys.exit(main("kang_family", __doc__, MODELS))
