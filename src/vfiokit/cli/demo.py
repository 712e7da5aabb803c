"""``vfiokit demo``: the main job on a captured server, with no hardware."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output, progress_bar
from vfiokit.cli.session import Session
from vfiokit.demo.chapter import Chapter
from vfiokit.errors import UsageError

DESCRIPTION = """\
Take a captured server's NVMe drive away from its driver, use it through VFIO, and give
it back: on a software twin of the server, so nothing of this machine is touched.
"""
EPILOG = """\
examples:
  vfiokit demo
  vfiokit demo --json | jq '.chapters[4].facts'
  vfiokit demo --host capture.tar.zst    the same on your own server's twin

exit codes: 0 every claim was seen, 3 one was not
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments."""
    parser.set_defaults(host="demo")
    parser.add_argument("--device", default="nvme", help="which NVMe controller of the host")
    parser.add_argument(
        "--mebibytes", type=int, default=64, metavar="N", help="how much to move each way"
    )


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Tell the story, chapter by chapter."""
    from vfiokit.demo.story import Story

    if arguments.mebibytes < 1:
        raise UsageError("--mebibytes must be at least 1")
    if session.host == "live":
        raise UsageError(
            "the demo works on a twin, not on this machine",
            hint="capture this machine first: vfiokit capture FILE, then vfiokit demo --host FILE",
        )
    output = Output(json=arguments.json)
    chapters: list[Chapter] = []
    with (
        tempfile.TemporaryDirectory(prefix="vfiokit-demo-") as folder,
        progress_bar(output) as progress,
    ):
        story = Story(
            Path(folder),
            source=session.host,
            device=arguments.device,
            mebibytes=arguments.mebibytes,
            progress=progress,
        )
        for chapter in story.run():
            chapters.append(chapter)
            if not output.json:
                _print(output, chapter)
    if output.json:
        output.document(
            "demo", session.host, {"chapters": [chapter.document() for chapter in chapters]}
        )
    failed = [chapter for chapter in chapters if not chapter.ok]
    if not output.json:
        total = sum(chapter.seconds for chapter in chapters)
        verdict = f"{len(failed)} claims were not seen" if failed else "everything as claimed"
        output.heading(f"{len(chapters)} chapters in {total:.2f} s: {verdict}")
    return exit_code.NO if failed else exit_code.DONE


def _print(output: Output, chapter: Chapter) -> None:
    mark = "" if chapter.ok else "  FAILED"
    output.heading(f"{chapter.number}. {chapter.title}  ({chapter.seconds:.2f} s){mark}")
    for line in chapter.lines:
        output.line(f"   {line}")
    output.line()
