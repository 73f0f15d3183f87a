"""Settings that must be made before torch is imported, and for every server of the tests."""

import os
import tempfile

# As for the engine process (see ``engine.environment``): tests share their cores with servers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Plans must not depend on what was measured on the machine that runs the tests.
os.environ["RIDGELINE_DATA_HOME"] = f"{tempfile.gettempdir()}/ridgeline-tests-{os.getpid()}"
