"""Run an exported bundle on image files with onnxruntime, NumPy and Pillow: no torch.

python examples/bundle_without_torch.py photos.bundle holiday.jpg another.png
"""

import sys

import numpy as np

import exitwise as ew

folder, *files = sys.argv[1:]
runner = ew.OnnxRunner(folder)
result = runner(np.stack([runner.read_image(file) for file in files]))
for file, label, exit, confidence, macs in zip(files, *result[:4], strict=True):
    share = macs / runner.exit_macs[-1]
    print(f"{file}: {runner.classes[label]} ({confidence:.2f}) at exit {exit + 1}, {100 * share:.0f} % of the MACs")
