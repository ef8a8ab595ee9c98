"""Memory that is kept is not cleared by the system again, page by page."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import exitwise as ew
kept = sys.argv[1] == "keep" and ew.keep_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * 2**26
before = faults()
for _ in range(4):
    b"x" * 2**26
print(kept, faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is told")
def test_what_is_kept_is_not_cleared_again():
    def run(how):
        kept, faults = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        ).stdout.split()
        return kept == "True", int(faults)

    kept, faults = run("keep")
    if not kept:
        pytest.skip("another libc than glibc")
    assert faults < 1000
    assert run("leave")[1] > 10 * faults + 1000
