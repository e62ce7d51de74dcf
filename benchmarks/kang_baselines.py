"""ScGen, ScVIDR, ScPreGAN and ScButterfly on real cells beside MTAe, MTAeAdv and MTVae: seven cell types held out in turn.

Run: python benchmarks/kang_baselines.py [--minutes 90] [--workers 2]
Jobs, records and tables are those of `_kang_grid.py`: benchmarks/results/kang_baselines_<file>*.csv. Records of models
that `kang_family.py` has too are shared with it.
"""

from __future__ import annotations

import sys

from _kang_grid import main

MODELS = ("MTAe", "MTAeAdv", "MTVae", "ScGen", "ScVIDR", "ScPreGAN", "ScButterfly")

if __name__ == "__main__":
    sys.exit(main("kang_baselines", __doc__, MODELS))
