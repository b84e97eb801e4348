// The address of what is shown, and the button that copies it. replaceState alone: the way back leads out of the page.
(() => {
  const WORDS = ['recipe', 'eta', 'tab', 'fact', 'module', 'step']
  let waiting = {}, timer = 0, copying = 0

  function write() {  // many changes are one: browsers refuse a hundred in half a minute
    clearTimeout(timer); timer = 0
    const url = new URL(location.href)
    for (const [word, value] of Object.entries(waiting))
      if (value === '' || value == null) url.searchParams.delete(word)
      else url.searchParams.set(word, value)
    waiting = {}
    if (url.href !== location.href) history.replaceState(history.state, '', url)
  }

  mergelab.address = words => {
    Object.assign(waiting, words)
    timer = timer || setTimeout(write, 200)
  }

  let form = null, models = null, asking = 0  // what the form says; loading a recipe changes many things one after the other
  mergelab.settled = () => {  // what looks at the form is quick; the analysis may wait in line, so it is asked by itself
    document.getElementById('settled').click()
    document.getElementById('quick').click()
  }

  mergelab.formChanged = (values, picks) => {
    const now = JSON.stringify(values)
    if (now === form) return
    form = now
    clearTimeout(asking)
    asking = setTimeout(() => {
      const before = models
      models = JSON.stringify(picks.map(place => values[place]))
      mergelab.settled()
      if (models !== before) document.getElementById('picked').click()
    }, 150)
  }

  async function copied(text) {
    try { await navigator.clipboard.writeText(text); return true } catch { /* no permission, or no https */ }
    const field = Object.assign(document.createElement('textarea'), {value: text})
    document.body.append(field); field.select()
    const done = document.execCommand('copy')
    field.remove()
    return done
  }

  mergelab.copyLink = async home => {
    write()
    const here = new URL(location.href), link = new URL(home || here.origin + here.pathname)
    for (const word of WORDS) if (here.searchParams.has(word)) link.searchParams.set(word, here.searchParams.get(word))
    const button = document.getElementById('copy-link'), before = button.dataset.label ??= button.textContent
    if (!await copied(link.href)) { prompt('The link:', link.href); return }
    button.textContent = 'Copied'
    clearTimeout(copying)
    copying = setTimeout(() => { button.textContent = before }, 1500)
  }
})()
