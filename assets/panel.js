// Plotly figures on a Gradio page: drawn in place, themed by the page, and moved by η without asking the server.
// A figure says in layout.meta.eta how it follows η; see mergelab/plots/, which makes the figures.
window.mergelab = (() => {
  const panels = new Set()
  let eta = 40, pending = false, opened = null  // opened: the module whose spectra are drawn

  const touched = matchMedia('(pointer: coarse)').matches  // a finger scrolls the page, over a figure too
  const css = name => getComputedStyle(document.body).getPropertyValue(name).trim()

  function themed(layout) {
    const text = css('--body-text-color') || '#333', line = css('--border-color-primary') || '#ddd'
    const out = {...layout, template: 'none', autosize: true, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      font: {family: css('--font') || 'sans-serif', color: text, size: 12}, dragmode: layout.dragmode || (touched ? false : 'zoom'),
      modebar: {bgcolor: 'rgba(0,0,0,0)', color: css('--body-text-color-subdued') || '#888', activecolor: text},
      hoverlabel: {bgcolor: css('--background-fill-primary') || '#fff', bordercolor: line, font: {color: text}}}
    for (const key of Object.keys(out).filter(key => /^[xy]axis\d*$/.test(key)))
      out[key] = {...out[key], gridcolor: line, linecolor: line, zerolinecolor: line}
    return out
  }

  function legible(trace, width) {  // the numbers in the cells of a heatmap no wider than these, or none
    if (!trace.texttemplate || !trace.text || !(trace.textfont && trace.textfont.size) || !width) return trace
    const longest = Math.max(...trace.text.flat().map(text => text.length)), cell = (width - 150) / trace.x.length
    const size = Math.min(trace.textfont.size, Math.floor(cell / (0.8 * longest)))
    return {...trace, ...(size < 8 ? {texttemplate: ''} : {textfont: {...trace.textfont, size}})}
  }

  const tight = rows => rows.map(row => row.map(text => text.replace(' ', '')))

  // On a phone: two plots one above the other, and a heatmap without what does not fit.
  function fitted(panel, {data, layout}) {
    const narrow = panel.host.offsetWidth > 0 && panel.host.offsetWidth < 600, pair = layout.meta && layout.meta.pair
    panel.host.style.height = narrow && (pair || layout.meta && layout.meta.tall) ? `${layout.meta.tall || 620}px` : panel.height
    if (layout.meta && layout.meta.half) return {data, layout}  // half: made to stand beside another
    const texts = layout.meta && layout.meta.texts  // a table: its texts are the point
    if (texts) data = data.map(trace => ({...trace, textfont: {...trace.textfont, color: css('--body-text-color')}}))
    if (!narrow) return {layout, data: texts ? data : data.map(trace => legible(trace, panel.host.offsetWidth))}
    if (pair) return {data, layout: {...layout,
      xaxis: {...layout.xaxis, domain: [0, 1], title: undefined}, yaxis: {...layout.yaxis, domain: [0.56, 1]},
      xaxis2: {...layout.xaxis2, domain: [0, 1]}, yaxis2: {...layout.yaxis2, domain: [0, 0.46]}}}
    return {layout: {...layout, xaxis: {...layout.xaxis, tickfont: {size: 9}, tickangle: texts ? 0 : -90},
      ...(texts ? {yaxis: {...layout.yaxis, tickfont: {size: 9}}} : {}),
      legend: data.length < 5 ? layout.legend : {...layout.legend, y: -0.25, yanchor: 'top'}},
      data: data.map(trace => trace.type !== 'heatmap' ? {...trace, textangle: 0} :
        {...trace, showscale: false, ...(texts ? {textfont: {...trace.textfont, size: 8}, text: tight(trace.text)} : {texttemplate: ''})})}
  }

  function ranksOf(figure) {  // the table as (rows, 101) numbers, decoded once per figure
    const follow = figure.layout.meta && figure.layout.meta.eta
    if (!follow) return null
    if (!follow.ranks) {
      const bytes = Uint8Array.from(atob(follow.table), c => c.charCodeAt(0))
      follow.ranks = new Uint16Array(bytes.buffer)
    }
    return (own, ...index) => {  // own: the η that this module has by the recipe, or nothing
      const at = Math.max(0, Math.min(100, Math.round(own ?? eta)))
      let flat = 0
      index.forEach((i, axis) => { flat = flat * follow.shape[axis] + i })
      return follow.ranks[flat * 101 + at]
    }
  }

  function say(sentence) {
    const place = document.getElementById('readout')
    if (place && place.textContent !== sentence) place.textContent = sentence
  }

  // The frame around the column of the module that is open, as a part of a layout; null: the figure has no such columns.
  function framed(figure) {
    const trace = figure.data[0]
    if (!trace || trace.type !== 'heatmap' || figure.layout.meta.across !== 'module') return null
    const at = trace.customdata[0].indexOf(opened), line = {color: css('--body-text-color'), width: 2}
    const edge = {type: 'rect', xref: 'x', yref: 'paper', x0: at - 0.5, x1: at + 0.5, y0: 0, y1: 1, line}
    return {shapes: at < 0 ? [] : [edge]}
  }

  function frame({figure, host}) {
    const frame = figure && host.isConnected && framed(figure)
    if (frame) Plotly.relayout(host, frame)
  }

  // What was measured of a merge at one η is dimmed at another one, and says so.
  function past(panel) {
    const {measured, says} = (panel.figure && panel.figure.layout.meta) || {}, here = Math.round(eta)
    const other = measured !== undefined && Math.round(measured) !== here
    panel.host.classList.toggle('ml-past', other)
    if (says) say(other ? `This was measured at η = ${measured} %: press Analyse to have it at ${here} %.` : says)
  }

  // What η makes of a figure: `trace` of its first one, `layout`, and the sentence over it.
  const moved = {
    heat(follow, rank) {
      const [rows, columns] = follow.shape, z = [], text = []
      let least = Infinity, most = 0, share = 0
      for (let r = 0; r < rows; r++) {
        z.push([]); text.push([])
        for (let c = 0; c < columns; c++) {
          const kept = rank(follow.held && follow.held[c], r, c)
          z[r].push(kept / follow.full[c]); text[r].push(String(kept))
          least = Math.min(least, kept); most = Math.max(most, kept); share += kept / follow.full[c]
        }
      }
      const own = (follow.held || []).filter(value => value !== null).length
      const range = (low, high) => low === high ? low : `${low} to ${high}`
      const all = range(Math.min(...follow.full), Math.max(...follow.full))
      return {trace: {z, text, zmax: Math.max(...z.flat()) || 1}, layout: {}, says:
        `At η = ${Math.round(eta)} %, STAR keeps ${range(least, most)} of ${all} ${most === 1 && all === 1 ? 'direction' : 'directions'} ` +
        `of each matrix, ${Math.round(100 * share / (rows * columns))} % on average, and ` +
        (follow.gain ? `scales them up ${follow.gain[Math.round(eta)].toFixed(1)} × on average.` : 'does not scale them up.') +
        (own ? ` The η of ${own} of ${columns} modules is their own and does not follow the slider.` : '') +
        (follow.suggested && follow.suggested !== Math.round(eta) ? ` The spectra suggest η = ${follow.suggested}.` : '')}
    },
    fact(follow, rank) {  // what η alone decides, but for the rank
      const [rows, columns] = follow.shape, z = []
      for (let r = 0; r < rows; r++)
        z.push(Array.from({length: columns}, (_, c) => rank(follow.held && follow.held[c], r, c) * follow.step))
      const all = z.flat(), most = Math.max(...all), shown = number => number.toFixed(2)
      return {trace: {z, text: z.map(row => row.map(shown)), zmax: Math.max(most, follow.low + 0.01)}, layout: {}, says: follow.means &&
        `${follow.fact}, at η = ${Math.round(eta)} %: ${shown(Math.min(...all))} to ${shown(most)}, ` +
        `${shown(all.reduce((sum, one) => sum + one, 0) / all.length)} on average; ${follow.means}.`}
    },
    cuts(follow, rank) {
      const line = css('--body-text-color'), shapes = []
      for (let r = 0; r < follow.shape[0]; r++) for (const axis of ['', '2'])
        shapes.push({type: 'line', xref: 'x' + axis, yref: `y${axis} domain`, x0: rank(follow.held, r), x1: rank(follow.held, r), y0: 0, y1: 1,
          line: {color: follow.colours[r], width: 1.5, dash: 'dot'}})
      shapes.push({type: 'line', xref: 'x2 domain', yref: 'y2', x0: 0, x1: 1, y0: (follow.held ?? eta) / 100, y1: (follow.held ?? eta) / 100,
        line: {color: line, width: 1, dash: 'dash'}})
      return {trace: {}, layout: {shapes}}
    },
  }

  function atEta(figure) {  // null: the figure does not follow η
    const meta = figure.layout.meta && figure.layout.meta.eta
    return meta ? moved[meta.kind](meta, ranksOf(figure)) : null
  }

  function follow(panel) {
    past(panel)
    const now = panel.figure && panel.host.offsetParent !== null && atEta(panel.figure)
    if (!now) return
    if (now.trace.z) Plotly.restyle(panel.host, {...now.trace, z: [now.trace.z], text: [now.trace.text]}, [0])
    else Plotly.relayout(panel.host, now.layout)
    told(panel, now)
  }

  function told(panel, {says}) {
    if (says) say(says)
    panel.host.dataset.eta = String(Math.round(eta))
    if (panel.drawn) panel.drawn()
  }

  // Where a page has a <base>, plotly writes the page's address into each clip; but the address is free to change.
  function baseless(act) {
    const base = document.querySelector('base[href]'), href = base && base.getAttribute('href')
    if (base) base.removeAttribute('href')
    try { return act() } finally { if (base) base.setAttribute('href', href) }
  }

  async function draw(panel, value) {
    panel.figure = value ? JSON.parse(value) : null
    if (!panel.figure) { Plotly.purge(panel.host); return }
    const now = panel.host.offsetParent !== null && atEta(panel.figure)  // drawn once, and with η
    const {data, layout} = fitted(panel, now ? {data: [{...panel.figure.data[0], ...now.trace}, ...panel.figure.data.slice(1)],
      layout: {...panel.figure.layout, ...now.layout}} : panel.figure)
    panel.width = panel.host.offsetWidth
    const tools = !matchMedia('(pointer: coarse)').matches && !(layout.xaxis && layout.xaxis.fixedrange)  // nothing to zoom
    await baseless(() => Plotly.react(panel.host, data, themed({...layout, ...framed(panel.figure)}), {responsive: false, displaylogo: false, displayModeBar: tools && 'hover',
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'toImage', 'sendChartToCloud']}))
    panel.host.setAttribute('aria-label', (layout.meta && layout.meta.alt) || '')
    if (!panel.bound) {
      panel.bound = true
      panel.host.on('plotly_click', ({points: [point]}) =>
        panel.trigger('select', {x: point.x, y: point.y, name: point.customdata || ''}))
    }
    past(panel)
    panel.host.dataset.draws = String(1 + Number(panel.host.dataset.draws || 0))
    if (now) told(panel, now)
    else if (panel.drawn) panel.drawn()
    const module = layout.meta && layout.meta.module
    if (module && module !== opened) { opened = module; panels.forEach(frame) }
  }

  function mount({element, props, trigger, watch, key}) {
    const host = element.querySelector('.ml-plot')
    if (!host || host.dataset.mounted) return
    host.dataset.mounted = 'yes'
    host.setAttribute('role', 'figure') // not img: it holds buttons
    const panel = {host, key, trigger, figure: null, height: host.style.height}
    panels.add(panel)
    mergelab.offerNumbers(panel)
    watch('value', () => draw(panel, props.value))
    draw(panel, props.value)
    new ResizeObserver(() => {
      const width = host.offsetWidth, before = panel.width
      if (!width || !panel.figure) return
      if (!before || before < 600 !== width < 600) return draw(panel, props.value)
      panel.width = width
      if (width !== before && panel.figure.data.some(trace => trace.texttemplate)) return draw(panel, props.value)  // fits or not
      if (width !== before) Plotly.Plots.resize(host)
      if (width !== before || host.dataset.eta !== String(Math.round(eta))) follow(panel)
    }).observe(host)
  }

  function setEta(value) {  // many moves in one frame are one redraw
    if (value === null || value === '' || !(Number(value) >= 1 && Number(value) <= 100)) return  // half typed
    eta = Number(value)
    if (pending) return
    pending = true
    requestAnimationFrame(() => { pending = false; forgetGone(); panels.forEach(follow) })
  }

  const forgetGone = () => panels.forEach(panel => { if (!panel.host.isConnected) { Plotly.purge(panel.host); panels.delete(panel) } })

  let ink = css('--body-text-color')
  new MutationObserver(() => {
    if (ink === (ink = css('--body-text-color'))) return
    panels.forEach(panel => {
      if (!panel.figure || !panel.host.isConnected) return
      if (panel.host.offsetParent === null) panel.width = 0  // to be drawn anew where it is seen
      else if (panel.figure.layout.meta && panel.figure.layout.meta.texts) draw(panel, JSON.stringify(panel.figure))
      else Plotly.relayout(panel.host, themed(panel.host.layout)).then(() => follow(panel)).then(() => frame(panel))
    })
  }).observe(document.body || document.documentElement, {attributes: true, attributeFilter: ['class']})

  return {mount, setEta}
})()
