// A number field of the form that is left empty keeps the number that it had: gradio would take its lowest one instead.
(() => {
  const isNumber = node => node instanceof HTMLInputElement && node.type === 'number' && !!node.closest('.gradio-container')
  const remember = ({target}) => {
    if (!isNumber(target) || target.value === '' || target.validity.rangeUnderflow || target.validity.rangeOverflow) return
    target.dataset.before = target.value
  }
  addEventListener('focus', remember, true)
  addEventListener('input', remember, true)
  addEventListener('blur', ({target}) => {
    if (!isNumber(target) || target.value !== '' || !target.dataset.before) return
    target.value = target.dataset.before
    target.dispatchEvent(new Event('input', {bubbles: true}))
  }, true)
})()
