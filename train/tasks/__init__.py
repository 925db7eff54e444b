"""The tasks that the field `task` of a configuration may name."""

from train.task import Task
from train.tasks.detection import Detection
from train.tasks.segmentation import Segmentation

TASKS: dict[str, Task] = {
    "detection": Detection(),
    "segmentation": Segmentation(),
}
