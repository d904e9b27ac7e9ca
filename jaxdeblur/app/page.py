"""The page of ``jaxdeblur app``, in Gradio: its layout, and what its controls do."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from jaxdeblur.app import show
from jaxdeblur.app.show import Settings
from jaxdeblur.errors import UserError, message_of

if TYPE_CHECKING:
    from jaxdeblur.app.work import Session

_BEST, _FAST = "Best", "Fast"
_TRY_S = 10
_CSS = """
.files { list-style: none; padding: 0; margin: 0; } .files li { margin: 0 0 .3em; }
.wrong { color: #b91c1c; overflow-wrap: anywhere; } .dark .wrong { color: #fca5a5; }
.bar { height: .6em; border-radius: .3em; background: var(--neutral-200); overflow: hidden; }
.bar div { height: 100%; background: var(--primary-500); }
#said p, #said li, #found li { overflow-wrap: anywhere; }
"""


class _Sessions:
    """The sessions of all tabs, by Gradio's name of them."""

    def __init__(self, folder: Path, ckpt: str | None) -> None:
        self._folder, self._ckpt = folder, ckpt
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    @functools.cached_property
    def _work(self) -> Any:
        # Imported after the page is there: JAX takes seconds.
        from jaxdeblur import devices
        from jaxdeblur.app import work

        devices.keep_freed_memory()
        devices.keep_compiled()
        devices.add_threads()
        return work, work.Engine(self._ckpt)

    def get_ready(self) -> None:
        """Imports what restores."""
        with self._lock:
            _ = self._work

    def of(self, request: gr.Request) -> Session:
        """Returns the session of a tab."""
        name = str(request.session_hash)
        with self._lock:
            work, engine = self._work
            if name not in self._sessions:
                folder = self._folder / name
                self._sessions[name] = work.Session(engine, folder)
            return self._sessions[name]

    def used_elsewhere(self, session: Session) -> set[Path]:
        """Returns the uploads that other sessions use: Gradio stores equal files once."""
        with self._lock:
            others = [each.uploads for each in self._sessions.values() if each is not session]
        return set().union(*others)

    def end(self, request: gr.Request) -> None:
        """Stops the work of a tab that was closed, and removes its files."""
        with self._lock:
            session = self._sessions.pop(str(request.session_hash), None)
        if session is not None:
            session.forget(self.used_elsewhere(session))


def serve(folder: Path, ckpt: str | None, port: int | None, *, browser: bool) -> str:
    """Serves the page in threads of its own; returns its address.

    Args:
      folder: for uploads and results; Gradio's ``GRADIO_TEMP_DIR``, so that it copies none.
      ckpt: weights for everything; None for the shipped ones.
      port: where; None for the first free one from 7860 on.
      browser: whether to open it in a browser.

    Raises:
      UserError: the port is taken.
    """
    sessions = _Sessions(folder, ckpt)
    page = build(sessions)
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            prevent_thread_lock=True,
            inbrowser=browser,
            quiet=True,
            css=_CSS,
        )
    except OSError as error:
        taken = "no port is free from 7860 on" if port is None else f"--port={port} is taken"
        raise UserError(f"{taken}; name another with --port") from error
    threading.Thread(target=sessions.get_ready, daemon=True).start()
    return str(address)


def build(sessions: _Sessions) -> gr.Blocks:
    """Returns the page."""
    with gr.Blocks(title="jaxdeblur", analytics_enabled=False) as page:
        gr.Markdown(
            "# jaxdeblur\nDrop a shaky video or blurred photographs. They are restored on this "
            "machine and never leave it. Closing the tab removes them."
        )
        dropped = gr.File(file_count="multiple", label="Video or photographs", elem_id="drop")
        found = gr.HTML(elem_id="found")
        with gr.Row():
            quality = gr.Radio(
                [_BEST, _FAST], value=_BEST, label="Quality of video", elem_id="quality"
            )
            strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength", elem_id="strength")
        with gr.Row():
            start = gr.Number(0, minimum=0, label="Begin at second", elem_id="start")
            seconds = gr.Number(
                0, minimum=0, label="For seconds (0: to the end)", elem_id="seconds"
            )
        expected = gr.HTML(elem_id="expected")
        with gr.Row():
            trial = gr.Button(f"Try {_TRY_S} seconds", elem_id="try")
            restore = gr.Button("Restore", variant="primary", elem_id="restore")
            cancel = gr.Button("Cancel", elem_id="cancel", interactive=False)
        said = gr.HTML(elem_id="said")
        with gr.Column(visible=False, elem_id="results") as results:
            which = gr.Radio([], label="File", visible=False, elem_id="which")
            pair = gr.ImageSlider(
                label="Before and after", type="filepath", interactive=False, elem_id="pair"
            )
            number = gr.Slider(0, 1, value=0, step=1, label="Frame", elem_id="frame")
            download = gr.DownloadButton("Download", variant="primary", elem_id="download")

        def settings_of(fast: str, mix: float, begin: Any, most: Any) -> Settings:
            return Settings(fast == _FAST, mix, float(begin or 0), most or None)

        def take(
            paths: list[str] | None,
            fast: str,
            mix: float,
            begin: Any,
            most: Any,
            request: gr.Request,
        ) -> Iterator[Any]:
            session = sessions.of(request)
            session.take([Path(path) for path in paths or []], sessions.used_elsewhere(session))
            settings = settings_of(fast, mix, begin, most)
            looking = next((each for each in session.found if each.is_video), None)
            yield {
                found: show.files(session.found, session.wrong, looking.path if looking else None),
                expected: guess(session, settings),
                said: "",
                results: gr.update(visible=False),
            }
            if looking is None or settings.fast:
                return
            try:
                for _ in session.find_out():
                    yield {found: show.files(session.found, session.wrong)}
            except Exception as error:
                if (message := message_of(error)) is None:
                    raise
                yield {found: show.files(session.found, [*session.wrong, message])}

        def guess(session: Session, settings: Settings) -> str:
            if not session.found:
                return ""
            return show.expected(session.seconds(settings), True)

        def tell_time(fast: str, mix: float, begin: Any, most: Any, request: gr.Request) -> str:
            return guess(sessions.of(request), settings_of(fast, mix, begin, most))

        def work(
            fast: str, mix: float, begin: Any, most: Any, request: gr.Request
        ) -> Iterator[Any]:
            session, settings = sessions.of(request), settings_of(fast, mix, begin, most)
            if not session.found:
                yield {said: '<p class="wrong">Drop a video or a photograph first.</p>'}
                return
            yield {
                found: show.files(session.found, session.wrong),
                results: gr.update(visible=False),
                said: "",
                cancel: gr.update(interactive=True),
            }
            files: dict[int, str] = {}
            for state in session.restore(settings):
                files[state.number] = show.progress(state)
                yield {said: "".join(files.values())}
            if not session.is_idle:
                return  # another button began anew, and shows the rest
            made = shown(session, 0) if session.results else {}
            yield {
                found: show.files(session.found, session.wrong),
                expected: guess(session, settings),
                cancel: gr.update(interactive=False),
                **made,
            }

        def shown(session: Session, place: int) -> dict[Any, Any]:
            result = session.results[place]
            names = [(each.path.name, index) for index, each in enumerate(session.results)]
            last = len(result.times) - 1
            return {
                results: gr.update(visible=True),
                which: gr.update(choices=names, value=place, visible=len(names) > 1),
                pair: result.pair(0, session.folder),
                number: gr.update(maximum=max(1, last), value=0, visible=last > 0),
                download: gr.update(label=f"Download {result.path.name}", value=str(result.path)),
            }

        def choose(place: int | None, request: gr.Request) -> dict[Any, Any]:
            session = sessions.of(request)
            if place is None or place >= len(session.results):
                return {said: gr.skip()}
            return shown(session, place)

        def turn_to(frame: float, place: int | None, request: gr.Request) -> Any:
            session = sessions.of(request)
            if not session.results:
                return gr.skip()
            result = session.results[min(place or 0, len(session.results) - 1)]
            return result.pair(int(frame), session.folder)

        def stop(request: gr.Request) -> None:
            sessions.of(request).cancel()

        chosen = [quality, strength, start, seconds]
        all_shown = [results, which, pair, number, download]
        to_work = [found, said, expected, cancel, *all_shown]
        dropped.change(
            take,
            [dropped, *chosen],
            [found, expected, said, results],
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=None,
        )
        for control in (quality, start, seconds):
            control.change(tell_time, chosen, expected, show_progress="hidden")
        at_once: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        trial.click(lambda: _TRY_S, None, seconds, **at_once).then(work, chosen, to_work, **at_once)
        restore.click(work, chosen, to_work, **at_once)
        cancel.click(stop, **at_once)
        which.input(choose, which, [said, *all_shown], show_progress="hidden")
        number.input(
            turn_to, [number, which], pair, show_progress="hidden", trigger_mode="always_last"
        )
        page.unload(sessions.end)
    return page
