() => { // words of the page that are too faint (WCAG 2.2 AA), each with its ratio to what lies behind it
  const parts = (text) => {
    const numbers = text.match(/-?[\d.]+(e-?\d+)?/g).map(Number);
    const [r, g, b, a = 1] = text.startsWith('color(') ? [...numbers.slice(0, 3).map((n) => 255 * n), numbers[3]] : numbers;
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((part, place) => a * part + (1 - a) * under[place]);
  const light = (colour) => colour.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const apart = 'svg, .map, option, button:disabled, .hidden, .skip'; // pictures, and what WCAG leaves out
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility({ opacityProperty: true }) || element.closest(apart)) continue;
    const chain = [];
    for (let one = element; one; one = one.parentElement) chain.unshift(parts(getComputedStyle(one).backgroundColor));
    const ground = chain.reduce((under, layer) => over(layer, under), [255, 255, 255]);
    const ink = over(parts(getComputedStyle(element).color), ground);
    const [high, low] = [light(ink), light(ground)].sort((one, other) => other - one);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${text.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return poor;
}
