// The Learn tab in the browser: a small matrix that is cut and rescaled at each touch, and arrow keys to turn the page.
// The mathematics is STAR's, on four rows and columns; tests/test_page_learn.py compares it with torch.
window.mergelabLearn = (() => {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0)
  const length = a => Math.sqrt(dot(a, a))
  const columns = m => m[0].map((_, j) => m.map(row => row[j]))

  // One-sided Jacobi: turn pairs of columns until all are orthogonal; their lengths are the singular values.
  function svd(matrix) {
    const u = columns(matrix), v = columns(matrix.map((row, i) => row.map((_, j) => Number(i === j))))
    for (let sweep = 0; sweep < 60; sweep++) {
      let off = 0
      for (let p = 0; p < u.length; p++) for (let q = p + 1; q < u.length; q++) {
        const a = dot(u[p], u[p]), b = dot(u[q], u[q]), c = dot(u[p], u[q])
        if (c === 0 || Math.abs(c) <= 1e-15 * Math.sqrt(a * b)) continue
        off++
        const z = (b - a) / (2 * c), t = (z < 0 ? -1 : 1) / (Math.abs(z) + Math.hypot(1, z)), cos = 1 / Math.hypot(1, t)
        for (const side of [u, v]) {
          const [x, y] = [side[p], side[q]]
          side[p] = x.map((value, i) => cos * (value - t * y[i]))
          side[q] = y.map((value, i) => cos * (value + t * x[i]))
        }
      }
      if (!off) break
    }
    return u.map((column, k) => ({sigma: length(column), u: column, v: v[k]})).sort((a, b) => b.sigma - a.sigma)
  }

  // r, c, τ' and the errors of STAR; a singular value below rounding is none, and a share is reached up to rounding.
  function star(matrix, eta, rescale) {
    const terms = svd(matrix), top = terms[0].sigma
    const sigmas = terms.map(term => term.sigma > 1e-7 * top ? term.sigma : 0)
    const whole = sigmas.reduce((a, b) => a + b, 0)
    let rank = 0, held = 0
    while (whole && rank < sigmas.length && sigmas[rank] && (rank === 0 || held < whole * (eta / 100 - 1e-9))) held += sigmas[rank++]
    const gain = held ? whole / held : 1, times = rescale ? gain : 1
    const result = matrix.map((row, i) => row.map((_, j) =>
      times * terms.slice(0, rank).reduce((sum, {u, v}) => sum + u[i] * v[j], 0)))
    const size = length(matrix.flat())
    const error = scale => size ? length(matrix.flat().map((value, i) => value - scale * result.flat()[i] / times)) / size : 0
    return {sigmas, whole, rank, held, gain, result, error: error(times), bare: error(1)}
  }

  const shaded = (value, reach) => {
    const strength = reach ? Math.round(Math.min(1, Math.abs(value) / reach) * 60) : 0
    return `color-mix(in srgb, ${value < 0 ? '#f59e0b' : '#3b82f6'} ${strength}%, transparent)`
  }
  const shown = value => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2)
  const EXAMPLES = {
    'as at first': null,
    'one direction': [[2, 1, 0, -1], [4, 2, 0, -2], [-2, -1, 0, 1], [1, .5, 0, -.5]],
    'two directions': [[2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
    'all alike': [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]],
  }

  function mount({element, props}) {
    const root = element.querySelector('.ml-touch')
    if (!root || root.dataset.mounted) return
    root.dataset.mounted = 'yes'
    const {matrix, eta} = JSON.parse(props.value), part = name => root.querySelector(`[data-part=${name}]`)
    const cells = matrix.map((row, i) => row.map((_, j) => {
      const cell = Object.assign(document.createElement('input'), {type: 'number', step: 0.1, min: -99, max: 99})
      cell.setAttribute('aria-label', `τ, row ${i + 1}, column ${j + 1}`)
      cell.addEventListener('input', draw)
      cell.addEventListener('pointerdown', event => dragged(event, cell))
      return part('given').appendChild(cell)
    }))
    const outs = matrix.map(row => row.map(() => part('result').appendChild(document.createElement('span'))))
    const slider = part('eta'), rescale = part('rescale')
    slider.value = eta
    slider.addEventListener('input', draw)
    rescale.addEventListener('input', draw)
    for (const [name, numbers] of Object.entries(EXAMPLES)) {
      const button = Object.assign(document.createElement('button'), {type: 'button', textContent: name})
      button.addEventListener('click', () => fill(numbers || matrix))
      part('examples').append(button)
    }
    fill(matrix)

    function fill(numbers) {
      numbers.forEach((row, i) => row.forEach((value, j) => { cells[i][j].value = value }))
      draw()
    }

    function dragged(down, cell) {  // with a mouse; on a screen that is touched, a drag scrolls the page
      if (down.pointerType !== 'mouse') return
      const before = Number(cell.value) || 0
      const move = event => {
        const steps = Math.trunc((down.clientY - event.clientY) / 4)
        if (steps) { cell.value = String(Math.round(10 * before + steps) / 10); draw() }
      }
      const up = () => { removeEventListener('pointermove', move); removeEventListener('pointerup', up) }
      addEventListener('pointermove', move)
      addEventListener('pointerup', up)
    }

    function draw() {
      const numbers = cells.map(row => row.map(cell => Math.max(-99, Math.min(99, Number(cell.value) || 0))))
      const found = star(numbers, Number(slider.value), rescale.checked)
      const reach = Math.max(...numbers.flat().map(Math.abs), ...found.result.flat().map(Math.abs))
      cells.forEach((row, i) => row.forEach((cell, j) => { cell.style.background = shaded(numbers[i][j], reach) }))
      outs.forEach((row, i) => row.forEach((out, j) => {
        out.textContent = shown(found.result[i][j])
        out.style.background = shaded(found.result[i][j], reach)
      }))
      part('bars').innerHTML = found.sigmas.map((sigma, k) => `<li class="${k < found.rank ? 'kept' : 'gone'}">` +
        `<span>σ<sub>${k + 1}</sub> = ${shown(sigma)}</span>` +
        `<b style="width:${found.sigmas[0] ? 100 * sigma / found.sigmas[0] : 0}%"></b></li>`).join('')
      part('eta-said').textContent = `η = ${slider.value} %`
      part('said').innerHTML = !found.rank ? 'All numbers are zero: there is nothing to keep.' :
        `Σσ = ${shown(found.whole)}, and ${slider.value} % of it is ${shown(found.whole * slider.value / 100)}: the first ` +
        `<strong>r = ${found.rank}</strong> of 4 hold ${shown(found.held)}. ` +
        `c = ${shown(found.whole)} / ${shown(found.held)} = <strong>${shown(found.gain)}</strong>. ` +
        `Error ‖τ′ − τ‖ / ‖τ‖ = <strong>${(100 * found.error).toFixed(1)}\u00a0%</strong>` +
        (rescale.checked ? `; of the cut alone it would be ${(100 * found.bare).toFixed(1)}\u00a0%.` : ', the least that any matrix of this rank can have.')
      root.dataset.found = JSON.stringify({...found, eta: Number(slider.value), matrix: numbers})
    }
  }

  addEventListener('keydown', event => {
    const turn = {ArrowLeft: '#learn-back', ArrowRight: '#learn-next'}[event.key]
    if (!turn || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return
    if (event.target.closest('input, textarea, select, [role=tab], [role=slider], [role=listbox], [role=region], [contenteditable=true]')) return
    const button = document.querySelector(turn)
    if (button && button.offsetParent && !button.disabled) { event.preventDefault(); button.click() }
  })

  return {mount, svd, star}
})()
