"""The stream of a page's answers goes on while a question is open, as gradio's own would end under it."""

from test_page import browser  # noqa: F401  a fixture

from mergelab.page.panel import STREAM_JS

SERVER = """() => {
  const message = (msg, event_id) => `data: ${JSON.stringify({msg, event_id, output: 'x'.repeat(1000)})}\\n\\n`
  window.streams = []; window.names = []; window.delay = 0
  window.fetch = async input => {
    if (!input.includes('/queue/data')) {
      const name = window.names.shift()
      await new Promise(done => setTimeout(done, window.delay))
      return new Response(JSON.stringify({event_id: name}))
    }
    const said = window.streams.shift() || []
    return new Response(new ReadableStream({async start(controller) {
      for (const [wait, ...of_it] of said) {
        await new Promise(done => setTimeout(done, wait))
        const bytes = new TextEncoder().encode(message(...of_it))
        controller.enqueue(bytes.slice(0, 10)); controller.enqueue(bytes.slice(10))  // a message in two pieces
      }
      controller.close()
    }}))
  }
}"""
HEARD = """async () => {
  const reader = (await fetch('/queue/data?session_hash=x')).body.pipeThrough(new TextDecoderStream()).getReader()
  let all = ''
  for (;;) { const {value, done} = await reader.read(); if (done) break; all += value }
  const messages = all.split('\\n\\n').filter(Boolean).map(line => JSON.parse(line.slice(6)))
  return [messages.map(message => message.msg + ' ' + (message.event_id || '')), window.streams.length]
}"""
END = [0, "close_stream"]


def heard(browser, asked, streams, before="", delay=0):  # noqa: F811
    """What a page hears of `streams`, [wait in ms, kind of message, name] each, and how many of them are left."""
    page = browser.new_page()
    page.evaluate(SERVER)
    page.add_script_tag(path=STREAM_JS)
    page.evaluate("given => Object.assign(window, given)", {"names": asked, "streams": streams, "delay": delay})
    page.evaluate(f"async () => {{ const asks = {asked}.map(() => fetch('/queue/join')); {before} }}")
    found = page.evaluate(HEARD)
    page.close()
    return found


def test_what_is_asked_as_the_stream_ends_is_heard(browser):  # noqa: F811
    ended, late = [[0, "process_completed", "a"], END], [[200, "process_completed", "b"], END]
    said = ["process_completed a", "process_completed b", "close_stream "]
    assert heard(browser, ["a", "b"], [ended, late], "await Promise.all(asks)") == [said, 0]
    assert heard(browser, ["a", "b"], [ended, late], delay=100) == [said, 0], "both still on their way"


def test_the_stream_ends_where_nothing_is_open(browser):  # noqa: F811
    ended = [[0, "process_generating", "a"], [0, "process_completed", "a"], END]
    said = ["process_generating a", "process_completed a", "close_stream "]
    assert heard(browser, ["a"], [ended, [END]], "await Promise.all(asks)") == [said, 1]
    ended[-1] = [200, "close_stream"]  # answered before the question had its name
    assert heard(browser, ["a"], [ended, [END]], delay=100) == [said, 1]


def test_what_was_stopped_or_failed_keeps_no_stream_open(browser):  # noqa: F811
    stop = "await Promise.all(asks); await fetch('/cancel', {body: JSON.stringify({event_id: 'a'})})"
    assert heard(browser, ["a"], [[END], [END]], stop) == [["close_stream "], 1]
    failed, said = [[0, "unexpected_error"], END], ["unexpected_error ", "close_stream "]
    assert heard(browser, ["a"], [failed, [END]], "await Promise.all(asks)") == [said, 1]
