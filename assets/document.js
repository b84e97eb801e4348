// A report on its own: mounts its figures, follows the system's light or dark, and prints in light.
(() => {
  const dark = matchMedia('(prefers-color-scheme: dark)'), slider = document.querySelector('.eta input')
  const shade = on => document.body.classList.toggle('dark', on)
  shade(dark.matches)
  dark.addEventListener('change', () => shade(dark.matches))
  addEventListener('beforeprint', () => shade(false))
  addEventListener('afterprint', () => shade(dark.matches))

  const say = () => { mergelab.setEta(slider.value); document.querySelector('.eta output').value = slider.value }
  if (slider) { slider.value = document.body.dataset.eta; slider.oninput = say; say() }
  for (const figure of document.querySelectorAll('figure[data-key]'))
    mergelab.mount({element: figure, key: figure.dataset.key, trigger() {}, watch() {},
      props: {value: figure.querySelector('script').textContent}})
})()
