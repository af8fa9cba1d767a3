"""The page in Chromium: with a mouse, with keys alone, on a phone, and with input that nobody should give."""

import json
import re
import shutil
import threading

import pytest

from regard.explore import cost
from regard.explore.answers import Answers
from regard.explore.server import make_server
from regard.train.budget import Budget

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed: apt-get install chromium-driver"
)
SETTLED = """const calls = [...document.querySelectorAll('.call')];
const busy = document.querySelector('.waiting, [aria-busy=true]');
return !busy && calls.length > 0 && calls.every((call) => call.textContent)"""
RING = """const [active] = arguments, seen = active.matches('.kinds input') ? active.nextElementSibling : active;
const { outlineStyle, outlineWidth } = getComputedStyle(seen);
return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(cost, "LENGTHS", (64, 128))
        patch.setattr(cost, "SIDES", (6, 8))
        answers = Answers(Budget(steps=2))
        answers.mechanisms({})  # imports every mechanism, which takes its time under the type checker of the tests
        server = make_server("127.0.0.1", 0, answers)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                 "--disable-component-update", f"--user-data-dir={profile}"):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get("about:blank")  # what stands there at first asks for things
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    """A fresh page at rest; at the end nothing was said on its console, and nobody else was asked for anything."""
    browser.get_log("browser")
    browser.get_log("performance")
    page = Page(browser)
    page.sized(1280, 900)
    browser.get(address)
    page.rest()
    yield page
    assert browser.get_log("browser") == page.expected
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    assert urls
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []


class Page:
    def __init__(self, browser):
        self.browser, self.expected = browser, []

    def sized(self, width, height):
        self.width = width
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def until(self, true):
        return WebDriverWait(self.browser, 120, poll_frequency=0.05).until(lambda _: true())

    def rest(self):
        self.until(lambda: self.browser.execute_script(SETTLED))

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.all(selector)[0]

    def text(self, selector):
        return self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)

    def says(self, selector, words):
        self.until(lambda: words in self.text(selector))

    def choose(self, name, panel=0):
        Select(self.all("select.name")[panel]).select_by_value(name)
        self.until(lambda: f'"{name}"' in self.all(".call")[panel].get_attribute("textContent"))

    def kind(self, value):
        self.browser.execute_script("document.querySelector(`[value=${arguments[0]}]`).click()", value)

    def enter(self, selector, text):
        """As a paste does it."""
        self.browser.execute_script(
            "const place = document.querySelector(arguments[0]); place.value = arguments[1];"
            "place.dispatchEvent(new Event('input', { bubbles: true }));", selector, text
        )  # fmt: skip

    def keys(self, *keys):
        self.browser.switch_to.active_element.send_keys(*keys)

    def sideways(self):
        # a phone zooms out until everything fits, so its own width tells nothing
        return self.browser.execute_script("return document.documentElement.scrollWidth") - self.width


def test_the_first_picture_is_there_without_a_click(page):
    assert page.browser.title == "regard explore"
    assert page.text(".pattern .title") == "Window(32, 0)"
    assert "Untrained" in page.text(".look .state")
    assert "takes most from" in page.text(".look .readout")
    assert "Exact weights" in page.text(".look figcaption")
    assert "dense attention" in page.text(".verdict")
    assert "median of 2 turns" in page.text(".cost figcaption")
    assert page.all(".cost svg polyline")
    assert "arXiv:" in page.text(".card dl")
    painted = page.browser.execute_script(
        "const map = document.querySelector('.pattern canvas');"
        "const { data } = map.getContext('2d').getImageData(0, 0, map.width, 1);"
        "return [map.width, data.slice(0, 3).join(), data.slice(4 * 40, 4 * 40 + 3).join()]"
    )
    assert painted == [256, "18,58,124", "255,255,255"], "the first query sees itself and nothing later"


def test_parameters_change_the_picture_and_refusals_stand_beside_their_control(page):
    page.enter("[data-option=window]", "5")
    page.says(".pattern .title", "Window(5, 0)")
    page.rest()
    for value, words, mended in (("-3", "at least 0, not -3", "7"), ("wide", "no whole number", "9")):
        page.enter("[data-option=window]", value)
        page.until(lambda: page.all(".parameters .trouble"))
        page.says(".parameters .trouble", words)
        field = page.one("[data-option=window]")
        assert field.get_attribute("aria-invalid") == "true"
        assert page.one(f"#{field.get_attribute('aria-describedby')}").is_displayed()
        page.enter("[data-option=window]", mended)
        page.says(".pattern .title", f"Window({mended}, 0)")
        assert not page.all(".parameters .trouble")
        assert not page.all("[aria-invalid]")
    page.enter("[data-heads]", "3")
    page.until(lambda: page.all(".parameters .trouble"))
    page.says(".parameters .trouble", "cannot be shared by 3")
    page.enter("[data-heads]", "8")
    page.says(".call", "num_heads=8")
    page.enter(".length", "0")
    page.says(".pattern figcaption", "cannot be drawn")
    page.enter(".length", "40")
    page.says(".pattern figcaption", "at 40 positions")


def test_keys_alone_will_do(page):
    order = []
    for _ in range(30):
        page.keys(Keys.TAB)
        active = page.browser.switch_to.active_element
        order.append(
            active.get_attribute("id")
            or active.get_attribute("data-option")
            or active.get_attribute("class")
            or active.tag_name
        )
        assert page.browser.execute_script(RING, active), f"nobody sees that {order[-1]} has the focus"
        if "length" in order:
            break
    wanted = ["skip", "text", "compare", "name", "window", "form", "primary", "depth", "head", "tokens", "length"]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places), order
    assert order.count("tokens") == 1, "all tokens together are one stop"

    page.keys(Keys.SHIFT, Keys.TAB)
    assert "tokens" in page.browser.switch_to.active_element.get_attribute("class")
    page.keys(Keys.HOME)
    assert page.text(".look .readout").startswith("“T” (0) takes most from “T” (0) 1.0")
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.text(".tokens [aria-selected=true]") == "e"
    chosen = page.one(".tokens").get_attribute("aria-activedescendant")
    assert page.one(f"#{chosen}").text == "e"

    page.browser.execute_script("document.querySelector('.train button').focus()")
    page.keys(Keys.ENTER)
    page.says(".look .state", "Trained on the help topics of Python")
    assert "(2 steps); held out: bits per byte" in page.text(".look .state")
    assert not page.one(".train button").is_displayed()

    page.browser.execute_script("document.querySelector('#compare').focus()")
    page.keys(Keys.SPACE)
    page.until(lambda: len(page.all(".panel")) == 2)
    page.rest()


def test_two_stand_side_by_side(page):
    page.one("#compare").click()
    page.until(lambda: len(page.all(".tokens")) == 2)
    page.rest()
    left, right = (panel.rect for panel in page.all(".panel"))
    assert left["x"] + left["width"] <= right["x"]
    tops = [[figure.rect["y"] for figure in panel.find_elements(By.TAG_NAME, "figure")] for panel in page.all(".panel")]
    assert tops[0] == tops[1], "what is compared stands at the same height"
    page.choose("performer", panel=1)
    page.rest()
    assert page.all(".panel")[0].find_element(By.CSS_SELECTOR, ".pattern .title").text == "Window(32, 0)"
    page.one("#compare").click()
    assert len(page.all(".panel")) == 1


def test_a_mechanism_of_each_kind_of_data(page):
    page.choose("halonet")
    page.says(".look .state", "choose Image above")
    page.kind("image")
    page.until(lambda: page.all(".patches"))
    page.rest()
    assert page.text(".look .readout").startswith("row 8, column 8 takes most from row")
    page.browser.execute_script("document.querySelector('.patches').focus()")
    page.keys(Keys.ARROW_UP)
    assert page.text(".look .readout").startswith("row 7, column 8 takes")
    page.browser.execute_script("document.querySelector('.patches').scrollIntoView({ block: 'center' })")
    page.keys(Keys.HOME)
    page.one(".patches").click()
    assert re.match("row [78], column [78] takes", page.text(".look .readout"))
    page.choose("linear_transformer")
    page.rest()
    assert not page.one("[data-causal]").is_selected(), "an image is not read from left to right"
    assert page.all(".patches")
    page.kind("text")
    page.until(lambda: page.one("[data-causal]").is_selected())
    page.says(".call", "causal=True")
    page.browser.execute_script("document.querySelector('[data-causal]').click()")
    page.kind("image")
    page.kind("text")
    assert not page.one("[data-causal]").is_selected(), "it was set by hand"
    page.choose("bahdanau")
    page.says(".look .state", "from one input to another")
    page.says(".verdict", "Two inputs meet here")
    assert "untrained" in page.text(".pattern .title")
    page.kind("sequence")
    page.choose("set_transformer")
    page.rest()
    assert page.text(".tokens").startswith("GATTACA")
    assert "Jacobian" in page.text(".look figcaption")


def test_texts_that_nobody_should_give(page):
    page.enter("#text", "")
    page.says(".look .state", "There is nothing to look at yet")
    page.enter("#text", "👩‍👩‍👧 \u202e<b>&amp;</b>")
    page.says("#text-remark", "characters: the models read bytes")
    assert "<b>&amp;</b>" in page.text(".tokens")
    page.browser.execute_script(
        "const clipboardData = new DataTransfer(), area = document.querySelector('#text');"
        "clipboardData.setData('text/plain', 'long 🍮'.repeat(130000)); area.select();"
        "area.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }));"
    )
    page.says("#text-remark", "of 1,170,000 bytes, behind")
    page.rest()
    assert len(page.browser.execute_script("return document.querySelector('#text').value")) <= 4096
    assert len(page.all(".tokens [role=option]")) <= 256


def test_files_that_nobody_should_give(page, tmp_path):
    from PIL import Image

    def give(name, data):
        (tmp_path / name).write_bytes(data)
        page.one("#file").send_keys(str(tmp_path / name))

    page.kind("image")
    page.until(lambda: page.all(".patches"))
    give("letter.png", b"Dear Sir or Madam")
    page.says(".look .state", "no image that can be opened")
    give("empty.png", b"")
    page.says("#text-remark", "empty.png is empty")
    give("large.png", bytes(25_000_000))
    page.says("#text-remark", "large.png has 25 MB")
    Image.new("RGB", (1, 3000), "red").save(tmp_path / "thin.png")
    page.one("#file").send_keys(str(tmp_path / "thin.png"))
    page.says("#text-remark", "the middle of 1 x 3,000 pixels")
    page.rest()
    assert page.all(".patches")


def test_on_a_phone_nothing_scrolls_sideways(page):
    page.sized(390, 844)
    page.one("#compare").click()
    page.until(lambda: len(page.all(".tokens")) == 2)
    page.rest()
    assert page.sideways() == 0
    page.enter("#text", "unbreakable" * 40)
    page.browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    page.until(lambda: len(page.all(".tokens [role=option]")) == 512)
    assert page.sideways() == 0
    page.choose("halonet")
    page.choose("mac", panel=1)
    page.kind("image")
    page.until(lambda: page.all(".patches"))
    page.rest()
    assert page.sideways() == 0
    small = [
        part.get_attribute("class")
        for part in page.all("button, select, summary")
        if part.is_displayed() and part.rect["height"] < 30
    ]
    assert small == [], "too small for a finger"


def test_a_server_that_is_gone_is_said(page):
    page.browser.execute_cdp_cmd("Network.enable", {})
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", gone)
    page.enter("#text", "anybody?")
    page.says(".look .state", "does not answer: was it stopped")
    page.browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions", {**gone, "offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    )
    page.browser.get_log("browser")  # the browser itself complains
    page.enter("#text", "somebody!")
    page.says(".tokens", "somebody!")
