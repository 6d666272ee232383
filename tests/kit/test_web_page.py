"""The web kit's page in a real Chromium: it classifies, tests itself, works offline, says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Chromium, Page, find_chromium
from demo_split import DemoSplit
from numpy.typing import NDArray
from web_server import StaticServer

from edgeattn.data.images import load_image
from edgeattn.data.preprocess import preprocess_image
from edgeattn.errors import EdgeAttnError
from edgeattn.kit.model_folder import load_model, load_reference
from edgeattn.kit.spec import ReferenceImage
from edgeattn.kit.web import web_kit
from edgeattn.kit.web_runtime import read_runtime
from edgeattn.kit.write import write_kit

FAKE_CAMERA = "--use-fake-device-for-media-stream"
READY = "window.edgeattnKit?.firstAnswerAt"
# The machine that runs the tests may be busy with others.
PATIENCE_S = 60.0
KEPT_IMAGES = 12


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be served: `kit/` is the demonstration's web kit."""
    if find_chromium() is None:
        pytest.skip("needs Chromium: install the package chromium, or set EDGEATTN_CHROMIUM")
    try:
        read_runtime()
    except EdgeAttnError as exc:
        pytest.skip(f"needs ONNX Runtime Web: {exc}")
    folder = tmp_path_factory.mktemp("site")
    write_kit("web", None, folder / "kit")
    shutil.copytree(folder / "kit", folder / "shipped")
    take_exact_reference(folder / "kit")
    return folder


def logits_of(folder: Path, images: Sequence[Path]) -> NDArray[np.float32]:
    """What the graph says, computed in float32: no INT8 kernel, so no processor's saturation, has a part in it."""
    ort = pytest.importorskip("onnxruntime")
    model = load_model(folder)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(folder / model.model.file), options, providers=["CPUExecutionProvider"]
    )
    rows = []
    for image in images:
        values = preprocess_image(load_image(image), model.preprocess)
        rows.append(session.run(None, {model.model.input.name: values[None]})[0][0])
    return np.stack(rows)


def exact_logits(folder: Path, images: Sequence[ReferenceImage]) -> NDArray[np.float32]:
    return logits_of(folder, [folder / image.file for image in images])


def take_exact_reference(folder: Path) -> None:
    """Expect what the graph says, on images whose answer does not hang on a rounding."""
    model = load_model(folder / "model")
    reference = load_reference(folder / "model", model)
    tolerance, kept = reference.tolerance, []
    for image, logits in zip(reference.images, exact_logits(folder / "model", reference.images), strict=True):
        low, high = np.sort(logits)[-2:]
        if high - low > tolerance and len(kept) < KEPT_IMAGES:
            update = {"logits": tuple(logits.tolist()), "top1": int(logits.argmax())}
            kept.append(image.model_copy(update=update))
    assert len(kept) >= 4, "the demonstration's answers are all close calls"
    exact = reference.model_copy(update={"images": tuple(kept), "tolerance": tolerance})
    (folder / "model/reference.json").write_text(exact.model_dump_json())
    refresh_hashes(folder)


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[StaticServer]:
    started = StaticServer(site)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[Chromium]:
    with Chromium([FAKE_CAMERA]) as started:
        yield started


@pytest.fixture
def page(browser: Chromium, server: StaticServer) -> Iterator[Page]:
    """The kit's page with the first example classified."""
    with browser.page() as opened:
        opened.open(f"{server.url}kit/")
        opened.wait(READY, timeout_s=PATIENCE_S)
        yield opened


def click(page: Page, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).click()")


def problem(page: Page) -> str:
    """Return the message that the page shows, once it does."""
    shown = "!document.getElementById('problem').hidden && document.getElementById('problem').innerText"
    return str(page.wait(shown, timeout_s=PATIENCE_S))


def results(page: Page) -> int:
    return int(page.run("edgeattnKit.results"))


def run_self_test(page: Page) -> dict[str, Any]:
    click(page, "#test")
    outcome = page.wait("document.getElementById('test-result').dataset.outcome", timeout_s=PATIENCE_S)
    result: dict[str, Any] = json.loads(outcome)
    return result


def allow_camera(page: Page, setting: str) -> None:
    where = {"browserContextId": page.context} if page.context else {}
    page.browser.call("Browser.setPermission", permission={"name": "camera"}, setting=setting, **where)


def broken_kit(site: Path, name: str, file: str) -> None:
    """Make a copy of the kit in which one byte of a file is another."""
    shutil.copytree(site / "kit", site / name)
    path = site / name / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_first_example_is_classified_without_a_click(page: Page, site: Path) -> None:
    """The answer is the reference's, its probabilities add up, and nothing is complained about."""
    model = load_model(site / "kit/model")
    expected = load_reference(site / "kit/model", model).images[0]
    answer: dict[str, Any] = page.run("edgeattnKit.last")
    assert answer["top"] == expected.top1
    assert sum(answer["probabilities"]) == pytest.approx(1)
    assert len(answer["logits"]) == len(model.classes)
    bars: list[str] = page.run("[...document.querySelectorAll('#top li')].map((row) => row.innerText)")
    assert len(bars) == 5
    assert bars[0].startswith(model.classes[expected.top1])
    assert page.run("document.querySelectorAll('#examples img').length") >= 1
    # A blocked script or style (Content-Security-Policy) and a missing file would be errors here.
    assert [line for line in page.console() if not line.startswith(("log", "info"))] == []


def test_the_shipped_reference_is_passed(browser: Chromium, server: StaticServer, site: Path) -> None:
    """All of the demonstration's photographs have the answers that ort-cpu gave."""
    folder = site / "shipped/model"
    reference = load_reference(folder, load_model(folder))
    recorded = np.array([image.logits for image in reference.images])
    off = float(np.abs(exact_logits(folder, reference.images) - recorded).max())
    if off > reference.tolerance:
        pytest.skip(
            f"the demonstration's reference is off by {off:.2f} from what its graph says: it was made on a "
            "processor without VNNI, where ONNX Runtime's INT8 kernels saturate"
        )
    with browser.page() as page:
        page.open(f"{server.url}shipped/")
        page.wait(READY, timeout_s=PATIENCE_S)
        outcome = run_self_test(page)
        assert outcome["top1_equal"] == outcome["images"] == len(reference.images), outcome
        assert outcome["passed"], outcome


def test_the_self_test_passes(page: Page, site: Path) -> None:
    """Pixels bit for bit; first answers and logits are what the graph says."""
    outcome = run_self_test(page)
    count = len(load_reference(site / "kit/model", load_model(site / "kit/model")).images)
    assert outcome["images"] == count
    assert outcome["pixels_equal"] == count
    assert outcome["top1_equal"] == count, outcome
    assert outcome["passed"], outcome
    assert page.run("document.getElementById('test-result').innerText").startswith("Passed")


def test_the_page_of_somebodys_own_model_passes(
    browser: Chromium, server: StaticServer, site: Path, own_model: Path
) -> None:
    """With four classes that nobody named, and photographs of which nobody knows the class."""
    model = write_kit("web", own_model, site / "own")
    with browser.page() as page:
        page.open(f"{server.url}own/")
        page.wait(READY, timeout_s=PATIENCE_S)
        bars: list[str] = page.run("[...document.querySelectorAll('#top li')].map((row) => row.innerText)")
        assert len(bars) == len(model.classes) == 4
        outcome = run_self_test(page)
        assert outcome["passed"], outcome
        assert [line for line in page.console() if not line.startswith(("log", "info"))] == []


def test_the_self_test_sees_other_outputs(browser: Chromium, server: StaticServer, site: Path) -> None:
    """With another reference (hashes made to fit) it fails and names the images."""
    shutil.copytree(site / "kit", site / "other")
    folder = site / "other"
    path = folder / "model/reference.json"
    reference = json.loads(path.read_text())
    reference["images"][1]["top1"] = (reference["images"][1]["top1"] + 1) % 10
    reference["images"][2]["pixels_sha256"] = "0" * 64
    path.write_text(json.dumps(reference))
    refresh_hashes(folder)
    with browser.page() as page:
        page.open(f"{server.url}other/")
        page.wait(READY, timeout_s=PATIENCE_S)
        outcome = run_self_test(page)
        assert not outcome["passed"]
        assert outcome["pixels_equal"] == outcome["images"] - 1
        assert {reference["images"][i]["file"] for i in (1, 2)} <= set(outcome["differing"])
        assert page.run("document.getElementById('test-result').innerText").startswith("Failed")


def refresh_hashes(folder: Path) -> None:
    from edgeattn.artifact import sha256_of_file

    def entry(path: Path) -> dict[str, Any]:
        return {"sha256": sha256_of_file(path), "size_bytes": path.stat().st_size}

    model = json.loads((folder / "model/model.json").read_text())
    model["reference"] |= entry(folder / "model/reference.json")
    (folder / "model/model.json").write_text(json.dumps(model))
    manifest = json.loads((folder / "web.json").read_text())
    for name in ("model/model.json", "model/reference.json"):
        manifest["files"][name] = entry(folder / name)
    (folder / "web.json").write_text(json.dumps(manifest))
    manifest["files"]["web.json"] = entry(folder / "web.json")
    (folder / "precache.js").write_text(f"self.KIT = {json.dumps(manifest)};")


def test_heat_maps_are_drawn_and_cost_nothing_when_off(page: Page) -> None:
    assert page.run("edgeattnKit.last.heat") is None
    for kind in ("evidence", "attention"):
        click(page, f"input[value={kind}]")
        heat = page.wait("edgeattnKit.last.heat", timeout_s=PATIENCE_S)
        values = list(heat["values"].values())
        assert len(values) == heat["width"] * heat["height"]
        assert min(values) >= 0
        assert max(values) == pytest.approx(1)
        assert len(page.run("document.getElementById('heat-text').innerText")) > 40
        page.run("edgeattnKit.last = {}")
    drawn = "document.getElementById('overlay')"
    pixel = f"[...{drawn}.getContext('2d').getImageData({drawn}.width / 2, {drawn}.height / 2, 1, 1).data]"
    assert page.run(pixel)[3] > 0


def test_the_camera_is_classified_live(page: Page) -> None:
    allow_camera(page, "granted")
    before = results(page)
    click(page, "#camera")
    page.wait(f"edgeattnKit.results > {before} + 12", timeout_s=PATIENCE_S)
    summary = page.run("edgeattnKit.stats.summary()")
    assert summary["fps"] > 0
    assert 0 < summary["infer_p50_ms"] <= summary["infer_p90_ms"]
    # Figures are drawn a few times a second, and not with every frame.
    assert page.wait("document.getElementById('figure-fps').innerText !== '–'", timeout_s=PATIENCE_S)
    click(page, "#pause")
    page.run("new Promise((resolve) => setTimeout(resolve, 500))")
    paused = results(page)
    page.run("new Promise((resolve) => setTimeout(resolve, 500))")
    assert results(page) == paused
    click(page, "#camera")
    assert page.run("document.getElementById('video').hidden")


@pytest.mark.slow
def test_every_test_image_gets_the_class_of_ort_cpu(
    browser: Chromium, server: StaticServer, site: Path, demo_split: DemoSplit
) -> None:
    """On all photographs that the demonstration's network was not trained on, decoded by the browser."""
    (site / "split").mkdir()
    names = [f"{number:04}.jpg" for number in range(len(demo_split.paths))]
    for name, path in zip(names, demo_split.paths, strict=True):
        shutil.copy(path, site / "split" / name)
    answers: list[int] = []
    with browser.page() as page:
        page.open(f"{server.url}shipped/")
        page.wait(READY, timeout_s=5 * PATIENCE_S)
        page.run(
            """(async () => {
              const { Engine } = await import("./engine.js");
              const [kit, model] = await Promise.all(
                ["web.json", "model/model.json"].map(async (url) => (await fetch(url)).json()));
              globalThis.own = await Engine.start({ kit, model, backend: "wasm", threads: 1 });
            })()""",
            timeout_s=5 * PATIENCE_S,
        )
        for start in range(0, len(names), 20):
            answers += page.run(
                f"""(async () => {{
                  const answers = [];
                  for (const name of {json.dumps(names[start : start + 20])})
                    answers.push((await own.classify(await (await fetch(`../split/${{name}}`)).blob(), "off")).top);
                  return answers;
                }})()""",
                timeout_s=5 * PATIENCE_S,
            )
    assert demo_split.differing(answers) == []


def test_a_refused_camera_is_explained(page: Page) -> None:
    allow_camera(page, "denied")
    click(page, "#camera")
    said = problem(page)
    assert "camera was refused" in said
    assert "site settings" in said
    click(page, "#problem-close")
    assert page.run("document.getElementById('problem').hidden")


def test_a_dropped_video_is_classified_frame_by_frame(page: Page) -> None:
    """A real WebM file, recorded by the browser itself, then dropped on the page."""
    before = results(page)
    page.run(
        """(async () => {
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [160, 120];
          const recorder = new MediaRecorder(canvas.captureStream(), { mimeType: "video/webm" });
          const parts = [];
          recorder.ondataavailable = ({ data }) => parts.push(data);
          const stopped = new Promise((resolve) => (recorder.onstop = resolve));
          recorder.start();
          for (let i = 0; i < 20; i++) {
            canvas.getContext("2d").fillStyle = `rgb(${10 * i} 80 120)`;
            canvas.getContext("2d").fillRect(0, 0, 8 * i, 120);
            await new Promise((resolve) => setTimeout(resolve, 40));
          }
          recorder.stop();
          await stopped;
          const transfer = new DataTransfer();
          transfer.items.add(new File(parts, "clip.webm", { type: "video/webm" }));
          dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
        })()"""
    )
    page.wait(f"edgeattnKit.results > {before} + 3", timeout_s=PATIENCE_S)
    assert page.run("[edgeattnKit.last.width, edgeattnKit.last.height]") == [160, 120]


def test_an_image_file_is_classified_as_its_reference(page: Page, site: Path) -> None:
    images = load_reference(site / "kit/model", load_model(site / "kit/model")).images
    chosen = images[-1]
    before = results(page)
    page.set_files("#file", [site / "kit/model" / chosen.file])
    page.wait(f"edgeattnKit.results > {before}", timeout_s=PATIENCE_S)
    assert page.run("edgeattnKit.last.top") == chosen.top1


def test_an_unreadable_image_is_explained_and_the_next_one_works(
    page: Page, site: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "holiday.jpg"
    bad.write_bytes(b"no picture at all")
    page.set_files("#file", [bad])
    assert "not an image that this browser can read" in problem(page)
    before = results(page)
    page.set_files("#file", [site / "kit/model/images/0001.jpg"])
    page.wait(f"edgeattnKit.results > {before}", timeout_s=PATIENCE_S)
    assert page.run("document.getElementById('problem').hidden")


@pytest.mark.parametrize("file", ["model/model.web.onnx", "runtime/ort-wasm-simd-threaded.wasm"])
def test_a_damaged_file_is_not_used(browser: Chromium, server: StaticServer, site: Path, file: str) -> None:
    name = f"broken-{Path(file).suffix[1:]}"
    broken_kit(site, name, file)
    with browser.page() as page:
        page.open(f"{server.url}{name}/")
        said = problem(page)
        assert file in said
        assert "damaged or was changed" in said
        assert results(page) == 0


@pytest.fixture(scope="module")
def webgpu_server(site: Path) -> Iterator[StaticServer]:
    """Serves a kit that also has the build for graphics processors."""
    try:
        read_runtime(webgpu=True)
    except EdgeAttnError as exc:
        pytest.skip(f"needs ONNX Runtime Web: {exc}")
    if not (site / "webgpu").exists():
        write_kit(web_kit(webgpu=True), None, site / "webgpu")
    started = StaticServer(site / "webgpu")
    yield started
    started.stop()


def choose_webgpu(page: Page, url: str, patience_s: float) -> list[float]:
    """Classify the first example in WebAssembly, then again after WebGPU was chosen; return the first logits."""
    page.open(url)
    page.wait(READY, timeout_s=PATIENCE_S)
    first: list[float] = page.run("edgeattnKit.last.logits")
    before = results(page)
    page.run("document.getElementById('backend').value = 'webgpu'")
    page.run("document.getElementById('backend').dispatchEvent(new Event('change'))")
    page.wait(f"edgeattnKit.results > {before}", timeout_s=patience_s)
    return first


def test_where_webgpu_fails_the_page_says_why_and_goes_on(webgpu_server: StaticServer) -> None:
    """This browser offers WebGPU, but no graphics processor."""
    with Chromium(["--disable-gpu", "--disable-software-rasterizer"]) as own, own.page() as page:
        first = choose_webgpu(page, webgpu_server.url, PATIENCE_S)
        said = problem(page)
        assert "could not open the model with webgpu" in said
        assert "GPU adapter" in said
        assert "WebAssembly runs the network instead" in said
        assert page.run("document.getElementById('backend').value") == "wasm"
        assert page.run("document.getElementById('engine-state').innerText").startswith("ready: WebAssembly")
        assert page.run("edgeattnKit.last.logits") == first


@pytest.mark.slow
def test_webgpu_gives_the_same_answer(webgpu_server: StaticServer, site: Path) -> None:
    """On SwiftShader, a graphics processor in software: right, and a thousand times too slow."""
    with Chromium(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]) as own, own.page() as page:
        first = choose_webgpu(page, webgpu_server.url, 10 * PATIENCE_S)
        if page.run("document.getElementById('backend').value") != "webgpu":
            pytest.skip(f"this Chromium has no SwiftShader for WebGPU: {problem(page)}")
        model = load_model(site / "webgpu/model")
        tolerance = load_reference(site / "webgpu/model", model).tolerance
        logits = page.run("edgeattnKit.last.logits")
        assert int(np.argmax(logits)) == int(np.argmax(first))
        assert float(np.abs(np.subtract(logits, first)).max()) <= tolerance


def test_it_fits_a_phones_screen(browser: Chromium, server: StaticServer) -> None:
    """Nothing reaches over the edge, and what is pressed is large enough for a thumb."""
    with browser.page(360, 740) as page:
        page.resize(360, 740, scale=3, mobile=True)
        page.open(f"{server.url}kit/")
        page.wait(READY, timeout_s=PATIENCE_S)
        listed = f"document.querySelectorAll('#examples img').length === {KEPT_IMAGES}"
        loaded = "[...document.querySelectorAll('#examples img')].every((image) => image.naturalWidth > 0)"
        # Examples come one after the other, behind the first answer.
        page.wait(f"{listed} && {loaded}", timeout_s=PATIENCE_S)
        # The strip of examples scrolls by itself: it has to fit, not what it holds.
        wide = """[...document.querySelectorAll("main *")].filter(
            (part) => part.getBoundingClientRect().right > innerWidth + 1 && getComputedStyle(part).position !== "absolute"
            && !part.closest("#examples > *")
        ).map((part) => part.id || part.className || part.tagName)"""
        assert page.run(wide) == []
        assert page.run("getComputedStyle(document.getElementById('examples')).overflowX") == "auto"
        assert page.run("document.documentElement.scrollWidth") <= 360
        heights = "['camera', 'test'].map((id) => document.getElementById(id).getBoundingClientRect().height)"
        assert min(page.run(heights)) >= 40


def test_controls_have_names_and_are_reached_by_keyboard(page: Page) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "radio", "combobox", "link", "progressbar", "image"}
    controls = [
        node for node in tree if node.get("role", {}).get("value") in roles and not node.get("ignored")
    ]
    assert len(controls) >= 8
    unnamed = [node["role"]["value"] for node in controls if not node.get("name", {}).get("value")]
    assert unnamed == []
    reached = set()
    for _ in range(30):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(page.run("document.activeElement.id || document.activeElement.name"))
    assert {"camera", "file", "heat", "backend", "test"} <= reached


def test_it_opens_without_the_server_and_with_more_threads(browser: Chromium, site: Path) -> None:
    """After one visit the page needs no server; its service worker also makes it cross-origin isolated."""
    own = StaticServer(site)
    try:
        with browser.page() as page:
            page.open(f"{own.url}kit/")
            page.wait("document.documentElement.dataset.offline === 'ready'", timeout_s=PATIENCE_S)
            first = page.run("edgeattnKit.last.logits")
            own.stop()
            page.run("edgeattnKit.firstAnswerAt = null")
            page.call("Page.reload")
            page.wait(READY, timeout_s=PATIENCE_S)
            assert page.run("edgeattnKit.last.logits") == first
            assert page.run("crossOriginIsolated")
            before = results(page)
            page.run("document.getElementById('threads').value = '2'")
            page.run("document.getElementById('threads').dispatchEvent(new Event('change'))")
            page.wait(f"edgeattnKit.results > {before}", timeout_s=PATIENCE_S)
            assert page.run("edgeattnKit.opened.threads") == 2
            assert page.run("edgeattnKit.last.logits") == first
    finally:
        own.stop()


def test_a_browser_without_webassembly_is_told_so(browser: Chromium, server: StaticServer) -> None:
    with browser.page() as page:
        page.before_load("delete globalThis.WebAssembly")
        page.open(f"{server.url}kit/")
        assert "WebAssembly switched off" in problem(page)
        assert "not running" in page.run("document.getElementById('engine-state').innerText")
        assert results(page) == 0


def test_a_page_opened_as_a_file_says_how_to_serve_it(browser: Chromium, site: Path) -> None:
    with browser.page() as page:
        page.open((site / "kit/index.html").as_uri())
        assert "python -m http.server" in problem(page)
