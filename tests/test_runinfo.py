import subprocess
import sys

from conftest import ROOT

from prefilter_common.runinfo import peak_memory_mib


def test_peak_memory_is_the_processs_own_and_the_largest_so_far():
    """A small process that a large one starts; its allocation is over when it asks."""
    script = "from prefilter_common.runinfo import peak_memory_mib\nb'x' * (100 << 20)\nprint(peak_memory_mib())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert 100 < float(done.stdout) < 180 < peak_memory_mib()
