"""The page on which people judge, clicked through in a real browser."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from hf_motive.preference import compare, read_choices, write_page
from hf_motive.video import load_clip, save_clip

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ASKED = "#judging:not([hidden]) #left[aria-disabled=false]"
SEEN = 450  # milliseconds; before 400 a choice does not count


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[test]"')
    found = os.environ.get("HF_MOTIVE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("no Chromium or Chrome found: apt-get install chromium, or set HF_MOTIVE_BROWSER")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A fresh profile that fails where the page has an error or asks for anything outside itself."""
    with browser.new_context(viewport={"width": 640, "height": 480}) as context:
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        here = ("file:", "blob:", "data:", "http://localhost")
        page.on("request", lambda request: request.url.startswith(here) or wrong.append(request.url))
        page.set_default_timeout(30_000)
        yield page
        assert not wrong


def clip(side: str, number: int, *, frames: int = 10, height: int = 32, width: int = 48) -> torch.Tensor:
    """Red is a, blue is b; how green it is tells which pair; a white bar moves, so that there is something to see."""
    video = torch.full((frames, 3, height, width), -1.0)
    video[:, 0 if side == "a" else 2] = 1
    video[:, 1] = number / 10 - 1
    for frame in range(frames):
        video[frame, :, :4, 2 * frame : 2 * frame + 4] = 1
    return video


def pairs(count: int, **size) -> list[dict]:
    return [{"prompt": f"prompt {i}", "a": clip("a", i, **size), "b": clip("b", i, **size)} for i in range(count)]


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "five.html", pairs(5), seed=3)


def begin(tab, path: Path, name: str = "Ada") -> None:
    tab.goto(path.as_uri())
    tab.fill("#name", name)
    tab.click("#go")


def asked(tab) -> tuple[int, str]:
    """Which pair is shown and which side is on the left, told by the pixels of both videos."""
    tab.wait_for_selector(ASKED)
    colours = tab.wait_for_function(
        """() => { const colours = ["left", "right"].map(side => {
            const video = document.querySelector(`#${side} video`), canvas = document.createElement("canvas");
            canvas.width = video.videoWidth; canvas.height = video.videoHeight;
            const context = canvas.getContext("2d");
            context.drawImage(video, 0, 0);
            return [...context.getImageData(canvas.width / 2, canvas.height - 4, 1, 1).data].slice(0, 3);
        });
        // A frame may be loaded and not yet drawn.
        return colours.every(([red, , blue]) => red + blue > 128) && colours; }"""
    ).json_value()
    sides = ["a" if red > blue else "b" for red, _, blue in colours]
    assert sorted(sides) == ["a", "b"]
    numbers = {round(green / 255 * 20) for _, green, _ in colours}
    number = int(tab.inner_text("#prompt").split()[-1])
    assert numbers == {number}, "the prompt above is not that of the videos"
    return number, sides[0]


def judge(tab, how: str, *, key: bool = False) -> tuple[int, str]:
    """Choose, and wait for what comes next."""
    found = asked(tab)
    tab.wait_for_timeout(SEEN)
    count = tab.inner_text("#count")
    if key:
        tab.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown"}[how])
    else:
        tab.click(f"#{how}")
    tab.wait_for_function("c => document.querySelector('#judging').hidden || count.innerText !== c", arg=count)
    return found


def downloaded(tab, folder: Path, button: str = "#done .download") -> Path:
    with tab.expect_download() as download:
        tab.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_what_is_clicked_is_what_is_read_back(tab, five, tmp_path):
    plan = ["left", "right", "tie", "left", "right"]
    begin(tab, five, "  Ada Lovelace ")
    shown, wanted = [], {}
    for how in plan:
        number, left = judge(tab, how)
        shown.append((number, left))
        right = "b" if left == "a" else "a"
        wanted[f"prompt {number}"] = {"left": left, "right": right, "tie": "tie"}[how]
    assert "5 pairs are judged, Ada Lovelace" in tab.inner_text("#summary")
    path = downloaded(tab, tmp_path)
    assert path.name.endswith("Ada-Lovelace.jsonl")
    rows = read_choices(path)
    assert {row["prompt"]: row["choice"] for row in rows} == wanted
    assert [(int(row["pair"]), row["left"]) for row in rows] == shown
    assert {row["rater"] for row in rows} == {"Ada Lovelace"}
    assert all(0.4 <= row["seconds"] < 30 for row in rows)
    assert compare(rows).n == 5
    # Sides are as even as five pairs can be, and pairs are not in the order they were given in.
    assert sorted(number for number, _ in shown) == list(range(5)) != [number for number, _ in shown]
    assert sum(left == "a" for _, left in shown) in (2, 3)


def test_closed_and_opened_again_it_goes_on(tab, tmp_path):
    path = write_page(tmp_path / "three.html", pairs(3))
    begin(tab, path)
    first = judge(tab, "left")
    assert len(downloaded(tab, tmp_path, "#judging .download").read_text().splitlines()) == 1
    tab.reload()
    tab.wait_for_function("() => document.querySelector('#name').value === 'Ada'")
    assert "1 of 3" in tab.inner_text("#found")
    tab.click("#go")
    assert tab.inner_text("#count") == "Pair 2 of 3"
    rest = [judge(tab, "right") for _ in range(2)]
    assert {number for number, _ in [first, *rest]} == {0, 1, 2}
    assert len(read_choices(downloaded(tab, tmp_path))) == 3
    # Another person at the same browser begins anew; both files are read together.
    tab.click("#another")
    tab.fill("#name", "Grace")
    assert tab.inner_text("#found") == ""
    tab.click("#go")
    assert tab.inner_text("#count") == "Pair 1 of 3"
    judge(tab, "left")
    downloaded(tab, tmp_path, "#judging .download")
    assert len(read_choices(tmp_path)) == 4


def test_the_seed_and_the_name_decide_the_order(tab, five, tmp_path):
    def order(path: Path, name: str) -> list:
        begin(tab, path, name)
        return tab.evaluate("order.map((i, k) => [i, aIsLeft[i]])")

    again = write_page(tmp_path / "again.html", pairs(5, width=64), seed=3)
    other = write_page(tmp_path / "other.html", pairs(5), seed=4)
    orders = [order(five, "Ada"), order(again, "Ada"), order(other, "Ada"), order(five, "Grace")]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


# A key in the very moment in which a pair can be judged, before anybody has seen anything.
EARLY = """
window.tooEarly = 0;
document.addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => {
    if (window.tooEarly || document.querySelector("#left").getAttribute("aria-disabled") !== "false") return;
    window.tooEarly = 1;
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
  }).observe(document.querySelector("#left"), { attributes: true });
});
"""


def test_by_keyboard(tab, five, tmp_path):
    tab.add_init_script(EARLY)
    begin(tab, five)
    first = asked(tab)
    assert tab.evaluate("window.tooEarly") == 1
    tab.wait_for_timeout(300)
    assert tab.inner_text("#count") == "Pair 1 of 5"
    judge(tab, "left", key=True)
    asked(tab)
    tab.wait_for_timeout(SEEN)
    tab.keyboard.down("ArrowRight")
    for _ in range(8):  # held down
        tab.wait_for_timeout(130)
        tab.keyboard.down("ArrowRight")
    tab.keyboard.up("ArrowRight")
    assert tab.inner_text("#count") == "Pair 3 of 5"
    tab.keyboard.press("Backspace")
    tab.keyboard.press("Backspace")
    assert tab.inner_text("#count") == "Pair 1 of 5"
    assert asked(tab) == first
    assert tab.get_attribute("#left", "class") == "card before"
    judge(tab, "tie", key=True)
    assert tab.inner_text("#count") == "Pair 3 of 5", "what is judged already is not asked again"
    rows = read_choices(downloaded(tab, tmp_path, "#judging .download"))
    assert [row["choice"] for row in rows if row["pair"] == str(first[0])] == ["tie"]
    asked(tab)
    tab.keyboard.press("p")
    assert tab.evaluate("videos.every(video => video.paused)")
    tab.keyboard.press("s")
    tab.keyboard.press("p")
    assert tab.evaluate("videos.map(video => video.playbackRate)[0]") == 0.5
    # The buttons are reached by Tab, and pressed like any button.
    tab.focus("#tie")
    tab.wait_for_timeout(SEEN)
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => document.querySelector('#count').innerText === 'Pair 4 of 5'")
    tab.wait_for_selector(ASKED)
    assert tab.evaluate("document.activeElement.id") == "tie", "the focus stays where it was"


def test_both_play_in_step_and_begin_again_together(tab, tmp_path):
    path = write_page(
        tmp_path / "page.html",
        [{"prompt": "prompt 0", "a": clip("a", 0, frames=12), "b": clip("b", 0, frames=20)}],
    )
    begin(tab, path)
    asked(tab)
    times = []
    for _ in range(60):
        times.append(tab.evaluate("videos.map(video => [video.currentTime, video.duration])"))
        tab.wait_for_timeout(50)
    shorter = min(duration for _, duration in times[0])
    assert shorter == pytest.approx(12 / 16, abs=0.02)
    playing = [(x, y) for (x, _), (y, _) in times if min(x, y) > 0.1 and max(x, y) < shorter - 0.05]
    assert len(playing) > 8
    apart = sorted(abs(x - y) for x, y in playing)
    assert apart[len(apart) // 2] < 0.05 and apart[-1] < 0.3
    longest = [max(x, y) for (x, _), (y, _) in times]
    falls = [i for i in range(1, len(longest)) if longest[i] < longest[i - 1] - 0.5]
    assert falls, "they did not begin again"
    # The shorter waits on its last frame for the longer.
    assert any(min(x, y) == pytest.approx(shorter, abs=0.03) and max(x, y) > shorter + 0.1 for (x, _), (y, _) in times)


def test_choices_go_to_a_file_where_the_browser_can(tab, five, tmp_path):
    """A real file of the browser's own file system; only the dialogue that names it is not shown."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=five.parent)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.add_init_script(
            "window.showSaveFilePicker = async () => (await navigator.storage.getDirectory())"
            ".getFileHandle('mine.jsonl', { create: true })"
        )
        tab.goto(f"http://localhost:{server.server_port}/five.html")
        tab.fill("#name", "Ada")
        tab.click("#go")
        judge(tab, "left")
        tab.click("#tofile")
        judge(tab, "right")
        judge(tab, "tie")
        tab.evaluate("writing")
        file = "(await (await navigator.storage.getDirectory()).getFileHandle('mine.jsonl')).getFile()"
        text = tab.evaluate(f"async () => (await {file}).text()")
        server.shutdown()
    assert "recorded in mine.jsonl" in tab.inner_text("#kept")
    (tmp_path / "mine.jsonl").write_text(text)
    rows = read_choices(tmp_path / "mine.jsonl")
    assert [row["choice"] == "tie" for row in rows] == [False, False, True]


def test_a_video_that_does_not_play_can_be_skipped(tab, tmp_path):
    path = write_page(tmp_path / "page.html", pairs(2))
    text = path.read_text()
    start = text.index(">", text.index('id="b1"')) + 1
    path.write_text(text[:start] + text[text.index("</script>", start) :])
    begin(tab, path)
    for _ in range(2):
        tab.wait_for_selector(f"{ASKED}, #trouble:not([hidden])")
        if tab.is_visible("#trouble"):
            tab.wait_for_timeout(SEEN)
            tab.keyboard.press("ArrowLeft")
            tab.click("#skip")
        else:
            judge(tab, "left")
    tab.wait_for_selector("#done:not([hidden])")
    assert "1 pair is judged" in tab.inner_text("#summary")
    assert "1 could not be played and was skipped" in tab.inner_text("#summary")
    assert [row["pair"] for row in read_choices(downloaded(tab, tmp_path))] == ["0"]


def test_words_stay_words(tab, tmp_path):
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & <!-- videos --> /* facts */"
    path = write_page(
        tmp_path / "page.html", [{**pairs(1)[0], "prompt": nasty}], title=f"{nasty}?", instructions=nasty
    )
    begin(tab, path, nasty[:60])
    tab.wait_for_selector(ASKED)
    assert tab.inner_text("#prompt") == nasty
    assert tab.title() == f"{nasty}?" == tab.inner_text("#question")
    tab.wait_for_timeout(SEEN)
    tab.click("#left")
    tab.wait_for_selector("#done:not([hidden])")
    (row,) = read_choices(downloaded(tab, tmp_path))
    assert (row["prompt"], row["rater"]) == (nasty, nasty[:60])


def test_a_browser_that_keeps_nothing_says_so(tab, five, tmp_path):
    tab.add_init_script("Storage.prototype.getItem = Storage.prototype.setItem = () => { throw new Error('no'); }")
    begin(tab, five)
    judge(tab, "left")
    assert "kept only while this page is open" in tab.inner_text("#kept")
    assert len(read_choices(downloaded(tab, tmp_path, "#judging .download"))) == 1


def test_every_kind_of_clip_plays_and_no_name_shows(tab, tmp_path):
    import av

    odd, old = tmp_path / "secret-odd.mp4", tmp_path / "secret-old.avi"
    save_clip(odd, clip("a", 0, height=31, width=47))
    with av.open(str(old), "w") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for image in ((load_clip(clip("b", 0)) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.copy(), format="rgb24")))
        container.mux(stream.encode(None))
    pair = {"prompt": "prompt 0", "a": odd, "b": {"path": str(old), "bytes": None}}
    path = write_page(tmp_path / "page.html", [pair])
    assert "secret" not in path.read_text()
    begin(tab, path)
    asked(tab)
    assert sorted(tab.evaluate("videos.map(video => [video.videoWidth, video.videoHeight])")) == [[48, 32], [48, 32]]
    assert tab.evaluate("videos.every(video => Math.abs(video.duration - 10 / 16) < 0.03)")


def test_an_h264_file_is_put_in_as_it_is(tmp_path):
    import base64

    save_clip(tmp_path / "a.mp4", clip("a", 0))
    path = write_page(tmp_path / "page.html", [{"prompt": "p", "a": tmp_path / "a.mp4", "b": clip("b", 0)}])
    assert base64.b64encode((tmp_path / "a.mp4").read_bytes()).decode() in path.read_text()
    facts = json.loads(path.read_text().split('id="facts">')[1].split("</script>")[0])
    assert facts["pairs"] == [{"pair": "0", "prompt": "p"}] and facts["seconds"] == pytest.approx(10 / 16, abs=0.01)
