"""Run folders: the only door of training to the disk. JSON, JSONL and safetensors; nothing executes when it is read."""

from .checkpoints import Checkpoint, Checkpoints
from .files import Damaged, DiskFull, Tail, read_json, write_json
from .latents import read_contexts, weights_of, write_contexts
from .lines import Lines, findings
from .lock import RunInUse, lives
from .run import UNFINISHED, Run, find_runs, fresh
from .store import read_sae, write_sae
