// What browser.py asks of a page. Expressions may follow: faintTexts(), cutTexts(), markStops().

const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

// A CSS colour as [red, green, blue, opacity], each colour 0 to 255.
function rgba(text) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
  return [red, green, blue, alpha / 255];
}

function painted(top, below, share = 1) {
  const alpha = top[3] * share;
  return [0, 1, 2].map((i) => top[i] * alpha + below[i] * (1 - alpha));
}

function under(element, below) {
  const style = getComputedStyle(element);
  if (!(element instanceof SVGGeometryElement)) return painted(rgba(style.backgroundColor), below);
  if (style.fill === "none") return below;
  return painted(rgba(style.fill), below, style.fillOpacity * style.opacity);
}

// Relative luminance as WCAG 2 defines it.
function luminance(color) {
  const linear = color.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

// Texts whose contrast with what lies under their middle is below WCAG's AA.
function faintTexts() {
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getClientRects()[0];
    if (!box || !box.width) continue;
    const stack = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const place = stack.indexOf(element);
    if (place < 0) continue;
    const isDrawn = element instanceof SVGElement;
    const below = stack.slice(place + (isDrawn ? 1 : 0)).reverse();
    const paper = below.reduce((color, lower) => under(lower, color), [255, 255, 255]);
    const style = getComputedStyle(element);
    const ink = painted(rgba(isDrawn ? style.fill : style.color), paper);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.6 && style.fontWeight >= 700);
    const found = contrast(ink, paper);
    if (found < (isLarge ? 3 : 4.5)) faint.push(`${found.toFixed(2)} ${node.data.trim().slice(0, 60)}`);
  }
  return faint;
}

// Texts of pictures that reach out of them.
function cutTexts() {
  return [...document.querySelectorAll("svg[role=img] text")].filter((text) => {
    const paper = text.ownerSVGElement.getBoundingClientRect();
    const box = text.getBoundingClientRect();
    return box.left < paper.left - 1 || box.right > paper.right + 1
      || box.top < paper.top - 1 || box.bottom > paper.bottom + 1;
  }).map((text) => text.textContent.trim());
}

// Number everything that can be focused, for focused() to name.
function markStops() {
  return [...document.querySelectorAll("a[href], audio[controls], summary, [tabindex='0']")]
    .filter((element) => element.checkVisibility())
    .map((element, i) => {
      element.dataset.stop = i;
      return element.outerHTML.slice(0, 80);
    });
}

// The number of what has the focus, and whether a reader sees that; a player shows it inside.
function focused() {
  const element = document.activeElement;
  const isShown = element.tagName === "AUDIO" || getComputedStyle(element).outlineStyle !== "none";
  return [element.dataset.stop ?? "", isShown];
}
