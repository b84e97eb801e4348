// Gradio's server ends the stream of its answers once it has given all of them. What is asked in that very moment takes
// the stream for open, and its answer waits, unheard, until something else is asked: a press of a button seems lost.
// Here the stream goes on while a question is open.
(() => {
  const plain = window.fetch.bind(window), open = new Set(), early = new Set()  // early: answered before it had a name
  let asking = 0

  async function ask(input, options) {
    asking++
    try {
      const answer = await plain(input, options)
      const {event_id: name} = answer.ok ? await answer.clone().json() : {}
      if (name && !early.delete(name)) open.add(name)
      return answer
    } finally { asking-- }
  }

  function noted(message) {  // what kind of message it is; its beginning says it, and whom it answers
    const start = message.slice(0, 300), said = key => (new RegExp(`"${key}":\\s*"(\\w+)"`).exec(start) || [])[1]
    const kind = said('msg'), name = said('event_id')
    if (kind === 'process_completed' && name && !open.delete(name)) early.add(name)
    if (kind === 'unexpected_error') open.clear()
    return kind
  }

  async function listen(input, options) {
    const first = await plain(input, options), encoder = new TextEncoder()
    if (!first.ok || !first.body) return first
    const readerOf = answer => answer.body.pipeThrough(new TextDecoderStream()).getReader()
    let reader = readerOf(first), rest = ''
    const body = new ReadableStream({
      async pull(controller) {
        for (;;) {
          const {value, done} = await reader.read()
          if (done) return controller.close()
          const messages = (rest + value).split('\n\n')
          rest = messages.pop()
          const ended = messages.map(noted).includes('close_stream')
          if (ended && (open.size || asking)) {
            const next = await plain(input, options)
            if (next.ok) { messages.pop(); reader = readerOf(next) }  // the last one is the end
          }
          if (messages.length) return controller.enqueue(encoder.encode(messages.map(message => message + '\n\n').join('')))
        }
      },
      cancel: why => reader.cancel(why),
    })
    return new Response(body, {status: first.status, headers: first.headers})
  }

  window.fetch = (input, options) => {
    const address = String(input.url || input)
    if (address.includes('/queue/join')) return ask(input, options)
    if (address.includes('/queue/data')) return listen(input, options)
    if (address.endsWith('/cancel') && options && options.body) open.delete(JSON.parse(options.body).event_id)
    return plain(input, options)
  }
})()
