"""Bundle: the directory that a server loads, whole or refused. docs/bundle.md describes it.

bundle = read_bundle("bundle")        # every byte, shape and hash is checked before anything is used
"""

from rgalign.bundle.bundle import Bundle as Bundle
from rgalign.bundle.bundle import read_bundle as read_bundle
from rgalign.bundle.manifest import Calibration as Calibration
from rgalign.bundle.manifest import Manifest as Manifest
from rgalign.bundle.manifest import ReasonerPart as ReasonerPart
from rgalign.bundle.manifest import read_manifest as read_manifest
from rgalign.bundle.write import BundleParts as BundleParts
from rgalign.bundle.write import write_bundle as write_bundle
