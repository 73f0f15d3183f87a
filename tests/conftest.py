"""Settings that must be made before torch is imported."""

import os

# As for the engine process (see ``engine.client``): tests share their cores with servers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
