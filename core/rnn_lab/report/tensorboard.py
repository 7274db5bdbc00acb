"""REPORT.md in TensorBoard's TEXT tab: one text a section, in a run called `report` beside the runs."""

from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData
from tensorboard.summary.writer.record_writer import RecordWriter

from rnn_lab.system.atomic import write_bytes_atomic

FOLDER, FILE = "report", "events.out.tfevents.0.report"


def write_text(target: Path, page: str) -> None:
    """Write the Markdown `page` as events to `target`/report; an earlier one is replaced."""
    (target / FOLDER).mkdir(exist_ok=True)
    write_bytes_atomic(target / FOLDER / FILE, encoded(page))


def encoded(page: str) -> bytes:
    """The Markdown `page` as a file of events. No clock is involved: one page gives the same bytes every time."""
    records = _Records()
    writer = RecordWriter(records)
    for event in (Event(wall_time=0, file_version="brain.Event:2"), _texts(page)):
        writer.write(event.SerializeToString())
    return bytes(records.data)


class _Records:
    """The file that RecordWriter writes to."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """Append."""
        self.data += data


def sections(page: str) -> dict[str, str]:
    """Text of each `##` section by heading; what stands before the first is `Findings`."""
    first, *rest = page.split("\n## ")
    return {"Findings": first} | {part.partition("\n")[0]: part.partition("\n")[2] for part in rest}


def _texts(page: str) -> Any:
    """All sections as one event of TensorBoard's text plugin, numbered so that it keeps their order."""
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(
            plugin_name="text", content=TextPluginData(version=0).SerializeToString()
        )
    )
    values = []
    for number, (heading, text) in enumerate(sections(page).items()):
        tensor = TensorProto(
            dtype="DT_STRING",
            string_val=[text.strip().encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        values.append(Summary.Value(tag=f"report/{number:02} {heading}/text_summary", metadata=metadata, tensor=tensor))
    return Event(wall_time=0, step=0, summary=Summary(value=values))
