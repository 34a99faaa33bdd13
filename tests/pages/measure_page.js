// Measures an open page: contrast and size of all visible text, what its plots draw, and whether anything scrolls
// sideways. Returns one object; see test_browser.py.
() => {
  const visible = (element) => element.checkVisibility() && element.getClientRects().length > 0;
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const background = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      const parts = channels(color);
      if (parts.length < 4 || parts[3] > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };

  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !visible(element)) continue;
    if (element.closest(".unseen, .skip:not(:focus)")) continue;
    const style = getComputedStyle(element), plot = element.ownerSVGElement;
    texts.push({
      text: walker.currentNode.data.trim(),
      contrast: contrast(plot ? style.fill : style.color, background(element)),
      size: parseFloat(style.fontSize) * (plot ? plot.getScreenCTM().a : 1),
    });
  }

  const plots = [...document.querySelectorAll("svg")].filter(visible).map((svg) => {
    const box = svg.getBoundingClientRect();
    const shapes = [...svg.querySelectorAll("path, use")].filter((each) => !each.closest("defs"));
    const outside = [...svg.querySelectorAll("text")].filter((text) => {
      const inner = text.getBoundingClientRect();
      return inner.left < box.left - 1 || inner.right > box.right + 1
        || inner.top < box.top - 1 || inner.bottom > box.bottom + 1;
    });
    const colored = shapes.filter((each) => /--(series|ink|quiet)/.test(each.getAttribute("style")));
    return {
      width: box.width,
      height: box.height,
      shapes: shapes.map((each) => each.getBBox()).filter((each) => each.width > 0 || each.height > 0).length,
      outside: outside.map((each) => each.textContent),
      contrasts: colored.map((each) => getComputedStyle(each)).map((style) =>
        contrast(style.stroke === "none" ? style.fill : style.stroke, background(svg))),
      name: document.getElementById(svg.getAttribute("aria-labelledby")).textContent,
    };
  });

  const scrolls = (element) => element.scrollWidth > element.clientWidth + 1
    && ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
  const root = document.documentElement;
  return {
    texts,
    plots,
    scrolling: [...document.querySelectorAll("body *")].filter(scrolls).map((each) => each.tagName)
      .concat(root.scrollWidth > root.clientWidth ? ["the page"] : []),
  };
}
