// A figure's numbers: as a table for the eye and for a screen reader, as CSV, and the figure itself as PNG and SVG.
// All of it is made from the traces that are drawn, in the browser.
(() => {
  const listed = values => Array.from(values ?? [])
  const titled = axis => (axis && axis.title && (axis.title.text ?? axis.title)) || ''
  const axisOf = (layout, trace, letter) => (layout || {})[`${letter}axis${(trace[letter + 'axis'] || letter).slice(1)}`]

  function heatTable(trace, layout) {  // a row per column of the picture, a column per row of it
    const z = listed(trace.z).map(listed), names = listed(trace.customdata).map(listed)[0]
    const ranks = layout.meta && layout.meta.eta && layout.meta.eta.kind === 'heat'  // its colour is a share, its text the rank
    const cells = ranks ? listed(trace.text).map(row => listed(row).map(Number)) : z
    const across = layout.meta && layout.meta.across, x = trace.x ? listed(trace.x) : cells[0].map((_, c) => c + 1)
    const y = trace.y ? listed(trace.y).map(String) : cells.map((_, r) => `row ${r + 1}`)
    return {headers: [across || titled(axisOf(layout, trace, 'x')) || 'column', ...y],
      rows: x.map((at, c) => [across && names ? names[c] : at, ...cells.map(row => row[c])])}
  }

  function columnsOf(trace, layout, paired) {  // [header, values] for what the trace has at each x
    const axis = paired ? titled(axisOf(layout, trace, 'y')) : '', name = trace.name || 'y', error = trace.error_y
    const head = axis ? `${name}: ${axis}` : name, y = listed(trace.y), columns = [[head, y]]
    if (error && error.array) {
      const up = listed(error.array), down = listed(error.arrayminus || error.array)
      columns.push([`${head}, low`, y.map((v, i) => v == null || down[i] == null ? null : v - down[i])])
      columns.push([`${head}, high`, y.map((v, i) => v == null || up[i] == null ? null : v + up[i])])
    }
    return columns
  }

  function table(data, layout) {
    const heats = data.filter(trace => trace.type === 'heatmap')
    if (heats.length === 1) return heatTable(heats[0], layout)
    if (heats.length) {  // several matrices, one below the other
      const most = Math.max(...heats.map(trace => trace.z[0].length))
      return {headers: ['matrix', 'row', ...Array.from({length: most}, (_, c) => `column ${c + 1}`)],
        rows: heats.flatMap(trace => listed(trace.z).map((row, r) => [trace.name, r + 1, ...listed(row)]))}
    }
    const traces = data.filter(trace => trace.name && listed(trace.y).some(value => value != null))
    if (!traces.length) return null
    const paired = new Set(traces.map(trace => trace.yaxis || 'y')).size > 1
    const xs = traces.map(trace => listed(trace.x)), all = [...new Set(xs.flat())]
    const titles = [...new Set(traces.map(trace => titled(axisOf(layout, trace, 'x'))).filter(Boolean))]
    const wide = titles.length < 2 && xs.every(x => new Set(x).size === x.length) && xs.some(x => x.length === all.length)
    if (!wide) {  // clouds of points: a row per point, with what its axes are where these are not the same for all
      const axes = traces.map(trace => ['x', 'y'].map(letter => titled(axisOf(layout, trace, letter))))
      const many = new Set(axes.map(String)).size > 1
      return {headers: many ? ['series', 'x', 'y', 'x is', 'y is'] : ['series', axes[0][0] || 'x', axes[0][1] || 'y'],
        rows: traces.flatMap((trace, i) => listed(trace.y).map((y, at) => [trace.name, xs[i][at], y, ...(many ? axes[i] : [])]))}
    }
    const named = axisOf(layout, traces[0], 'x'), labels = new Map()  // of places that stand for names
    if (named && named.tickvals) traces.forEach((trace, i) => listed(trace.customdata).forEach((name, at) => labels.set(xs[i][at], name)))
    if (all.every(x => typeof x === 'number')) all.sort((a, b) => a - b)
    const columns = traces.flatMap((trace, i) => columnsOf(trace, layout, paired).map(([head, values]) => [head, new Map(xs[i].map((x, at) => [x, values[at]]))]))
    return {headers: [titles[0] || (layout.meta && layout.meta.across) || 'x', ...columns.map(([head]) => head)],
      rows: all.map(x => [labels.get(x) ?? x, ...columns.map(([, at]) => at.get(x))])}
  }

  const quoted = cell => cell == null ? '' : /[",\n]/.test(String(cell)) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell)
  const csv = ({headers, rows}) => [headers, ...rows].map(row => row.map(quoted).join(',')).join('\r\n') + '\r\n'
  const short = cell => typeof cell === 'number' ? String(Number(cell.toPrecision(5))) : cell ?? ''

  function made(tag, {children = [], ...more}) {
    const node = document.createElement(tag)
    for (const [name, value] of Object.entries(more)) name === 'text' ? node.textContent = value : node.setAttribute(name, value)
    node.append(...children)
    return node
  }

  function htmlTable({headers, rows}, caption) {
    const head = made('tr', {children: headers.map(text => made('th', {scope: 'col', text}))})
    const body = rows.map(([first, ...rest]) => made('tr', {children: [made('th', {scope: 'row', text: short(first)}), ...rest.map(cell => made('td', {text: short(cell)}))]}))
    return made('table', {children: [made('caption', {text: caption}), made('thead', {children: [head]}), made('tbody', {children: body})]})
  }

  function save(name, href) {
    const link = made('a', {href, download: name})
    document.body.append(link); link.click(); link.remove()
  }

  function onPaper(host) {  // dark on white, whatever the page is: a picture leaves it
    const ink = '#222', layout = {...host.layout, paper_bgcolor: '#fff', plot_bgcolor: '#fff', font: {...host.layout.font, color: ink}}
    for (const key of Object.keys(layout).filter(key => /^[xy]axis\d*$/.test(key)))
      layout[key] = {...layout[key], gridcolor: '#ddd', linecolor: '#ddd', zerolinecolor: '#ddd'}
    const old = host.layout.font && host.layout.font.color
    layout.shapes = (layout.shapes || []).map(shape => shape.line && shape.line.color === old ? {...shape, line: {...shape.line, color: ink}} : shape)
    const data = host.data.map(trace => trace.textfont && trace.textfont.color === old ? {...trace, textfont: {...trace.textfont, color: ink}} : trace)
    return {data, layout, config: {}}
  }

  async function picture(host, format, name) {
    const size = {width: host.offsetWidth, height: host.offsetHeight, scale: format === 'png' ? 2 : 1}
    save(`${name}.${format}`, await Plotly.toImage(onPaper(host), {format, ...size}))
  }

  mergelab.table = host => table(host.data || [], host.layout || {})

  mergelab.offerNumbers = panel => {  // a row of small buttons under the figure, and the table that the first one opens
    const {host, key} = panel, name = `mergelab-${key}`, of = key.replaceAll('-', ' ')
    const numbers = made('div', {class: 'ml-numbers', id: `${key}-numbers`, role: 'region', tabindex: '0', 'aria-label': `Numbers of the figure ${of}`, hidden: ''})
    const button = (text, label, act) => { const b = made('button', {type: 'button', text, 'aria-label': label}); b.onclick = act; return b }
    const show = () => {
      const found = mergelab.table(host)
      numbers.replaceChildren(...(found ? [htmlTable(found, host.getAttribute('aria-label') || of)] : []))
    }
    const toggle = button('Numbers', `Show the numbers of the figure ${of}`, () => {
      numbers.hidden = !numbers.hidden
      toggle.setAttribute('aria-expanded', String(!numbers.hidden))
      if (!numbers.hidden) show()
    })
    toggle.setAttribute('aria-expanded', 'false'); toggle.setAttribute('aria-controls', numbers.id)
    const tools = made('div', {class: 'ml-tools', role: 'group', 'aria-label': `The figure ${of}, to take home`, children: [toggle,
      button('CSV', `Numbers of the figure ${of} as CSV`, () => {
        const address = URL.createObjectURL(new Blob([csv(mergelab.table(host))], {type: 'text/csv'}))
        save(`${name}.csv`, address); setTimeout(() => URL.revokeObjectURL(address), 10000)
      }),
      button('PNG', `The figure ${of} as PNG`, () => picture(host, 'png', name)),
      button('SVG', `The figure ${of} as SVG`, () => picture(host, 'svg', name))]})
    host.after(tools, numbers)
    panel.drawn = () => {
      tools.classList.toggle('ml-none', !mergelab.table(host))
      if (!numbers.hidden) setTimeout(show)  // after η has moved it, too
    }
  }
})()
