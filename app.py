"""Open a page on this computer to drop clips and pictures on: their scores by a trained experiment, as predict.py's.

    python app.py                          the model that comes with the suite
    python app.py EXPERIMENT --port 8000

The page answers on 127.0.0.1 alone, only at the address that is printed, and asks no other machine for anything. It
shows the face, the scores with intervals and percentiles, heat maps, the scores over time, and gives the tables as
CSV. Nothing is kept: files are deleted when their page closes, after an hour, and when the program ends (Ctrl-C).
Results are never written to disk.
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

import contextlib
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from first_impressions.common.command_line import (
    UserError,
    make_parser,
    positive_int,
    run_script,
    usable_cores,
    whole_number_between,
)
from first_impressions.common.device import add_device_options
from first_impressions.common.experiment import PRETRAINED
from first_impressions.common.files import private_folder
from first_impressions.extraction.frames import FrameSettings, add_frame_options
from first_impressions.prediction import page
from first_impressions.prediction.scoring import FRAMES, WHOLE_UP_TO, Scorer, files_below, load_scorer, score_files
from first_impressions.prediction.tables import ALL_COLUMNS, FRAME_COLUMNS, table_of

HOST = "127.0.0.1"
TITLE = "Apparent personality"
KEPT_SECONDS, SWEEP_SECONDS = 3600, 60
MOST_PAGES = 100    # whose state stays in memory
CONCURRENT_SCORINGS = 2
PIECE = 15  # seconds, as long as the challenge's clips: longer recordings are scored in pieces
HARD_LIMIT = 5  # times --max-megabytes: Gradio refuses a whole drop for one larger file; smaller ones get a sentence


def prepare_environment(folder: Path) -> None:
    """Set what Gradio reads when it is imported: no telemetry, no settings from outside, no proxy for this machine, all
    temporary files in a folder."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # such as GRADIO_SHARE or GRADIO_ALLOWED_PATHS
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1",
                      NO_PROXY=f"{HOST},localhost", no_proxy=f"{HOST},localhost", TMPDIR=str(folder),
                      GRADIO_TEMP_DIR=str(folder / "uploads"))
    tempfile.tempdir = str(folder)
    (folder / "uploads").mkdir()


@dataclass
class App:
    """The network and the limits."""
    scorer: Scorer
    frames: FrameSettings
    workers: int
    most_bytes: int
    most_seconds: int
    most_files: int

    def score(self, paths: list[str], every_face: bool) -> Iterator[tuple[str, str]]:
        """Yield (progress, results) as HTML, first empty and then after each file."""
        entries, rows, faces, scored = [], [], [], 0
        yield page.parts.progress(0, len(paths), 0), ""
        settings = self.scorer.face_settings(self.frames, find_all=every_face, keep_picture=True,
                                             most_seconds=self.most_seconds)
        items = ((path, self.refusal(path)) for path in paths)
        with contextlib.closing(score_files(self.scorer, items, settings, min(self.workers, len(paths)))) as answers:
            for scores in answers:
                entries.append(page.parts.entry(scores, self.scorer.network))
                scored += not scores.rows[0]["problem"]
                rows += scores.rows
                faces += scores.faces
                yield page.parts.progress(len(entries), len(paths), scored), "".join(entries)
        links = page.parts.links(table_of(rows, ALL_COLUMNS), table_of(faces, FRAME_COLUMNS))
        yield page.parts.progress(len(entries), len(paths), scored), "".join([links, *entries])

    def refusal(self, path: str) -> tuple[None, str] | None:
        """Return (None, why a file is not scored at all), or None, as score_files takes it."""
        if not os.path.isfile(path):
            return None, "is deleted by now; choose it again"
        if (size := os.path.getsize(path)) > self.most_bytes:
            return None, (f"has {size / 1e6:.0f} MB; at most {self.most_bytes / 1e6:.0f} MB are taken "
                          "(option --max-megabytes)")
        [(_, known)] = files_below([path])
        return known


def build_page(app: App):
    """Return the gradio.Blocks of the page."""
    import gradio

    files_of = {}       # session hash of an open page: paths of its files
    at_work = set()     # session hashes of pages whose files are being scored

    # Values come as Gradio sends them (preprocess=False): its own reading would leave an empty file for each one.
    def paths_of(files, recording):
        return [file["path"] for file in [*(files or []), *([recording] if recording else [])]]

    def note(files, recording, request: gradio.Request):
        files_of.setdefault(request.session_hash, set()).update(paths_of(files, recording))

    def forget(request: gradio.Request):
        for path in files_of.pop(request.session_hash, ()):
            if not any(path in others for others in list(files_of.values())):  # equal files have one path
                Path(path).unlink(missing_ok=True)

    def tell_the_end(request: gradio.Request):
        # Gradio ends a scoring between two files, and until then the page cannot start another one.
        yield page.parts.status("Stopping after this file ...")
        while request.session_hash in at_work:
            time.sleep(0.1)
        yield page.parts.status("Stopped.")

    def score(files, recording, every_face, request: gradio.Request):
        paths = paths_of(files, recording)
        if not paths:
            yield page.parts.status("Choose or record a clip or a picture first."), ""
        elif len(paths) > app.most_files:
            yield page.parts.status(f"{len(paths)} files; at most {app.most_files} are taken at once."), ""
        else:
            at_work.add(request.session_hash)
            try:
                yield from app.score(paths, every_face)
            finally:
                at_work.discard(request.session_hash)

    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEPT_SECONDS)) as blocks:
        gradio.Markdown(page.parts.introduction())
        with gradio.Tab("Files"):
            files = gradio.File(label="Clips and pictures", file_count="multiple", type="filepath", elem_id="files")
        with gradio.Tab("Camera"):
            recording = gradio.Video(label="Recording", sources=["webcam"], include_audio=False, buttons=[], height=320,
                                     webcam_options=gradio.WebcamOptions(mirror=False), elem_id="recording")
        every_face = gradio.Checkbox(label="Score all people, not only the largest face of each frame")
        with gradio.Row():
            start = gradio.Button("Score", variant="primary", elem_id="score", scale=4, min_width=120)
            stop = gradio.Button("Stop", elem_id="stop", min_width=80)
        progress = gradio.HTML(elem_id="progress")
        results = gradio.HTML(elem_id="results")
        gradio.Markdown(page.parts.caution(app.scorer.checkpoint.neuroticism_is_stability), elem_id="caution")
        event = start.click(score, [files, recording, every_face], [progress, results], show_progress="minimal",
                            concurrency_limit=CONCURRENT_SCORINGS, preprocess=False)
        stop.click(tell_the_end, None, progress, cancels=[event], show_progress="hidden")
        gradio.on([files.upload, recording.change], note, [files, recording], preprocess=False, show_progress="hidden")
        blocks.unload(forget)
    return blocks


def launch(app: App, port: int, token: str):
    """Start the server in threads of its own and return its gradio.Blocks."""
    import gradio

    from first_impressions.prediction.guard import access_middleware  # its Starlette comes with Gradio

    blocks = build_page(app)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks.launch(prevent_thread_lock=True, quiet=True, share=False, server_name=HOST, server_port=port,
                  footer_links=[], run_history=False, enable_monitoring=False,
                  max_file_size=HARD_LIMIT * app.most_bytes, state_session_capacity=MOST_PAGES, theme=theme,
                  css_paths=page.CSS, app_kwargs={"middleware": access_middleware(token), "docs_url": None,
                                                  "redoc_url": None, "openapi_url": None})
    return blocks


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT", nargs="?", default=PRETRAINED,
                        help="name of a folder in --runs-dir (default: pretrained, which comes with the suite)")
    parser.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    parser.add_argument("--port", type=whole_number_between(1, 65535), default=7860, help="of the page")
    add_frame_options(parser, FRAMES)
    parser.add_argument("--max-megabytes", type=positive_int, default=200, help="largest file that is scored")
    parser.add_argument("--max-minutes", type=positive_int, default=15, help="longest clip that is scored")
    parser.add_argument("--max-files", type=positive_int, default=50, help="most files that are scored at once")
    parser.add_argument("--workers", type=positive_int, default=usable_cores(), help="processes that find faces")
    add_device_options(parser, precision="float32")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        socket.create_server((HOST, args.port)).close()
    except OSError as error:
        raise UserError(f"--port {args.port}: cannot be used ({error.strerror}); give another one") from None
    with private_folder("apparent-personality-") as folder:
        prepare_environment(folder)
        try:
            import gradio  # noqa: F401  after the environment is prepared
        except ImportError as error:
            raise UserError(f"the page needs Gradio ({error}): run make app, or pip install -r requirements-app.txt"
                            ) from None
        scorer = load_scorer(args.experiment, args.runs_dir, args.precision, args.device)
        frames = FrameSettings.from_options(args, piece=PIECE, whole_up_to=WHOLE_UP_TO)
        app = App(scorer, frames, args.workers, args.max_megabytes * 10**6, args.max_minutes * 60, args.max_files)
        token = secrets.token_urlsafe()
        blocks = launch(app, args.port, token)
        print(f"Open http://{HOST}:{args.port}/?token={token} in a browser.\n"
              "Ctrl-C ends the page and deletes all files.", flush=True)
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)


if __name__ == "__main__":
    try:
        run_script(main)
    except SystemExit as end:
        if end.code in (129, 130, 143):
            # All is cleaned up, but a thread of Gradio may still compute, and then an ordinary exit aborts.
            os._exit(end.code)
        raise
