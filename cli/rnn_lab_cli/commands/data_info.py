"""`rnn-lab data info`."""

from typing import TYPE_CHECKING, Any

import click

from rnn_lab_cli.output import emit_json, json_option, pairs

if TYPE_CHECKING:
    from rnn_lab.data.info import DataInfo


@click.command()
@click.argument("path", required=False, type=click.Path())
@json_option
def info(path: str | None, as_json: bool) -> None:
    """Describe the byte file PATH (default: the default corpus). Large files are sampled."""
    from rnn_lab.data.default import default_corpus
    from rnn_lab.data.info import describe

    page = _as_dict(describe(default_corpus() if path is None else path))
    if as_json:
        emit_json(page)
        return
    sampled = f"{page['read_bytes']:,} of {page['bytes']:,} bytes" if page["sampled"] else None
    sidecar = page["sidecar"] or {}
    pairs(
        [
            ("path", page["path"]),
            ("bytes", page["bytes"]),
            (
                "documents",
                f"about {page['documents']:,}" if page["documents_estimated"] else page["documents"],
            ),
            ("delimiter", f"0x{page['delimiter']:02x}"),
            ("sampled", sampled),
            ("entropy of a byte", f"{page['entropies'][0]:.4f} bits"),
            ("given the byte before", f"{page['entropies'][1]:.4f} bits"),
            ("given the two before", f"{page['entropies'][2]:.4f} bits"),
            (
                "UTF-8",
                "yes" if page["utf8_error"] is None else f"no: first error at byte {page['utf8_error']:,}",
            ),
            ("sha256", sidecar.get("sha256")),
            ("validation file", sidecar.get("validation")),
            ("made by", sidecar.get("created_by")),
        ]
    )


def _as_dict(found: "DataInfo") -> dict[str, Any]:
    return {
        "path": str(found.path),
        "bytes": found.size,
        "read_bytes": found.read_bytes,
        "sampled": found.sampled,
        "documents": found.documents,
        "documents_estimated": found.documents_estimated,
        "delimiter": found.delimiter,
        "entropies": list(found.entropies),
        "utf8_error": found.utf8_error,
        "histogram": found.histogram.tolist(),
        "sidecar": found.sidecar.model_dump(mode="json") if found.sidecar else None,
    }
