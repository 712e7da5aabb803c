// The heat map: a canvas of the size of its pane, drawn for the part that is in view.
const SIZES = [3, 5, 8, 11, 14, 18, 22, 26];
const MARKS = ["●", "▲", "×", "?"];
const UNKNOWN = 3, NEAR = new Set(["PIX", "PXB"]);
const LABEL_FROM = 11, CODE_FROM = 24;

class Matrix {
  constructor(choose) {
    this.grid = document.getElementById("grid");
    this.canvas = document.getElementById("canvas");
    this.sizer = document.getElementById("sizer");
    this.cell = document.getElementById("cell");
    this.readout = document.getElementById("readout");
    this.choose = choose;
    this.order = [];
    this.cursor = [0, 0];
    this.picked = null;
    this.pending = false;
    this.grid.addEventListener("scroll", () => this.redraw());
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.grid.addEventListener("focus", () => { this.announce(); this.redraw(); });
    this.grid.addEventListener("blur", () => this.redraw());
    this.canvas.addEventListener("click", (event) => this.click(event));
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    new ResizeObserver(() => this.measure()).observe(this.grid.parentElement);
  }

  show(order) {
    this.order = order;
    this.cursor = [0, Math.min(1, order.length - 1)];
    this.grid.setAttribute("aria-rowcount", order.length);
    this.grid.setAttribute("aria-colcount", order.length);
    this.grid.hidden = order.length === 0;
    this.zoom = null;
    this.count();
    this.measure();
  }

  count() {
    const totals = [0, 0, 0, 0], classes = new Map();
    for (const number of this.order) {
      const known = classes.get(functions[number].peerClass);
      if (known) known.count++; else classes.set(functions[number].peerClass, { number, count: 1 });
    }
    const second = new Map();
    for (const number of this.order) {
      const kind = functions[number].peerClass;
      if (classes.get(kind).number !== number && !second.has(kind)) second.set(kind, number);
    }
    for (const [kind, one] of classes)
      for (const [other, two] of classes) {
        if (kind !== other) totals[storyOf(one.number, two.number).type] += one.count * two.count;
        else if (one.count > 1)
          totals[storyOf(one.number, second.get(kind)).type] += one.count * (one.count - 1);
      }
    for (const item of document.querySelectorAll("#legend li"))
      item.querySelector(".count").textContent =
        totals[TYPES.indexOf(item.dataset.type)].toLocaleString("en");
  }

  measure() {
    const count = this.order.length;
    if (!count) return;
    const longest = Math.max(...this.order.map((number) => functions[number].address.length));
    const width = this.grid.clientWidth;
    const room = (size) => {
      const named = size >= LABEL_FROM, name = Math.ceil(longest * 6.7);
      return { left: named ? name + 42 : 84, top: named ? name + 10 : 14 };
    };
    if (this.zoom === null || this.zoom === undefined) {
      const fits = (size) => Math.floor((width - room(size).left - 2) / count);
      const high = parseFloat(getComputedStyle(this.grid).maxHeight) || Infinity;
      const rows = Math.max(14, Math.floor((high - room(LABEL_FROM).top - 2) / count));
      const named = Math.min(fits(LABEL_FROM), rows);
      this.size = Math.max(SIZES[0], Math.min(SIZES.at(-1),
        named >= LABEL_FROM ? named : Math.min(fits(0), LABEL_FROM - 1)));
    } else this.size = SIZES[this.zoom];
    Object.assign(this, room(this.size));
    const full = this.top + count * this.size + 2;
    this.sizer.style.width = `${this.left + count * this.size + 2}px`;
    this.sizer.style.height = `${full}px`;
    this.grid.style.height = `${full}px`;
    this.redraw();
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(`--${name}`).trim();
    return {
      fill: ["direct", "through", "none", "page"].map(get),
      mark: ["on-direct", "on-through", "on-none", "muted"].map(get),
      near: get("hue1"), page: get("page"), text: get("text"), muted: get("muted"), line: get("line"),
      strong: get("strong"), accent: get("accent"),
    };
  }

  draw(whole = false) {
    const { size, left, top, order, canvas } = this;
    const count = order.length;
    if (!count) return;
    const started = performance.now();
    const wide = whole ? left + count * size + 2 : this.grid.clientWidth;
    const high = whole ? top + count * size + 2 : this.grid.clientHeight;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(high * scale);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
    const paint = canvas.getContext("2d");
    const colours = this.colours();
    paint.scale(scale, scale);
    paint.fillStyle = colours.page;
    paint.fillRect(0, 0, wide, high);
    const scrollX = whole ? 0 : this.grid.scrollLeft, scrollY = whole ? 0 : this.grid.scrollTop;
    const firstColumn = Math.floor(scrollX / size), firstRow = Math.floor(scrollY / size);
    const lastColumn = Math.min(count, Math.ceil((scrollX + wide - left) / size));
    const lastRow = Math.min(count, Math.ceil((scrollY + high - top) / size));
    const x = (column) => left + column * size - scrollX, y = (row) => top + row * size - scrollY;
    paint.save();
    paint.beginPath();
    paint.rect(left, top, wide - left, high - top);
    paint.clip();
    const inset = size >= 8 ? 1 : 0;
    paint.textAlign = "center";
    paint.textBaseline = "middle";
    for (let row = firstRow; row < lastRow; row++)
      for (let column = firstColumn; column < lastColumn; column++) {
        if (row === column) continue;
        const story = storyOf(order[row], order[column]);
        const near = story.type === UNKNOWN && NEAR.has(story.code);
        paint.fillStyle = near ? colours.near : colours.fill[story.type];
        paint.fillRect(x(column), y(row), size - inset, size - inset);
        if (story.type === UNKNOWN && size >= 8) {
          paint.strokeStyle = colours.line;
          paint.strokeRect(x(column) + .5, y(row) + .5, size - 2, size - 2);
        }
        if (size < LABEL_FROM) continue;
        paint.fillStyle = near ? colours.text : colours.mark[story.type];
        // Where the answer is not known, how far apart the two are still is.
        const spelt = size >= (story.type === UNKNOWN ? 20 : CODE_FROM);
        const letter = Math.min(8.5, (size - 3) / (story.code.length * .72));
        paint.font = spelt ? `${letter}px system-ui,sans-serif` : `${Math.max(7, Math.min(size * .55, 10))}px sans-serif`;
        paint.fillText(spelt ? story.code : MARKS[story.type], x(column) + size / 2 - .5, y(row) + size / 2);
      }
    this.borders(paint, colours, x, y, firstRow, lastRow, firstColumn, lastColumn);
    if (this.picked) this.frame(paint, colours.accent, 3, x(this.picked[1]), y(this.picked[0]));
    if (document.activeElement === this.grid)
      this.frame(paint, colours.text, 2, x(this.cursor[1]), y(this.cursor[0]));
    paint.restore();
    this.labels(paint, colours, x, y, firstRow, lastRow, firstColumn, lastColumn);
    this.lastDraw = performance.now() - started;
  }

  borders(paint, colours, x, y, firstRow, lastRow, firstColumn, lastColumn) {
    paint.fillStyle = colours.strong;
    const changes = (at) =>
      at > 0 && functions[this.order[at]].host !== functions[this.order[at - 1]].host;
    const end = this.order.length * this.size;
    for (let row = firstRow; row < lastRow; row++)
      if (changes(row)) paint.fillRect(x(0), y(row) - 1, end, 1);
    for (let column = firstColumn; column < lastColumn; column++)
      if (changes(column)) paint.fillRect(x(column) - 1, y(0), 1, end);
  }

  frame(paint, colour, width, x, y) {
    paint.strokeStyle = colour;
    paint.lineWidth = width;
    const size = Math.max(this.size, 5);
    paint.strokeRect(x - 1, y - 1, size + 1, size + 1);
    paint.lineWidth = 1;
  }

  labels(paint, colours, x, y, firstRow, lastRow, firstColumn, lastColumn) {
    const { size, left, top, order } = this;
    if (size < LABEL_FROM) { this.hostLabels(paint, colours, y, firstRow, lastRow); return; }
    const pick = this.picked ?? [-1, -1];
    paint.textBaseline = "middle";
    paint.font = '11px ui-monospace,"SF Mono",Consolas,"DejaVu Sans Mono",monospace';
    const label = (number, chosen) => {
      paint.fillStyle = chosen ? colours.accent : colours.text;
      return functions[number].address;
    };
    paint.save();
    paint.beginPath();
    paint.rect(0, top, left, this.canvas.height);
    paint.clip();
    for (let row = firstRow; row < lastRow; row++) {
      paint.textAlign = "right";
      paint.fillText(label(order[row], row === pick[0]), left - 5, y(row) + size / 2);
      paint.textAlign = "left";
      paint.fillStyle = colours.muted;
      paint.fillText(data.labels[functions[order[row]].kind] ?? "", 0, y(row) + size / 2);
    }
    paint.restore();
    paint.save();
    paint.beginPath();
    paint.rect(left, 0, this.canvas.width, top);
    paint.clip();
    paint.textAlign = "left";
    for (let column = firstColumn; column < lastColumn; column++) {
      paint.save();
      paint.translate(x(column) + size / 2, top - 5);
      paint.rotate(-Math.PI / 2);
      paint.fillText(label(order[column], column === pick[1]), 0, 0);
      paint.restore();
    }
    paint.restore();
  }

  // Too many rows to name each: the root bus of every run of rows that is high enough.
  hostLabels(paint, colours, y, firstRow, lastRow) {
    paint.font = '11px ui-monospace,"SF Mono",Consolas,"DejaVu Sans Mono",monospace';
    paint.textAlign = "left";
    paint.textBaseline = "middle";
    paint.fillStyle = colours.text;
    for (let row = firstRow, next; row < lastRow; row = next) {
      const host = functions[this.order[row]].host;
      for (next = row + 1; next < lastRow && functions[this.order[next]].host === host;) next++;
      const from = Math.max(y(row), this.top), to = y(next);
      if (to - from >= 12) paint.fillText(data.hosts[host][0], 0, (from + to) / 2);
    }
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.left + this.grid.scrollLeft) / this.size);
    const row = Math.floor((event.clientY - box.top - this.top + this.grid.scrollTop) / this.size);
    const inside = event.clientX - box.left >= this.left && event.clientY - box.top >= this.top;
    return inside && row < this.order.length && column < this.order.length ? [row, column] : null;
  }

  click(event) {
    const place = this.at(event);
    if (!place) return;
    this.cursor = place;
    this.pick();
  }

  hover(event) {
    const place = this.at(event);
    this.canvas.style.cursor = place ? "pointer" : "default";
    if (place) this.readout.textContent = this.sentence(...place);
  }

  sentence(row, column) {
    const one = functions[this.order[row]], other = functions[this.order[column]];
    const story = storyOf(one.number, other.number);
    return `${other.address} ${other.name} to ${one.address} ${one.name}: ` +
      `${WORDS[TYPES[story.type]]}, ${story.code}`;
  }

  announce() {
    const [row, column] = this.cursor;
    if (!this.order.length) return;
    const sentence = this.sentence(row, column);
    this.cell.textContent = sentence;
    this.cell.setAttribute("aria-colindex", column + 1);
    this.cell.parentElement.setAttribute("aria-rowindex", row + 1);
    this.readout.textContent = sentence;
  }

  key(event) {
    const last = this.order.length - 1, page = 10, whole = event.ctrlKey;
    let [row, column] = this.cursor;
    switch (event.key) {
      case "ArrowUp": row--; break;
      case "ArrowDown": row++; break;
      case "ArrowLeft": column--; break;
      case "ArrowRight": column++; break;
      case "PageUp": row -= page; break;
      case "PageDown": row += page; break;
      case "Home": column = 0; if (whole) row = 0; break;
      case "End": column = last; if (whole) row = last; break;
      case "Enter": case " ": event.preventDefault(); this.pick(); return;
      case "+": this.resize(1); return;
      case "-": this.resize(-1); return;
      default: return;
    }
    event.preventDefault();
    this.cursor = [Math.max(0, Math.min(last, row)), Math.max(0, Math.min(last, column))];
    this.reveal();
    this.announce();
    this.redraw();
  }

  resize(step) {
    const larger = SIZES.findIndex((size) => size > this.size);
    const smaller = SIZES.findLastIndex((size) => size < this.size);
    const next = step > 0 ? larger : smaller;
    if (next >= 0) this.zoom = next;
    this.measure();
    this.reveal();
  }

  reveal() {
    const [row, column] = this.cursor, { grid, size } = this;
    const place = (scroll, start, room) =>
      start < scroll ? start : start + size > scroll + room ? start + size - room : scroll;
    grid.scrollLeft = place(grid.scrollLeft, column * size, grid.clientWidth - this.left);
    grid.scrollTop = place(grid.scrollTop, row * size, grid.clientHeight - this.top);
  }

  pick() {
    this.announce();
    this.choose(this.order[this.cursor[0]], this.order[this.cursor[1]]);
  }

  mark(provider, client) {
    const row = this.order.indexOf(provider), column = this.order.indexOf(client);
    this.picked = row >= 0 && column >= 0 ? [row, column] : null;
    if (this.picked) { this.cursor = this.picked; this.reveal(); }
    this.redraw();
  }
}
