"""What went wrong in a run, told from its record: `doctor(run)` gives a Diagnosis, a list of Findings."""

from .examination import doctor
from .findings import Diagnosis, Finding
